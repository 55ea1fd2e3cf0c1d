"""The operators of a decoder, each with exact counts. A family's geometry lists them.

Parameters, FLOPs, bytes and predicted latencies are sums or maxima over such a list, so one cost code serves all
families.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from merino_runtime.bundle.schema import STATE_COPIES

FLOPS_SEQUENCE = 1024  # tokens for which the paper (MeRino, arXiv 2403.07921) counts FLOPs (recalled)
# Bits of an element of the KV cache, which is float32 by default, in fp16 float16.
KV_BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
# A float32 head is exported in slices of this size: a load packs one at a time, and holds only that one twice.
HEAD_SLICE_BYTES = 16 << 20
FIRST_HASHING = "10.0"  # of TensorRT: earlier versions have neither Mod nor integers of 64 bits
EMBEDDINGS = ("embed", "head", "ngrams")  # kinds of operators whose matrix has an embedding's format
GROUP = 32  # weights of a row with one scale in float16, in int8 and int4


@dataclass(frozen=True)
class WeightFormat:
    """How matrices are stored. Vectors (norms, biases) are float32, in fp16 float16.

    Attributes:
        bits: per weight of a matrix.
        embedding_bits: per weight of the embedding, which is the head too and loses more accuracy with fewer bits.
        grouped: whether weights are quantized in groups of GROUP.
        element_bytes: per element of vectors.
    """

    bits: int
    embedding_bits: int
    grouped: bool
    element_bytes: int = 4


FORMATS = {
    "fp32": WeightFormat(32, 32, False),
    "fp16": WeightFormat(16, 16, False, element_bytes=2),
    "int8": WeightFormat(8, 8, True),
    "int4": WeightFormat(4, 8, True),
}
FUSED_HEAD_MULTIPLE = 8  # channels of a head in ONNX Runtime's fused attention; twice that with rotary positions
LEAST_GROUP = 3  # query heads on a KV head, from which on this project's attention by groups is faster
CPU_FORMATS = ("fp32", "int8", "int4")  # fp16 is for GPUs: CPUs without float16 arithmetic convert to float32


def runs_on_kernels(dialect: str, precision: str) -> bool:
    """Return whether matmuls, attention and taps of such a graph are this project's kernels. Graphs in floats run in
    any program."""
    return dialect == "fused" and FORMATS[precision].grouped


def by_groups(heads: int, kv_heads: int, kv_bits: int) -> bool:
    """Return whether this project's kernels compute such an attention: any over an int8 cache, one over a float32 cache
    from LEAST_GROUP query heads per KV head on."""
    return kv_bits == KV_BITS["int8"] or (heads >= LEAST_GROUP * kv_heads and kv_bits != KV_BITS["int4"])


@dataclass(frozen=True)
class Operator:
    """One operator of the graph. Counts are in elements or multiply-adds, never in bytes.

    Attributes:
        kind: `embed`, `linear`, `head`, `norm`, `activation`, `attention`; `taps`, `ids` (the cached ids that n-grams
            are hashed from), `slots` (the cache's slots that these two use), `ngrams` (a table), or `delta` (the
            convolution and recurrence of gated DeltaNet).
        matrix: elements of its matrix or embedding, which a weight format may compress.
        vector: elements of its vectors (a norm's, a bias), float32 in each format.
        columns: length of the matrix's rows.
        own: whether it stores its weights. False at a repeated use of shared weights, and for a tied head.
        row_only: whether a decode step reads one row of the embedding only.
        macs: multiply-adds per token, without those over cached positions.
        width: KV heads * head size of attention; half of the cached channels of `taps` and `ids`. 2 * width elements
            are cached per token; 0 for attention that reads another layer's cache.
        query_width: attention only, query heads * head size. Its two matmuls take 2 * query_width multiply-adds
            per pair of positions. More than `width` where several query heads share a KV head.
        heads: attention only, query heads.
        state: `delta` only, elements of its recurrent state, float32 of each sequence.
        live: elements per token in memory while it runs: inputs, outputs and the residual.
        vectors: of norm, activation and taps, elements per token.
        final: whether it computes the last position only, as all operators behind the last attention do.
        reread: for a repeated use of shared weights, the elements of all matrices that were read since the use before;
            else 0. The weights are still in the CPU's cache if it holds so many.
    """

    kind: str
    matrix: int = 0
    vector: int = 0
    columns: int = 1
    own: bool = True
    row_only: bool = False
    macs: int = 0
    width: int = 0
    query_width: int = 0
    heads: int = 0
    state: int = 0
    live: int = 0
    vectors: int = 0
    final: bool = False
    reread: int = 0

    def stored_bytes(self, precision: str) -> float:
        """Return bytes of its weights, scales included, whether `own` or not."""
        return self.matrix * self.bytes_per_weight(precision) + FORMATS[precision].element_bytes * self.vector

    def read_bytes(self, precision: str) -> float:
        """Return bytes of weights that one decode step reads here."""
        elements = self.columns if self.row_only else self.matrix
        return elements * self.bytes_per_weight(precision) + FORMATS[precision].element_bytes * self.vector

    def bytes_per_weight(self, precision: str) -> float:
        """Return the bytes per weight of its matrix, scales included."""
        form = FORMATS[precision]
        bits = form.embedding_bits if self.kind in EMBEDDINGS else form.bits
        return bits / 8 + (2 / GROUP if form.grouped else 0)


def caches_inputs(operators: Iterable[Operator]) -> bool:
    """Return whether a decoder's cache holds more than keys and values: inputs of convolutions, or ids."""
    return any(op.kind == SLOTS.kind for op in operators)


def has_states(operators: Iterable[Operator]) -> bool:
    """Return whether a decoder has recurrent states beside its KV cache."""
    return any(op.state for op in operators)


def hashes_ids(operators: Iterable[Operator]) -> bool:
    """Return whether a decoder reads tables of hashed n-grams."""
    return any(op.kind == "ngrams" for op in operators)


SLOTS = Operator("slots", live=1)  # of a decoder whose cache holds inputs besides keys and values


def linear(
    inputs: int, outputs: int, *, bias: bool = False, own: bool = True, also_live: int = 0, final: bool = False
) -> Operator:
    """Return a matrix [outputs, inputs]. `also_live`: elements per token in memory besides its input and output."""
    size = inputs * outputs
    vector = outputs if bias else 0
    return Operator("linear", size, vector, inputs, own, macs=size, live=inputs + outputs + also_live, final=final)


def norm(width: int, *, affine: int = 1, own: bool = True, also_live: int = 0, final: bool = False) -> Operator:
    """RMSNorm has one parameter per channel (`affine=1`), LayerNorm two."""
    return Operator("norm", vector=affine * width, own=own, live=2 * width + also_live, vectors=width, final=final)


def attention(width: int, heads: int, *, kv_width: int | None = None, also_live: int = 0) -> Operator:
    """Queries of `width` = heads * head_size; keys and values as wide, or of `kv_width` each."""
    cached = width if kv_width is None else kv_width
    live = 2 * width + 2 * cached + also_live
    return Operator("attention", width=cached, query_width=width, heads=heads, live=live)


def activation(width: int, *, also_live: int = 0, final: bool = False) -> Operator:
    return Operator("activation", live=2 * width + also_live, vectors=width, final=final)


def taps(width: int, count: int, *, also_live: int = 0, final: bool = False) -> Operator:
    """Return a causal convolution of `count` taps for each channel, whose input is cached."""
    live = (4 + 2 * count) * width + also_live
    return Operator("taps", vector=count * width, width=width // 2, live=live, vectors=count * width, final=final)


def convolution(width: int, count: int, *, final: bool = False) -> Iterator[Operator]:
    """Yield a gated short convolution (LFM2, arXiv 2511.23404): in-projection, gated taps, output."""
    yield linear(width, 3 * width, also_live=width)
    yield taps(width, count, also_live=3 * width)
    yield linear(width, width, also_live=width, final=final)


class DeltaSizes(NamedTuple):
    """Heads of gated DeltaNet, and channels of each. `inputs`: channels of its convolution."""

    key_heads: int
    value_heads: int
    key_size: int
    value_size: int

    @property
    def inputs(self) -> int:
        return 2 * self.key_heads * self.key_size + self.values

    @property
    def values(self) -> int:
        return self.value_heads * self.value_size


def delta_net(width: int, sizes: DeltaSizes, taps: int, *, final: bool = False) -> Iterator[Operator]:
    """Yield gated DeltaNet (arXiv 2412.06464): in-projection, convolution, recurrence, norm with gate, output."""
    heads, inputs, values = sizes.value_heads, sizes.inputs, sizes.values
    pairs = heads * sizes.key_size * sizes.value_size
    packed = inputs + values + 2 * heads
    yield linear(width, packed, also_live=width)
    yield Operator(
        "delta", vector=taps * inputs + 2 * heads + sizes.value_size, macs=3 * pairs, state=pairs + (taps - 1) * inputs,
        live=packed + 3 * inputs + width, vectors=taps * inputs + 3 * values,
    )  # fmt: skip
    yield linear(values, width, also_live=width, final=final)


def ngrams(rows: int, width: int) -> Operator:
    """Return a table of hashed n-grams; one row is read per token."""
    return replace(embed(rows, width, also_live=width), kind="ngrams")


def embed(rows: int, width: int, *, also_live: int = 0) -> Operator:
    """Return an embedding [rows, width]; one row is read per token."""
    return Operator("embed", rows * width, columns=width, row_only=True, live=width + also_live)


def head(width: int, vocab: int, *, own: bool = False, bias: bool = False) -> Operator:
    """Return the LM head, for the last position only. Tied to the embedding (not `own`), it stores no matrix."""
    return Operator("head", width * vocab, vocab if bias else 0, width, own, macs=width * vocab)


def packed_bytes(head_bytes: float, form: str) -> float:
    """Return bytes of the head that a backend prepacks at one time: in fp32 one slice, else the whole matrix."""
    return min(head_bytes, HEAD_SLICE_BYTES) if form == "fp32" else head_bytes


def params(operators: Iterable[Operator]) -> int:
    return sum(op.matrix + op.vector for op in operators if op.own)


def weight_bytes(operators: Iterable[Operator], precision: str) -> int:
    """Return bytes stored; shared and tied weights count once."""
    return round(sum(op.stored_bytes(precision) for op in operators if op.own))


def decode_weight_bytes(operators: Iterable[Operator], precision: str) -> int:
    """Return bytes of weights that one decode step reads: shared weights at each use, one row of the embedding, the
    head."""
    return round(sum(op.read_bytes(precision) for op in operators))


def kv_format(precision: str, kv: str | None = None) -> str:
    """Return the format of keys and values, a name in KV_BITS: `kv`, else the activations' format."""
    return kv or ("fp16" if precision == "fp16" else "fp32")


def kv_bytes(operators: Iterable[Operator], tokens: int, precision: str = "fp32", kv: str | None = None) -> int:
    """Return bytes of keys and values for `tokens` cached positions, and of all copies of recurrent states. `kv`: see
    `kv_format`."""
    ops = list(operators)
    cached = sum(2 * op.width for op in ops) * tokens * KV_BITS[kv_format(precision, kv)] // 8
    return cached + STATE_COPIES * 4 * sum(op.state for op in ops)


def activation_bytes(operators: Iterable[Operator], tokens: int, total: int | None = None) -> int:
    """Peak bytes of float32 tensors in a prefill of `tokens`, over its operators, attention scores included.

    `total`: positions that each token attends to; more than `tokens` in a later piece of a long prompt.
    """
    seen = tokens if total is None else total
    return max((op.live * tokens + op.heads * tokens * seen) * 4 for op in operators)


def flops(operators: Iterable[Operator], tokens: int = FLOPS_SEQUENCE) -> int:
    """FLOPs of a forward pass over `tokens`, 2 per multiply-add, without the LM head (the paper's count, recalled).

    Attention counts the full square of scores: kernels that do not use the causal mask compute all of it.
    """
    return sum(2 * op.macs * tokens + 4 * op.query_width * tokens * tokens for op in operators if op.kind != "head")


def decode_flops(operators: Iterable[Operator], cached: int = 0) -> int:
    """FLOPs of one decode step after `cached` tokens, the LM head included."""
    return sum(2 * op.macs + 4 * op.query_width * (cached + 1) for op in operators)


def head_flops(operators: Iterable[Operator]) -> int:
    """FLOPs of the LM head for one position."""
    return sum(2 * op.macs for op in operators if op.kind == "head")
