"""The attention of dialect `fused`: by ONNX Runtime's operator, or by this project's, which computes all query heads
that share a KV head at once (docs/decisions/kernels.md).

Both operators write new keys and values in place: past and present of a layer are one buffer, which the runtime binds
to both, so that the cache is never copied.
"""

import numpy as np
from onnx import TensorProto

from merino_edge.export.dialects.graph import KERNELS_DOMAIN, ports
from merino_edge.export.dialects.matmuls import CONTRIB
from merino_edge.export.dialects.operations import Operations
from merino_edge.families.graph_ops import Attention, KvLayer, Norm
from merino_edge.families.operators import FUSED_HEAD_MULTIPLE
from merino_runtime.bundle import FIRST_QUANTIZED_CACHE
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.errors import MerinoError

# The oldest ONNX Runtime whose attention has an option. Before 1.24 it keeps a position more than the window has.
SOFTCAP_VERSION, BIAS_VERSION, WINDOW_VERSION, SHARED_VERSION = "1.21", "1.22", "1.24", "1.26"


def group_query_attention(graph: Operations, qkv: str, layer: KvLayer, attention: Attention) -> str:
    """Write attention by ONNX Runtime's operator."""
    parts = normed_parts(graph, qkv, layer, attention) or [qkv, "", ""]
    pasts, presents = ports("past_key_values", layer), ports("present", layer)
    mixed = f"attention.{layer.index}"
    if attention.shared:  # no new keys and values; the cache has those of this run already
        pasts, presents, mixed = presents, ("", ""), graph.unnamed("attention")
        graph.oldest = max(graph.oldest, SHARED_VERSION, key=version_tuple)
    rotary = None if attention.norm_rotated else attention.rotary
    tables = graph.rotary_constants(rotary, layer.head_size) if rotary else ("", "")
    options: dict[str, int | float | str] = {}
    if attention.softcap:
        options["softcap"] = attention.softcap
        graph.oldest = max(graph.oldest, SOFTCAP_VERSION, key=version_tuple)
    if attention.scale != layer.head_size**-0.5:
        options["scale"] = attention.scale
    if window := window_of(graph, attention):
        options["local_window_size"] = window
        graph.oldest = max(graph.oldest, WINDOW_VERSION, key=version_tuple)
    more = ["", biases(graph, attention.slopes)] if attention.slopes else []  # position_ids and attention_bias
    if graph.cache_scales:
        more = [*(more or ["", ""]), "", *cache_scales(graph, layer)]  # head_sink
        options |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        options["kv_cache_bit_width"] = graph.cache_scales.bits
        graph.oldest = max(graph.oldest, FIRST_QUANTIZED_CACHE, key=version_tuple)
    graph.node_into(
        "GroupQueryAttention",
        [*parts, *pasts, graph.last_index, graph.total_length, *tables, *more],
        [mixed, *presents],
        domain=CONTRIB, num_heads=attention.heads, kv_num_heads=layer.heads,
        do_rotary=int(rotary is not None), **options,
    )  # fmt: skip
    return mixed


def biases(graph: Operations, slopes: tuple[float, ...]) -> str:
    """Return what ALiBi adds to the scores, [1, heads, T, total]: of each head its slope times the key's position."""

    def make() -> str:
        graph.oldest = max(graph.oldest, BIAS_VERSION, key=version_tuple)
        total = graph.node("Cast", [graph.total_length], to=TensorProto.INT64)
        keys = graph.node("Range", [graph.integer(0), total, graph.integer(1)])
        factors = graph.constant("slopes", np.array(slopes, graph.real)[None, :, None, None])
        by_key = graph.node("Mul", [graph.to_real(keys), factors])  # [1, heads, 1, total]
        length = graph.node("Shape", ["input_ids"], start=1, end=2)
        shape = graph.node("Concat", [graph.integers(1, len(slopes)), length, graph.integers(1)], axis=0)
        return graph.node("Expand", [by_key, shape])

    return graph.once(("biases", slopes), make)


