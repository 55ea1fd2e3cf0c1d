"""The operations a walk may call. A walk says what a model family computes; a dialect says with which ONNX operators.

Values are names of tensors in the graph. Hidden states have shape [1, T, width] throughout.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Weights = Mapping[str, np.ndarray]  # a state dict: matrices are [out, in], as torch has them


@dataclass(frozen=True)
class Norm:
    """Parameters of a normalisation: RMSNorm where `bias` is None, LayerNorm otherwise."""

    weight: str
    bias: str | None
    eps: float


@dataclass(frozen=True)
class KvLayer:
    """One cache layer: [1, heads, context, head_size] for keys and the same for values."""

    index: int
    heads: int
    head_size: int


class Dialect(Protocol):
    """Weights are named as in the state dict; a name used twice is stored once."""

    def embed(self, table: str) -> str:
        """Rows of `table` [vocab, width] for input_ids; [1, T, width]."""

    def embed_positions(self, table: str, offset: int) -> str:
        """Rows of `table` for position_ids + offset; [1, T, width]."""

    def linear(self, x: str, weight: str, bias: str | None = None) -> str: ...

    def packed_linear(self, x: str, weights: list[str], biases: list[str] | None = None) -> str:
        """Several matrices of one input as one; [1, T, sum of outputs]."""

    def add(self, x: str, y: str) -> str: ...

    def norm(self, x: str, norm: Norm) -> str: ...

    def add_norm(self, x: str, residual: str, norm: Norm) -> tuple[str, str]:
        """(norm(x + residual), x + residual)."""

    def activation(self, x: str, kind: str) -> str:
        """`gelu` (tanh form) or `relu`."""

    def attention(self, qkv: str, layer: KvLayer, rotary_theta: float | None) -> str:
        """Causal attention over cache and new tokens of packed [1, T, 3 * width]; updates the cache; [1, T, width]."""

    def last(self, x: str) -> str:
        """The last position only; [1, 1, width]."""

    def head(self, x: str, table: str) -> None:
        """Logits [1, 1, vocab] of x [1, 1, width] against the embedding, which is not stored again."""


Walk = Callable[[Dialect], None]
