"""A GGUF's metadata as the content of the config.json that Hugging Face has of the same model.

So a GGUF is judged by the same reader as a folder, which refuses variants that a family does not know. Keys of the
metadata: the page on GGUF in github.com/ggml-org/ggml and `gguf.constants`.
"""

from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

from merino_edge.families.checkpoint import CHOOSE
from merino_edge.families.gguf.file import AGAIN, GgufFile, checked_value, shown
from merino_edge.families.gguf.metadata import Metadata, rotary, rounded, vocabulary
from merino_edge.families.registry import FAMILIES
from merino_edge.storage.faults import shortened
from merino_runtime.errors import MerinoError

HEAD, GELU = "output.weight", "gelu_pytorch_tanh"
KV_HEADS = "attention.head_count_kv"
SIZES = {  # by field of a geometry
    "width": "embedding_length", "layers": "block_count", "heads": "attention.head_count",
    "ffn_width": "feed_forward_length", "context": "context_length",
}  # fmt: skip


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
    ids = {key: file.metadata.get(f"tokenizer.ggml.{key}") for key in ("bos_token_id", "eos_token_id")}
    known = {key: token_id for key, token_id in ids.items() if type(token_id) is int}
    return {"pad_token_id": None, **config, **known, "vocab_size": vocabulary(metadata)}