def group_attention(graph: Operations, qkv: str, layer: KvLayer, attention: Attention) -> str:
    """Write attention by this project's operator."""
    parts = normed_parts(graph, qkv, layer, attention)
    if parts:
        qkv = graph.node("Concat", parts, axis=-1)
    none = graph.constant("no_angles", np.zeros(1, np.float32))
    rotary = None if attention.norm_rotated else attention.rotary
    angles = graph.rotary_constants(rotary, layer.head_size) if rotary else (none, none)
    mixed = f"attention.{layer.index}"
    graph.node_into(
        "GroupAttention8" if graph.cache_scales else "GroupAttention",
        [qkv, *ports("past_key_values", layer), graph.last_index, *angles, *cache_scales(graph, layer)],
        [mixed, *ports("present", layer)],
        domain=KERNELS_DOMAIN, heads=attention.heads, kv_heads=layer.heads, window=window_of(graph, attention),
        rotary=int(rotary is not None), scale=float(attention.scale),
    )  # fmt: skip
    return mixed


def window_of(graph: Operations, attention: Attention) -> int:
    """Return the length of the attention window; 0 if there is none, or if the cache is no longer than the window."""
    return attention.window if attention.window and attention.window < graph.context else 0


def cache_scales(graph: Operations, layer: KvLayer) -> list[str]:
    """Store the scales of keys and values [1, heads, 1, head_size]; return no names for a cache of floats."""
    if graph.cache_scales is None:
        return []
    names = [f"{name}_scale" for name in ports("cache", layer)]
    scales = graph.cache_scales.layers[layer.index]
    return [graph.constant(name, one[None, :, None]) for name, one in zip(names, scales, strict=True)]


def normed_parts(graph: Operations, qkv: str, layer: KvLayer, attention: Attention) -> list[str]:
    """Split packed queries, keys and values, and normalize each head of the first two. Return queries [B, T, heads *
    head_size], and keys and values [B, T, layer.heads * head_size]; an empty list if the model has no such norms."""
    if not attention.query_norm or not attention.key_norm:
        return []
    size = layer.head_size
    sizes = [heads * size for heads in (attention.heads, layer.heads, layer.heads)]

    def normed(x: str, heads: int, norm: Norm) -> str:
        if attention.norm_whole:
            return graph.norm(x, norm)
        if attention.norm_rotated and attention.rotary:
            tables = graph.rotary_constants(attention.rotary, size)
            x = graph.node("RotaryEmbedding", [x, new_positions(graph), *tables], domain=CONTRIB)
        split = graph.node("Reshape", [x, graph.integers(0, -1, heads, size)])
        return graph.node("Reshape", [graph.norm(split, norm), graph.integers(0, -1, heads * size)])

    if attention.shared:
        none = [graph.integers(0, 0), graph.integers(0, sizes[1]), graph.integers(1, 2)]
        empty = graph.node("Slice", [qkv, *none])  # [B, 0, layer.heads * head_size]
        return [normed(qkv, attention.heads, attention.query_norm), empty, empty]
    query, key, value = graph.split(qkv, sizes)
    return [
        normed(query, attention.heads, attention.query_norm),
        normed(key, layer.heads, attention.key_norm),
        normed(value, layer.heads, attention.value_norm) if attention.value_norm else value,
    ]


def new_positions(graph: Operations) -> str:
    """Return the positions of the new tokens, int64 [B, T]."""

    def make() -> str:
        length = graph.node("Squeeze", [graph.node("Shape", ["input_ids"], start=1, end=2), graph.integers(0)])
        back = graph.node("Range", [graph.node("Sub", [graph.integer(1), length]), graph.integer(1), graph.integer(1)])
        last = graph.node("Cast", [graph.last_index], to=TensorProto.INT64)
        return graph.node("Add", [graph.node("Unsqueeze", [last, graph.integers(1)]), back])

    return graph.once("new positions", make)


def check_heads(layer: KvLayer, attention: Attention) -> None:
    """Raises MerinoError for heads that ONNX Runtime's attention refuses when it runs."""
    multiple = FUSED_HEAD_MULTIPLE * (2 if attention.rotary else 1)
    if layer.head_size % multiple:
        raise MerinoError(
            f"heads of {layer.head_size} channels are not possible in dialect fused, because ONNX Runtime's attention"
            f" takes multiples of {multiple}{' with rotary positions' if attention.rotary else ''}: export with"
            " --dialect portable"
        )
