"""What a decoder is made of, as far as its cost goes: a list of operators, each with exact counts.

Every count of the project (parameters, FLOPs, bytes, predicted times) is a sum or a maximum over such a list, for our
own models and for OPT alike, so one cost code serves all families. Which operators a family has is said in
`architecture` and `opt`; what they cost on a board is said in `design.costs`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

FLOPS_SEQUENCE = 1024  # tokens at which the paper counts FLOPs (recalled)
BYTES_PER_WEIGHT = {"fp32": 4}
KV_BYTES_PER_ELEMENT = 4  # the cache is float32 in both dialects


@dataclass(frozen=True)
class Operator:
    """One operator of the graph. Counts are in elements or multiply-adds, never in bytes.

    Attributes:
        kind: `embed`, `linear`, `head`, `norm`, `activation` or `attention`.
        params: parameters it stores; 0 at a repeated use of shared weights.
        reads: parameters it reads in one decode step, at each use.
        macs: multiply-adds per token that do not depend on the cache.
        width: attention only, heads * head_size: 2 * width elements are cached per token.
        heads: attention only.
        live: elements per token held while it runs: inputs, outputs and the residual beside them.
    """

    kind: str
    params: int = 0
    reads: int = 0
    macs: int = 0
    width: int = 0
    heads: int = 0
    live: int = 0


def linear(inputs: int, outputs: int, *, bias: bool = False, own: bool = True, held: int = 0) -> Operator:
    """A matrix [inputs, outputs]. `own` is False at a repeated use; `held` counts elements that wait beside it."""
    size = inputs * outputs + (outputs if bias else 0)
    return Operator("linear", size if own else 0, size, inputs * outputs, live=inputs + outputs + held)


def norm(width: int, *, affine: int = 1, own: bool = True, held: int = 0) -> Operator:
    """RMSNorm has one parameter per channel (`affine=1`), LayerNorm two."""
    size = affine * width
    return Operator("norm", size if own else 0, size, live=2 * width + held)


def attention(width: int, heads: int, *, held: int = 0) -> Operator:
    return Operator("attention", width=width, heads=heads, live=4 * width + held)


def activation(width: int, *, held: int = 0) -> Operator:
    return Operator("activation", live=2 * width + held)


def embed(rows: int, width: int, *, held: int = 0) -> Operator:
    """A table [rows, width] of which one row is read per token."""
    return Operator("embed", rows * width, width, live=width + held)


def head(width: int, vocab: int) -> Operator:
    """The LM head, tied to the embedding: it stores nothing and reads all of it, for the last position only."""
    return Operator("head", 0, width * vocab, width * vocab)


def params(operators: Iterable[Operator]) -> int:
    return sum(op.params for op in operators)


def weight_bytes(operators: Iterable[Operator], precision: str) -> int:
    """Bytes stored: shared and tied weights once."""
    return params(operators) * BYTES_PER_WEIGHT[precision]


def decode_weight_bytes(operators: Iterable[Operator], precision: str) -> int:
    """Bytes of weights read for one token: shared weights at each use, of the embedding one row and the head."""
    return sum(op.reads for op in operators) * BYTES_PER_WEIGHT[precision]


def kv_bytes(operators: Iterable[Operator], tokens: int) -> int:
    """Bytes of keys and values for `tokens` cached positions."""
    return sum(2 * op.width for op in operators) * tokens * KV_BYTES_PER_ELEMENT


def activation_bytes(operators: Iterable[Operator], tokens: int) -> int:
    """Bytes of float32 tensors alive at the worst operator of a prefill of `tokens`, attention scores included."""
    return max((op.live * tokens + op.heads * tokens * tokens) * 4 for op in operators)


def flops(operators: Iterable[Operator], tokens: int = FLOPS_SEQUENCE) -> int:
    """FLOPs of a forward pass over `tokens`, 2 per multiply-add, the LM head left out (the paper's count, recalled).

    Attention counts the full square of scores, as kernels without a causal shortcut compute it.
    """
    return sum(
        2 * op.macs * tokens + 4 * op.width * tokens * tokens for op in operators if op.kind != "head"
    )


def decode_flops(operators: Iterable[Operator], cached: int = 0) -> int:
    """FLOPs of one decode step after `cached` tokens, the LM head included."""
    return sum(2 * op.macs + 4 * op.width * (cached + 1) for op in operators)
