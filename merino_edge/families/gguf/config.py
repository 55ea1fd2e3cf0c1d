"""A GGUF's metadata as the content of the config.json that Hugging Face has of the same model.

So a GGUF is judged by the same reader as a folder, which refuses variants that a family does not know. Keys of the
metadata: the page on GGUF in github.com/ggml-org/ggml and `gguf.constants`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from merino_edge.families.checkpoint import CHOOSE
from merino_edge.families.gguf.blocks import weights_of
from merino_edge.families.gguf.file import AGAIN, GgufFile, checked_value, shown
from merino_edge.storage.faults import shortened
from merino_runtime.errors import MerinoError

ROPE_FACTORS = "rope_freqs.weight"
HEAD = "output.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LARGEST = 1 << 40
SIZES = {  # by key of most families' config.json
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count", "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}  # fmt: skip

# Keys that change no token, and their allowed value; None: any. Another key of the architecture that is not read and is
# not 0 may change the logits, so the file is refused.
NEUTRAL: Mapping[str, Any] = {
    "vocab_size": None, "expert_used_count": None, "rope.scaling.finetuned": None,
    "rope.scaling.original_context_length": None, "attention.causal": True, "embedding_scale": 1, "residual_scale": 1,
    "logit_scale": 1, "rope.scaling.attn_factor": 1,
}  # fmt: skip


class Metadata(NamedTuple):
    """The keys of the file's architecture, without its name before them. `read`: those that were read so far."""

    file: GgufFile
    architecture: str
    read: set[str]

    def value(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return self.file.metadata.get(f"{self.architecture}.{key}", default)

    def count(self, key: str, default: int | None = None) -> int:
        return int(self._checked(key, lambda v: type(v) is int and 0 < v < LARGEST, "an integer above 0", default))

    def same_count(self, key: str, default: int | None = None) -> int:
        """Return a count that may be a list with an entry per layer, which then must be equal."""
        stored = self.value(key)
        if isinstance(stored, list | np.ndarray):
            counts = stored if isinstance(stored, np.ndarray) and stored.dtype.kind in "iu" else np.zeros(1)
            if len(set(counts.tolist())) != 1 or counts[0] < 1:
                raise MerinoError(
                    f"{self.file.path}: {self.architecture}.{key} is {shown(stored)}: exported are models of equal"
                    " layers"
                )
            return int(counts[0])
        return self.count(key, default)

    def sizes(self, keys: Mapping[str, str]) -> dict[str, int]:
        """Return counts by keys of config.json."""
        return {word: self.same_count(key) for word, key in keys.items()}

    def real(self, key: str, default: float | None = None) -> float:
        def judge(value: Any) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e30

        return rounded(float(self._checked(key, judge, "a number above 0", default)))

    def _checked(self, key: str, judge: Callable[[Any], bool], allowed: str, default: Any) -> Any:
        self.read.add(key)
        return checked_value(self.file.metadata, f"{self.architecture}.{key}", judge, allowed, default)

    def tensor(self, name: str) -> bool:
        return name in self.file.tensors

    def refuse_others(self) -> None:
        """Raise MerinoError for keys that were not read and are not neutral, all at once."""
        begin = f"{self.architecture}."
        own = {key[len(begin) :]: value for key, value in self.file.metadata.items() if key.startswith(begin)}
        wrong = [
            f"{begin}{key} is {shown(value)}" for key, value in own.items()
            if key not in self.read and not is_neutral(key, value)
        ]  # fmt: skip
        if wrong:
            raise MerinoError(
                f"{self.file.path} is a variant of {self.architecture} that is not exported: {'; '.join(wrong)}."
                f" {CHOOSE}"
            )


def is_neutral(key: str, value: Any) -> bool:
    if key in NEUTRAL:
        return NEUTRAL[key] is None or isinstance(value, int | float) and value == NEUTRAL[key]
    return isinstance(value, int | float) and value == 0


def rounded(value: float) -> float:
    """Stored in float32, written in decimals: 9.999999747e-06 was 1e-05."""
    return float(f"{value:.7g}")


def config_of(file: GgufFile) -> dict[str, Any]:
    """Raise MerinoError for an architecture that is not exported, and for values that are missing or cannot be."""
    key, allowed = "general.architecture", "the name of an architecture"
    name = checked_value(file.metadata, key, lambda v: isinstance(v, str), allowed)
    if name not in ARCHITECTURES:
        raise MerinoError(
            f"{file.path} is a model of architecture {shortened(repr(name))}: exported are"
            f" {', '.join(ARCHITECTURES)}"
        )
    if "split.count" in file.metadata and file.metadata["split.count"] != 1:
        raise MerinoError(f"{file.path} is one part of several: join them with `llama-gguf-split --merge` of llama.cpp")
    metadata = Metadata(file, name, set())
    layers = metadata.count("block_count")
    if layers > len(file.tensors):
        raise MerinoError(f"{file.path} describes {layers:,} layers and has {len(file.tensors):,} tensors. {AGAIN}")
    config = ARCHITECTURES[name](metadata)
    metadata.refuse_others()
    return {**config, **special_ids(file.metadata), "vocab_size": vocabulary(metadata)}


def special_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    """Return the file's bos and eos; `stop_ids` of the tokenizer has further end tokens."""
    keys = {"bos_token_id": "tokenizer.ggml.bos_token_id", "eos_token_id": "tokenizer.ggml.eos_token_id"}
    return {word: metadata[key] for word, key in keys.items() if type(metadata.get(key)) is int}


def vocabulary(metadata: Metadata) -> int:
    """Return rows of the embedding. The list of tokens may be shorter, where the embedding is padded."""
    place = metadata.file.tensors.get("token_embd.weight")
    if place is None or len(place.shape) != 2:
        raise MerinoError(f"{metadata.file.path} has no token_embd.weight: give a model that generates text")
    rows = place.shape[0]
    tokens = metadata.file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > rows:
        raise MerinoError(f"{metadata.file.path} has {len(tokens):,} tokens and an embedding of {rows:,} rows. {AGAIN}")
    return rows


def rotary(metadata: Metadata, default: float = 10000.0) -> dict[str, Any]:
    """Return `rope_parameters`, with the scaling that the file stores as factors of the frequencies.

    Raise MerinoError for a scaling by the metadata. As in llama.cpp its type is linear where none is stated.
    """
    kind = metadata.value("rope.scaling.type", "linear")
    factors = {key: metadata.value(key, 0) for key in ("rope.scaling.factor", "rope.scale_linear")}
    if kind != "none" and (kind != "linear" or any(value not in (0, 1) for value in factors.values())):
        stated = {"rope.scaling.type": kind, **factors}
        listed = [f"{metadata.architecture}.{key} is {shown(value)}" for key, value in stated.items() if value]
        raise MerinoError(
            f"{metadata.file.path} scales its rotary frequencies by its metadata ({'; '.join(listed)}): exported are"
            f" frequencies without scaling, or with Llama 3's in {ROPE_FACTORS}"
        )
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": metadata.real("rope.freq_base", default)}
    if metadata.tensor(ROPE_FACTORS):
        rope |= llama3_scaling(metadata, rope["rope_theta"])
    return rope


def llama3_scaling(metadata: Metadata, theta: float) -> dict[str, Any]:
    """Return the scaling that gives the stored factors, by which llama.cpp divides the frequencies. Published models
    differ only in `factor`."""
    stored = weights_of(metadata.file, ROPE_FACTORS).reshape(-1)
    factor = rounded(float(stored.max()))
    if factor == 1:
        return {}
    scaling = {**LLAMA3, "factor": factor}
    expected = llama3_factors(2 * len(stored), theta, scaling)
    if not np.allclose(stored, expected, rtol=1e-4):
        raise MerinoError(
            f"{metadata.file.path}: {ROPE_FACTORS} is no scaling that is exported: known is llama3 with low_freq_factor"
            " 1, high_freq_factor 4 and original_max_position_embeddings 8192"
        )
    return {"rope_type": "llama3", **scaling}


def llama3_factors(size: int, theta: float, scaling: Mapping[str, float]) -> np.ndarray:
    """float32 [size / 2] of Llama 3.1's rule: long waves are stretched by `factor`, short ones are not, those between
    them in proportion."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    waves = 2 * np.pi * theta ** (np.arange(0, size, 2) / size)
    smooth = np.clip((scaling["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
    factors: np.ndarray = (1 / ((1 - smooth) / scaling["factor"] + smooth)).astype(np.float32)
    return factors


def rms_decoder(metadata: Metadata, kind: str) -> dict[str, Any]:
    """Return the keys that llama and its kin share: RMSNorm, gated FFN, rotary positions over the whole head."""
    width, heads = metadata.count("embedding_length"), metadata.same_count("attention.head_count")
    head_size = metadata.count("attention.key_length", max(1, width // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if metadata.count(key, head_size) != head_size:
            raise MerinoError(
                f"{metadata.file.path}: {metadata.architecture}.{key} is {metadata.count(key)}, supported is the"
                f" size of a head, {head_size}"
            )
    return {
        "model_type": kind,
        **metadata.sizes(SIZES),
        "num_key_value_heads": metadata.same_count("attention.head_count_kv", heads),
        "head_dim": head_size,
        "rms_norm_eps": metadata.real("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rotary(metadata),
        "hidden_act": "silu",
        "tie_word_embeddings": not metadata.tensor(HEAD),
    }


def llama(metadata: Metadata) -> dict[str, Any]:
    return {**rms_decoder(metadata, "llama"), "attention_bias": metadata.tensor("blk.0.attn_q.bias"),
            "mlp_bias": metadata.tensor("blk.0.ffn_up.bias")}  # fmt: skip


def qwen2(metadata: Metadata) -> dict[str, Any]:
    words = rms_decoder(metadata, "qwen2")
    if words.pop("head_dim") * words["num_attention_heads"] != words["hidden_size"]:
        raise MerinoError(f"{metadata.file.path}: the heads of qwen2 must together be as wide as the model")
    return {**words, "use_sliding_window": False}


def qwen3(metadata: Metadata) -> dict[str, Any]:
    return {**rms_decoder(metadata, "qwen3"), "attention_bias": False, "use_sliding_window": False}


def granite(metadata: Metadata) -> dict[str, Any]:
    words = rms_decoder(metadata, "granite")
    head_size = words.pop("head_dim")
    if head_size * words["num_attention_heads"] != words["hidden_size"]:
        raise MerinoError(f"{metadata.file.path}: the heads of granite must together be as wide as the model")
    return {
        **words,
        "attention_bias": False,
        "mlp_bias": False,
        "embedding_multiplier": metadata.real("embedding_scale", 1.0),
        "residual_multiplier": metadata.real("residual_scale", 1.0),
        "attention_multiplier": metadata.real("attention.scale", head_size**-0.5),
        "logits_scaling": metadata.real("logit_scale", 1.0),
    }


def gemma3(metadata: Metadata) -> dict[str, Any]:
    """Return the keys of Gemma 3. Every sixth layer attends to all positions, the others to a window, with rotary
    frequencies of their own."""
    words = rms_decoder(metadata, "gemma3_text")
    del words["hidden_act"]
    if not words["tie_word_embeddings"]:
        raise MerinoError(f"{metadata.file.path} has {HEAD}, supported is a gemma3 whose head is its embedding")
    period = metadata.count("attention.sliding_window_pattern", 6)
    layers = words["num_hidden_layers"]
    everywhere = rotary(metadata, 1e6)
    return {
        **words,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": words["head_dim"],
        "sliding_window": metadata.count("attention.sliding_window"),
        "layer_types": [
            "sliding_attention" if (index + 1) % period else "full_attention" for index in range(layers)
        ],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": metadata.real("rope.freq_base_swa", 1e4)},
            "full_attention": everywhere,
        },
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
    }


def gpt2(metadata: Metadata) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        **metadata.sizes({
            "n_embd": "embedding_length", "n_layer": "block_count", "n_head": "attention.head_count",
            "n_inner": "feed_forward_length", "n_positions": "context_length",
        }),
        "layer_norm_epsilon": metadata.real("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
        "tie_word_embeddings": not metadata.tensor(HEAD),
    }


def gpt_neox(metadata: Metadata) -> dict[str, Any]:
    width, heads = metadata.count("embedding_length"), metadata.same_count("attention.head_count")
    turned = metadata.count("rope.dimension_count", max(1, width // heads))
    return {
        "model_type": "gpt_neox",
        **metadata.sizes(SIZES),
        "layer_norm_eps": metadata.real("attention.layer_norm_epsilon"),
        "use_parallel_residual": metadata.value("use_parallel_residual", True),
        "rope_parameters": {**rotary(metadata), "partial_rotary_factor": turned * heads / width},
        "hidden_act": "gelu",
        "attention_bias": True,
        "tie_word_embeddings": not metadata.tensor(HEAD),
    }  # fmt: skip


ARCHITECTURES: Mapping[str, Callable[[Metadata], dict[str, Any]]] = {
    "llama": llama, "qwen2": qwen2, "qwen3": qwen3, "granite": granite, "gemma3": gemma3, "gpt2": gpt2,
    "gptneox": gpt_neox,
}  # fmt: skip
