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
KV_HEADS = "attention.head_count_kv"
LONG_FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
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
    "attention.causal": True, "embedding_scale": 1, "residual_scale": 1, "logit_scale": 1,
    "rope.scaling.attn_factor": 1,
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
    return {"pad_token_id": None, **config, **special_ids(file.metadata), "vocab_size": vocabulary(metadata)}


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
    """Return `rope_parameters`: the scaling is in tensors with a divisor per frequency, or in the metadata.

    Raise MerinoError for a kind of scaling that is not known. As in llama.cpp it is linear where none is stated.
    """
    kind = metadata.value("rope.scaling.type", "linear")
    factor = max(metadata.value(key, 0) or 0 for key in ("rope.scaling.factor", "rope.scale_linear"))
    original, context = metadata.value("rope.scaling.original_context_length"), metadata.count("context_length")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": metadata.real("rope.freq_base", default)}
    long = metadata.tensor(LONG_FACTORS["long_factor"])
    tensors = LONG_FACTORS if long else dict.fromkeys(LONG_FACTORS, ROPE_FACTORS)
    if metadata.tensor(tensors["long_factor"]):
        factors = {key: weights_of(metadata.file, name).reshape(-1).tolist() for key, name in tensors.items()}
        magnitude = metadata.real("rope.scaling.attn_factor", 1.0)
        if magnitude == 1 and set(factors["long_factor"]) == {1.0} == set(factors["short_factor"]):
            return rope
        return {
            **rope, "rope_type": "longrope", **{key: list(map(rounded, values)) for key, values in factors.items()},
            "factor": 1.0, "attention_factor": magnitude, "original_max_position_embeddings": original or context,
        }  # fmt: skip
    if kind == "none" or factor in (0, 1):
        return rope
    if kind == "linear":
        return {**rope, "rope_type": "linear", "factor": rounded(factor)}
    if kind == "yarn" and original:
        return {**rope, "rope_type": "yarn", "factor": rounded(factor), "original_max_position_embeddings": original}
    raise MerinoError(
        f"{metadata.file.path}: {metadata.architecture}.rope.scaling.type is {shown(kind)}: exported are linear, and"
        " yarn with its original_context_length"
    )


