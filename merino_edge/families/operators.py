"""What a decoder is made of, as far as its cost goes: a list of operators, each with exact counts.

Every count of the project (parameters, FLOPs, bytes, predicted times) is a sum or a maximum over such a list, for our
own models and for OPT alike, so one cost code serves all families. Which operators a family has is said in
`architecture` and `opt`; what they cost on a board is said in `design.costs`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

FLOPS_SEQUENCE = 1024  # tokens at which the paper counts FLOPs (recalled)
KV_BYTES_PER_ELEMENT = 4  # the cache is float32 in each format but fp16
HEAD_SLICE_BYTES = 16 << 20  # of a float32 head as it is exported: a load holds so much of it twice at a time
BLOCKS = (128, 64, 32)  # of block quantisation, largest first: fewer scales to read, so faster


@dataclass(frozen=True)
class WeightFormat:
    """How matrices are stored; vectors (norms, biases) and the cache are float32, but for fp16.

    `bits` per weight of a matrix, `table_bits` of the embedding, which is the head too and bears less; where
    `blocked`, one float32 scale for each block of columns comes on top. `element_bytes`: of vectors and the cache.
    """

    bits: int
    table_bits: int
    blocked: bool
    element_bytes: int = 4


FORMATS = {
    "fp32": WeightFormat(32, 32, False),
    "fp16": WeightFormat(16, 16, False, element_bytes=2),
    "int8": WeightFormat(8, 8, True),
    "int4": WeightFormat(4, 8, True),
}
CPU_FORMATS = ("fp32", "int8", "int4")  # fp16 is for GPUs: CPUs without its arithmetic bring it to float32
FAST_ISA = {"fp32": [], "fp16": [], "int8": ["avx2", "dotprod"], "int4": ["avx2", "dotprod"]}  # int8 products need them


@dataclass(frozen=True)
class Operator:
    """One operator of the graph. Counts are in elements or multiply-adds, never in bytes.

    Attributes:
        kind: `embed`, `linear`, `head`, `norm`, `activation` or `attention`.
        matrix: elements of its matrix or table, which a weight format may compress.
        vector: elements of its vectors (a norm's, a bias), float32 in each format.
        columns: length of the matrix's rows, along which blocks are cut.
        own: whether it stores them; not at a repeated use of shared weights, and not for a tied head.
        row_only: whether a decode step reads one row of the table and not all of it.
        macs: multiply-adds per token that do not depend on the cache.
        width: attention only, heads of keys and values * head_size: 2 * width elements are cached per token.
        query_width: attention only, heads * head_size: the two products take 2 * query_width multiply-adds for each
            pair of positions. More than `width` where several heads share keys and values.
        heads: attention only.
        live: elements per token held while it runs: inputs, outputs and the residual beside them.
        vectors: norm and activation only, elements per token that it works on.
        final: whether it sees the last position only: what follows the last attention of a decoder.
        reread: elements of matrices that were read since this matrix was read before, in the same step; 0 where it
            was not. A repeated use of shared weights finds them in the cache where so many fit.
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
    live: int = 0
    vectors: int = 0
    final: bool = False
    reread: int = 0

    def stored_bytes(self, precision: str) -> float:
        """Bytes of its weights, scales included, whether it stores them or not."""
        return self.matrix * self.bytes_per_weight(precision) + FORMATS[precision].element_bytes * self.vector

    def read_bytes(self, precision: str) -> float:
        """Bytes of weights that one decode step reads here."""
        elements = self.columns if self.row_only else self.matrix
        return elements * self.bytes_per_weight(precision) + FORMATS[precision].element_bytes * self.vector

    def bytes_per_weight(self, precision: str) -> float:
        """Of its matrix, the scales of the largest possible block included."""
        form = FORMATS[precision]
        bits = form.table_bits if self.kind in ("embed", "head") else form.bits
        return bits / 8 + (4 / (largest_block(self.columns) or self.columns) if form.blocked else 0)


def largest_block(columns: int) -> int | None:
    """The largest block that divides a row of `columns`; None where none does."""
    return next((block for block in BLOCKS if columns % block == 0), None)


def linear(
    inputs: int, outputs: int, *, bias: bool = False, own: bool = True, held: int = 0, final: bool = False
) -> Operator:
    """A matrix of `outputs` rows and `inputs` columns; `held` counts elements that wait beside it."""
    size = inputs * outputs
    vector = outputs if bias else 0
    return Operator("linear", size, vector, inputs, own, macs=size, live=inputs + outputs + held, final=final)


def norm(width: int, *, affine: int = 1, own: bool = True, held: int = 0, final: bool = False) -> Operator:
    """RMSNorm has one parameter per channel (`affine=1`), LayerNorm two."""
    return Operator("norm", vector=affine * width, own=own, live=2 * width + held, vectors=width, final=final)


def attention(width: int, heads: int, *, kv_width: int | None = None, held: int = 0) -> Operator:
    """Queries of `width` = heads * head_size; keys and values as wide, or of `kv_width` each."""
    cached = width if kv_width is None else kv_width
    live = 2 * width + 2 * cached + held
    return Operator("attention", width=cached, query_width=width, heads=heads, live=live)


def activation(width: int, *, held: int = 0, final: bool = False) -> Operator:
    return Operator("activation", live=2 * width + held, vectors=width, final=final)


def embed(rows: int, width: int, *, held: int = 0) -> Operator:
    """A table [rows, width] of which one row is read per token."""
    return Operator("embed", rows * width, columns=width, row_only=True, live=width + held)


def head(width: int, vocab: int, *, own: bool = False) -> Operator:
    """The LM head, for the last position only; tied to the embedding (not `own`) it stores nothing and reads all."""
    return Operator("head", width * vocab, columns=width, own=own, macs=width * vocab)


def packed_bytes(table_bytes: float, form: str) -> float:
    """Of a table that is the head too, what a backend packs at once: in fp32 one slice of it."""
    return min(table_bytes, HEAD_SLICE_BYTES) if form == "fp32" else table_bytes


def params(operators: Iterable[Operator]) -> int:
    return sum(op.matrix + op.vector for op in operators if op.own)


def weight_bytes(operators: Iterable[Operator], precision: str) -> int:
    """Bytes stored: shared and tied weights once."""
    return round(sum(op.stored_bytes(precision) for op in operators if op.own))


def decode_weight_bytes(operators: Iterable[Operator], precision: str) -> int:
    """Bytes of weights read for one token: shared weights at each use, of the embedding one row and the head."""
    return round(sum(op.read_bytes(precision) for op in operators))


def kv_bytes(operators: Iterable[Operator], tokens: int, precision: str = "fp32") -> int:
    """Bytes of keys and values for `tokens` cached positions."""
    return sum(2 * op.width for op in operators) * tokens * FORMATS[precision].element_bytes


def activation_bytes(operators: Iterable[Operator], tokens: int, total: int | None = None) -> int:
    """Bytes of float32 tensors alive at the worst operator of a prefill of `tokens`, attention scores included.

    `total`: positions that each token looks at, where the prefill is the last piece of a longer prompt.
    """
    seen = tokens if total is None else total
    return max((op.live * tokens + op.heads * tokens * seen) * 4 for op in operators)


def flops(operators: Iterable[Operator], tokens: int = FLOPS_SEQUENCE) -> int:
    """FLOPs of a forward pass over `tokens`, 2 per multiply-add, the LM head left out (the paper's count, recalled).

    Attention counts the full square of scores, as kernels without a causal shortcut compute it.
    """
    return sum(
        2 * op.macs * tokens + 4 * op.query_width * tokens * tokens for op in operators if op.kind != "head"
    )


def decode_flops(operators: Iterable[Operator], cached: int = 0) -> int:
    """FLOPs of one decode step after `cached` tokens, the LM head included."""
    return sum(2 * op.macs + 4 * op.query_width * (cached + 1) for op in operators)


def head_flops(operators: Iterable[Operator]) -> int:
    """FLOPs of the LM head for one position."""
    return sum(2 * op.macs for op in operators if op.kind == "head")
