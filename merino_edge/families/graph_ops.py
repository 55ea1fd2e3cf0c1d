"""The operations that a walk may call. A walk says what a family computes; `GraphOps` says with which ONNX operators.

Values are names of tensors in the graph. Hidden states have shape [1, T, width] for T new tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Weights = Mapping[str, np.ndarray]  # a state dict; matrices are [out, in] as in torch


@dataclass(frozen=True)
class Norm:
    """Parameters of a normalisation: RMSNorm where `bias` is None, else LayerNorm."""

    weight: str
    bias: str | None
    eps: float


@dataclass(frozen=True)
class KvLayer:
    """One cache layer: keys [1, heads, context, head_size], and values of the same shape."""

    index: int
    heads: int
    head_size: int


class GraphOps(Protocol):
    """Weights are named as in the state dict. A weight that is used twice is stored once."""

    def embed(self, table: str) -> str:
        """Rows of `table` [vocab, width] for input_ids; [1, T, width]."""

    def embed_positions(self, table: str, offset: int) -> str:
        """Rows of `table` [rows, width] for position_ids + offset; [1, T, width]."""

    def linear(self, x: str, weight: str, bias: str | None = None) -> str:
        """x [1, T, in] times the transpose of `weight` [out, in], plus `bias` [out]; [1, T, out]."""

    def packed_linear(self, x: str, weights: list[str], biases: list[str] | None = None) -> str:
        """Several matrices with the same input, multiplied as one; [1, T, sum of outputs]."""

    def add(self, x: str, y: str) -> str:
        """Elementwise sum of two tensors of one shape."""

    def norm(self, x: str, norm: Norm) -> str:
        """Over the last axis; the shape of `x`."""

    def add_norm(self, x: str, residual: str, norm: Norm) -> tuple[str, str]:
        """(norm(x + residual), x + residual)."""

    def activation(self, x: str, kind: str) -> str:
        """`gelu` (tanh form) or `relu`, elementwise."""

    def attention(self, qkv: str, layer: KvLayer, rotary_theta: float | None) -> str:
        """Causal attention of packed queries, keys and values [1, T, 3 * width] over cached and new positions.

        Writes the new keys and values into the cache. `rotary_theta`: base of the rotary frequencies; None for a
        family without rotary positions. [1, T, width]
        """

    def last(self, x: str) -> str:
        """The last position only; [1, 1, width]."""

    def head(self, x: str, table: str) -> None:
        """The graph's output: logits [1, 1, vocab] of x [1, 1, width] against the embedding `table` [vocab, width]."""


Walk = Callable[[GraphOps, Any], None]  # Any: the geometry of the walk's own family