def rms_decoder(metadata: Metadata, kind: str, **more: Any) -> dict[str, Any]:
    """Return the keys that llama and its kin share: RMSNorm, gated FFN, rotary positions over the whole head. `more`:
    further keys of the family; None leaves a key out."""
    width, heads = metadata.count("embedding_length"), metadata.same_count("attention.head_count")
    head_size = metadata.count("attention.key_length", max(1, width // heads))
    part = "partial_rotary_factor" in more
    for key in ("attention.value_length", *(() if part else ("rope.dimension_count",))):
        if metadata.count(key, head_size) != head_size:
            raise MerinoError(
                f"{metadata.file.path}: {metadata.architecture}.{key} is {metadata.count(key)}, supported is the"
                f" size of a head, {head_size}"
            )
    if "head_dim" in more and head_size * heads != width:
        raise MerinoError(f"{metadata.file.path}: the heads of {kind} must together be as wide as the model")
    words = {
        "model_type": kind,
        **metadata.sizes(SIZES),
        **({} if "num_key_value_heads" in more else {"num_key_value_heads": metadata.same_count(KV_HEADS, heads)}),
        "head_dim": head_size,
        "rope_parameters": rotary(metadata),
        "hidden_act": "silu",
        "tie_word_embeddings": not metadata.tensor(HEAD),
        **more,
    }
    if "rms_norm_eps" not in more:
        words["rms_norm_eps"] = metadata.real("attention.layer_norm_rms_epsilon")
    if part:
        turned = metadata.count("rope.dimension_count", head_size)
        words["rope_parameters"]["partial_rotary_factor"] = turned / head_size
    return {key: value for key, value in words.items() if key not in more or value is not None}


WHOLE: dict[str, Any] = {"head_dim": None}  # the class has no head_dim: the heads are as wide as the model
PART: dict[str, Any] = {"partial_rotary_factor": None}
LAYER_NORM: dict[str, Any] = {"rms_norm_eps": None}


def llama(metadata: Metadata) -> dict[str, Any]:
    bias, mlp_bias = metadata.tensor("blk.0.attn_q.bias"), metadata.tensor("blk.0.ffn_up.bias")
    return rms_decoder(metadata, "llama", attention_bias=bias, mlp_bias=mlp_bias)


def of_layers(metadata: Metadata, period: int) -> list[bool]:
    """Return for each layer whether it is not the last one of `period`."""
    return [bool((index + 1) % period) for index in range(metadata.count("block_count"))]


def windows(metadata: Metadata, period: int) -> dict[str, Any]:
    """Return the window of the layers that have one: all but every `period`th; without a window none has."""
    window = metadata.value("attention.sliding_window") or None
    kinds = {True: "sliding_attention", False: "full_attention"}
    pattern = metadata.count("attention.sliding_window_pattern", period)
    listed = [kinds[windowed and window is not None] for windowed in of_layers(metadata, pattern)]
    return {"sliding_window": window, "layer_types": listed}


def smollm3(metadata: Metadata) -> dict[str, Any]:
    rotated = [int(index) for index in of_layers(metadata, 4)]
    return rms_decoder(metadata, "smollm3", no_rope_layers=rotated, **WHOLE)


def exaone4(metadata: Metadata) -> dict[str, Any]:
    found = windows(metadata, 4)
    return rms_decoder(metadata, "exaone4", **found) | {"sliding_window": found["sliding_window"]}


def lfm2(metadata: Metadata) -> dict[str, Any]:
    """Return the keys of LFM2, whose file has no KV heads in layers of convolutions."""
    layers, counts = metadata.count("block_count"), metadata.value(KV_HEADS)
    listed = counts.tolist() if isinstance(counts, np.ndarray) else counts
    kinds = set(listed) - {0} if isinstance(listed, list) and all(type(count) is int for count in listed) else set()
    if not isinstance(listed, list) or len(listed) != layers or len(kinds) != 1 or min(kinds) < 1:
        raise MerinoError(
            f"{metadata.file.path}: lfm2.{KV_HEADS} is {shown(counts)}: it must have an entry for each of {layers}"
            " layers, 0 for a convolution and one number for all others"
        )
    words = rms_decoder(metadata, "lfm2", hidden_act=None, num_key_value_heads=kinds.pop(), rms_norm_eps=None, **WHOLE)
    return {
        **words, "norm_eps": metadata.real("attention.layer_norm_rms_epsilon"), "block_auto_adjust_ff_dim": False,
        "conv_L_cache": metadata.count("shortconv.l_cache"),
        "layer_types": ["full_attention" if count else "conv" for count in listed],
    }  # fmt: skip


def phi3(metadata: Metadata) -> dict[str, Any]:
    window = metadata.value("attention.sliding_window") or None
    context = metadata.value("rope.scaling.original_context_length") or metadata.count("context_length")
    words = rms_decoder(metadata, "phi3", **WHOLE, **PART)
    return {**words, "sliding_window": window, "original_max_position_embeddings": context}


def stablelm(metadata: Metadata) -> dict[str, Any]:
    eps = metadata.real("attention.layer_norm_epsilon")
    bias, parallel = metadata.tensor("blk.0.attn_q.bias"), metadata.value("use_parallel_residual", False)
    words = rms_decoder(metadata, "stablelm", **WHOLE, **PART, **LAYER_NORM)
    return {**words, "layer_norm_eps": eps, "use_qkv_bias": bias, "use_parallel_residual": parallel}


def phi(metadata: Metadata) -> dict[str, Any]:
    eps = metadata.real("attention.layer_norm_epsilon")
    words = rms_decoder(metadata, "phi", **WHOLE, **PART, **LAYER_NORM)
    return {**words, "layer_norm_eps": eps, "hidden_act": "gelu_new"}


def gemma(metadata: Metadata) -> dict[str, Any]:
    return rms_decoder(metadata, "gemma", hidden_act="gelu_pytorch_tanh")


def gemma2(metadata: Metadata) -> dict[str, Any]:
    words = rms_decoder(metadata, "gemma2", hidden_act=None, **windows(metadata, 2))
    return {
        **words,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": words["head_dim"],
        "attn_logit_softcapping": metadata.real("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.real("final_logit_softcapping", 30.0),
    }


def granite(metadata: Metadata) -> dict[str, Any]:
    words = rms_decoder(metadata, "granite", attention_bias=False, mlp_bias=False, **WHOLE)
    head_size = words["hidden_size"] // words["num_attention_heads"]
    return {
        **words,
        "embedding_multiplier": metadata.real("embedding_scale", 1.0),
        "residual_multiplier": metadata.real("residual_scale", 1.0),
        "attention_multiplier": metadata.real("attention.scale", head_size**-0.5),
        "logits_scaling": metadata.real("logit_scale", 1.0),
    }


def gemma3(metadata: Metadata) -> dict[str, Any]:
    """Return the keys of Gemma 3. Every sixth layer attends to all positions, the others to a window, with rotary
    frequencies of their own."""
    words = rms_decoder(metadata, "gemma3_text", hidden_act=None, attention_bias=False, **windows(metadata, 6))
    if not words["tie_word_embeddings"]:
        raise MerinoError(f"{metadata.file.path} has {HEAD}, supported is a gemma3 whose head is its embedding")
    return {
        **words,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": words["head_dim"],
        "sliding_window": metadata.count("attention.sliding_window"),
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": metadata.real("rope.freq_base_swa", 1e4)},
            "full_attention": rotary(metadata, 1e6),
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
    "llama": llama,
    "qwen2": lambda metadata: rms_decoder(metadata, "qwen2", use_sliding_window=False, **WHOLE),
    "qwen3": lambda metadata: rms_decoder(metadata, "qwen3", attention_bias=False, use_sliding_window=False),
    "ernie4_5": lambda metadata: rms_decoder(metadata, "ernie4_5", use_bias=False),
    "olmo2": lambda metadata: rms_decoder(metadata, "olmo2", attention_bias=False, **WHOLE),
    "hunyuan-dense": lambda metadata: rms_decoder(metadata, "hunyuan_v1_dense", attention_bias=False),
    "smollm3": smollm3, "exaone4": exaone4, "phi3": phi3, "stablelm": stablelm, "granite": granite, "gemma": gemma,
    "lfm2": lfm2,
    "gemma2": gemma2, "gemma3": gemma3, "gpt2": gpt2, "gptneox": gpt_neox, "phi2": phi,
}  # fmt: skip