def decoder(metadata: Metadata, kind: str, **more: Any) -> dict[str, Any]:
    """Return the keys that most families share, and `more`, further keys of the family."""
    geometry: Any = FAMILIES[kind].geometry
    heads = metadata.same_count("attention.head_count")
    eps = "attention.layer_norm_epsilon"
    words = {
        "model_type": kind,
        **{geometry.KEYS[field]: metadata.same_count(key) for field, key in SIZES.items() if field in geometry.KEYS},
        geometry.KEYS["norm_eps"]: metadata.real(eps if metadata.has(eps) else "attention.layer_norm_rms_epsilon"),
        "num_key_value_heads": more.get("num_key_value_heads") or metadata.same_count(KV_HEADS, heads),
        "tie_word_embeddings": not metadata.tensor(HEAD),
    }
    if "rope_theta" in geometry.model_fields:
        head_size = metadata.count("attention.key_length", max(1, metadata.count("embedding_length") // heads))
        if metadata.count("attention.value_length", head_size) != head_size:
            raise MerinoError(
                f"{metadata.file.path}: keys and values have heads of different sizes, supported is one size"
            )
        rope, turned = rotary(metadata), metadata.count("rope.dimension_count", head_size)
        if "rotated" in geometry.model_fields or turned != head_size:
            rope["partial_rotary_factor"] = turned / head_size
        words |= {"head_dim": head_size, "rope_parameters": rope, "hidden_act": "silu"}
    return {**words, **more}


def llama(metadata: Metadata) -> dict[str, Any]:
    bias, mlp_bias = metadata.tensor("blk.0.attn_q.bias"), metadata.tensor("blk.0.ffn_up.bias")
    return decoder(metadata, "llama", attention_bias=bias, mlp_bias=mlp_bias)


def of_layers(metadata: Metadata, period: int) -> list[bool]:
    """Return for each layer whether it is not the last one of `period`."""
    return [bool((index + 1) % period) for index in range(metadata.count("block_count"))]


def windows(metadata: Metadata, period: int) -> dict[str, Any]:
    """Return the window of the layers that have one: those that are listed, or all but every `period`th; without a
    window none has."""
    window = metadata.value("attention.sliding_window") or None
    kinds = {True: "sliding_attention", False: "full_attention"}
    pattern = metadata.value("attention.sliding_window_pattern", period)
    if not isinstance(pattern, list | np.ndarray):
        pattern = of_layers(metadata, metadata.count("attention.sliding_window_pattern", period))
    listed = [kinds[bool(windowed) and window is not None] for windowed in pattern]
    return {"sliding_window": window, "layer_types": listed}


def smollm3(metadata: Metadata) -> dict[str, Any]:
    return decoder(metadata, "smollm3", no_rope_layers=[int(rotated) for rotated in of_layers(metadata, 4)])


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
    return decoder(
        metadata, "lfm2", num_key_value_heads=kinds.pop(), block_auto_adjust_ff_dim=False,
        conv_L_cache=metadata.count("shortconv.l_cache"),
        layer_types=["full_attention" if count else "conv" for count in listed],
    )  # fmt: skip


def phi3(metadata: Metadata) -> dict[str, Any]:
    window = metadata.value("attention.sliding_window") or None
    context = metadata.value("rope.scaling.original_context_length") or metadata.count("context_length")
    return decoder(metadata, "phi3", sliding_window=window, original_max_position_embeddings=context)


def stablelm(metadata: Metadata) -> dict[str, Any]:
    bias, parallel = metadata.tensor("blk.0.attn_q.bias"), metadata.value("use_parallel_residual", False)
    return decoder(metadata, "stablelm", use_qkv_bias=bias, use_parallel_residual=parallel)


def gpt_neox(metadata: Metadata) -> dict[str, Any]:
    parallel = metadata.value("use_parallel_residual", True)
    return decoder(metadata, "gpt_neox", use_parallel_residual=parallel, hidden_act="gelu", attention_bias=True)


def gemma2(metadata: Metadata) -> dict[str, Any]:
    words = decoder(
        metadata, "gemma2", hidden_activation=GELU, **windows(metadata, 2),
        attn_logit_softcapping=metadata.real("attn_logit_softcapping", 50.0),
        final_logit_softcapping=metadata.real("final_logit_softcapping", 30.0),
    )  # fmt: skip
    return {**words, "query_pre_attn_scalar": words["head_dim"]}


def granite(metadata: Metadata) -> dict[str, Any]:
    words = decoder(
        metadata, "granite", attention_bias=False, mlp_bias=False, logits_scaling=metadata.real("logit_scale", 1.0),
        embedding_multiplier=metadata.real("embedding_scale", 1.0),
        residual_multiplier=metadata.real("residual_scale", 1.0),
    )  # fmt: skip
    return {**words, "attention_multiplier": metadata.real("attention.scale", words["head_dim"] ** -0.5)}


def gemma3(metadata: Metadata) -> dict[str, Any]:
    """Return the keys of Gemma 3. Every sixth layer attends to all positions, the others to a window, with rotary
    frequencies of their own."""
    words = decoder(
        metadata, "gemma3_text", hidden_activation=GELU, attention_bias=False, final_logit_softcapping=None,
        attn_logit_softcapping=None, **windows(metadata, 6),
    )  # fmt: skip
    if not words["tie_word_embeddings"]:
        raise MerinoError(f"{metadata.file.path} has {HEAD}, supported is a gemma3 whose head is its embedding")
    return {
        **words,
        "query_pre_attn_scalar": words["head_dim"],
        "sliding_window": metadata.count("attention.sliding_window"),
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": metadata.real("rope.freq_base_swa", 1e4)},
            "full_attention": rotary(metadata, 1e6),
        },
    }


def gemma3n(metadata: Metadata) -> dict[str, Any]:
    """Return the keys of Gemma 3n. Its factors of the standard deviation stand for the share of zeros."""
    words = gemma3(metadata)
    factors = metadata.value("activation_sparsity_scale")
    shares = [rounded(NormalDist().cdf(float(factor))) for factor in factors] if factors is not None else None
    del words["query_pre_attn_scalar"], words["attn_logit_softcapping"]
    return {
        **words,
        "model_type": "gemma3n_text",
        "final_logit_softcapping": metadata.real("final_logit_softcapping", 30.0),
        "activation_sparsity_pattern": shares,
        "altup_active_idx": metadata.value("altup.active_idx", 0),
        "altup_num_inputs": metadata.count("altup.num_inputs", 4),
        "hidden_size_per_layer_input": metadata.count("embedding_length_per_layer_input", 256),
        "vocab_size_per_layer_input": metadata.rows("per_layer_token_embd.weight"),
        "laurel_rank": metadata.rows("blk.0.laurel_l.weight"),
        "num_kv_shared_layers": metadata.value("attention.shared_kv_layers", 0),
    }


def ministral3(metadata: Metadata) -> dict[str, Any]:
    words = decoder(metadata, "ministral3", sliding_window=None)
    rope = words["rope_parameters"]
    scale, beta = metadata.value("rope.scaling.yarn_log_multiplier", 1.0), metadata.value("attention.temperature_scale")
    if rope["rope_type"] == "yarn":
        rope |= {"mscale": scale, "mscale_all_dim": scale}
        for key in ("beta_fast", "beta_slow"):
            rope[key] = metadata.value(f"rope.scaling.yarn_{key}")
    return {**words, "rope_parameters": {**rope, "llama_4_scaling_beta": rounded(beta or 0.0)}}


def llama4(metadata: Metadata) -> dict[str, Any]:
    """Return the keys of a Llama 4 without experts. If layers attend within chunks of 8192, every fourth attends to all
    positions and has none."""
    if metadata.value("interleave_moe_layer_step", 1):
        raise MerinoError(f"{metadata.file.path} has experts, supported is a llama4 without them. {CHOOSE}")
    metadata.read.update(("expert_count", "leading_dense_block_count"))
    chunked = metadata.value("attention.sliding_window") != 0
    rotated = of_layers(metadata, 4) if chunked else [True] * metadata.count("block_count")
    words = decoder(metadata, "llama4_text", attention_bias=False, moe_layers=[], use_qk_norm=True)
    return {
        **words,
        "intermediate_size": metadata.count("expert_feed_forward_length", words["intermediate_size_mlp"]),
        "no_rope_layers": [int(turned) for turned in rotated],
        "layer_types": ["chunked_attention" if chunked and turned else "full_attention" for turned in rotated],
        "attn_temperature_tuning": chunked,
    }


def bloom(metadata: Metadata) -> dict[str, Any]:
    width = metadata.count("embedding_length")
    if metadata.count("feed_forward_length", 4 * width) != 4 * width:
        raise MerinoError(f"{metadata.file.path}: the FFN of bloom must be four times as wide as the model")
    return decoder(metadata, "bloom")


def row(kind: str, **more: Any) -> Callable[[Metadata], dict[str, Any]]:
    """Return the function of a family whose further keys are the same in each file."""
    return lambda metadata: decoder(metadata, kind, **more)


ARCHITECTURES: Mapping[str, Callable[[Metadata], dict[str, Any]]] = {
    "llama": llama,
    **dict.fromkeys(("qwen2", "qwen2vl"), row("qwen2", use_sliding_window=False)),
    "qwen3": row("qwen3", attention_bias=False, use_sliding_window=False),
    "ernie4_5": row("ernie4_5", use_bias=False),
    "olmo2": row("olmo2", attention_bias=False),
    "hunyuan-dense": row("hunyuan_v1_dense", attention_bias=False),
    "gemma": row("gemma", hidden_act=GELU),
    "gpt2": row("gpt2", activation_function="gelu_new"),
    "phi2": row("phi", hidden_act="gelu_new"),
    "exaone4": lambda metadata: decoder(metadata, "exaone4", **windows(metadata, 4)),
    "smollm3": smollm3, "phi3": phi3, "stablelm": stablelm, "granite": granite, "lfm2": lfm2, "gemma2": gemma2,
    "gemma3": gemma3, "gemma3n": gemma3n, "mistral3": ministral3, "llama4": llama4, "bloom": bloom, "gptneox": gpt_neox,
}  # fmt: skip
