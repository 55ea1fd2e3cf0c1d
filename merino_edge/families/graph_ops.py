"""The operations that a graph builder may call. A family's graph builder defines the computation, an implementation of
`GraphOps` the ONNX operators.

Values are names of tensors in the graph. Hidden states have shape [1, T, width] for T new tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from merino_edge.families.operators import DeltaSizes
from merino_edge.families.rotary import Rotary

Weights = Mapping[str, np.ndarray]  # a state dict; matrices are [out, in] as in torch


@dataclass(frozen=True)
class Norm:
    """Parameters of a normalization: RMSNorm if `bias` is None, else LayerNorm. `width`: of a norm without a weight,
    whose name is then empty."""

    weight: str
    bias: str | None
    eps: float
    width: int = 0


@dataclass(frozen=True)
class KvLayer:
    """One cache layer: keys [1, heads, context, head_size], and values of the same shape."""

    index: int
    heads: int
    head_size: int


@dataclass(frozen=True)
class Attention:
    """The computation of an attention.

    Attributes:
        heads: query heads, a multiple of the cache's KV heads; `heads / KV heads` in a row share one.
        scale: factor of the attention scores.
        rotary: positions by rotation; None for a family without.
        window: positions that a query sees, its own included; None for all before it.
        query_norm, key_norm: RMSNorm of queries and keys, of each head before it is rotated.
        norm_whole: whether these norms are over all heads together.
        norm_rotated: whether these norms stand behind the rotation.
        value_norm: of the values of each head.
        shared: whether it reads keys and values that an earlier layer has written, and has queries alone.
        softcap: the largest score; scores become softcap * tanh(score / softcap).
        gated: whether a gate follows the queries in the packed matrix; its sigmoid multiplies the result.
        slopes: of each head, what a score gains per position of its key (ALiBi, arXiv 2108.12409).
    """

    heads: int
    scale: float
    rotary: Rotary | None = None
    window: int | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    norm_whole: bool = False
    norm_rotated: bool = False
    value_norm: Norm | None = None
    shared: bool = False
    softcap: float | None = None
    slopes: tuple[float, ...] | None = None
    gated: bool = False

    @property
    def in_kernels(self) -> bool:
        """Return whether this project's operators compute it in quantized graphs; else ONNX Runtime's does."""
        return self.softcap is None and self.slopes is None and not self.shared


@dataclass(frozen=True)
class Delta:
    """Gated DeltaNet: the recurrence of a state [value_heads, key_size, value_size].

    Attributes:
        index: of its states.
        taps: weight [channels, 1, taps] of the causal convolution of queries, keys and values, with SiLU behind it.
        decay, step: weights [value_heads]; the logarithm of a decay is `decay` * softplus(input + `step`).
        norm: of each head of the result.
    """

    index: int
    key_heads: int
    value_heads: int
    key_size: int
    value_size: int
    taps: str
    decay: str
    step: str
    norm: Norm

    @property
    def sizes(self) -> DeltaSizes:
        return DeltaSizes(self.key_heads, self.value_heads, self.key_size, self.value_size)


class GraphOps(Protocol):
    """Weights are named as in the state dict. A weight that is used twice is stored once."""

    def embed(self, table: str, below: int | None = None) -> str:
        """Return rows of `table` [vocab, width] for input_ids; [1, T, width]. Ids from `below` on take row 0."""

    def embed_positions(self, table: str, offset: int) -> str:
        """Return rows of `table` [rows, width] for position_ids + offset; [1, T, width]."""

    def linear(self, x: str, weight: str, bias: str | None = None) -> str:
        """x [1, T, in] times the transpose of `weight` [out, in], plus `bias` [out]; [1, T, out]."""

    def packed_linear(self, x: str, weights: list[str], biases: list[str] | None = None) -> str:
        """Several matrices with the same input, multiplied as one; [1, T, sum of outputs]."""

    def float_linear(self, x: str, weight: str) -> str:
        """As `linear`, for a small matrix that is a float in each format."""

    def add(self, x: str, y: str) -> str:
        """Elementwise sum of two tensors of one shape."""

    def multiply(self, x: str, y: str) -> str:
        """Elementwise product of two tensors; an axis of 1 fits any other."""

    def divide(self, x: str, y: str) -> str:
        """Elementwise quotient, as `multiply`."""

    def weigh(self, x: str, weight: str) -> str:
        """x [1, T, width] times a vector of weights [width]."""

    def shift(self, x: str, amount: float) -> str:
        """x plus a constant."""

    def centered(self, x: str) -> str:
        """x minus its mean over the last axis."""

    def rms(self, x: str, least: float = 0.0) -> str:
        """Return the root of the mean square over the last axis; [1, T, 1]. `least`: the least mean square."""

    def split(self, x: str, sizes: list[int]) -> list[str]:
        """Return parts of the channels."""

    def concat(self, parts: list[str]) -> str:
        """Join channels."""

    def mix(self, x: str, factors: str, count: int) -> str:
        """x of `count` streams [1, T, count * width], times factors [1, T, n * count]; n streams [1, T, n * width]."""

    def resize(self, x: str, width: int, following: int) -> str:
        """x [1, T, width] with zeros for new channels or without its last ones; [1, T, following]."""

    def scale(self, x: str, factor: float) -> str:
        """x times a constant."""

    def norm(self, x: str, norm: Norm) -> str:
        """Over the last axis; the shape of `x`."""

    def add_norm(self, x: str, residual: str, norm: Norm) -> tuple[str, str]:
        """Return (norm(x + residual), x + residual)."""

    def activation(self, x: str, kind: str) -> str:
        """Apply `gelu` (tanh form), `gelu_erf`, `silu`, `relu` or `tanh`, elementwise."""

    def gated(self, x: str, kind: str) -> str:
        """Return the activation of the first half of the channels times the second half; [1, T, 2 * n] -> [1, T, n]."""

    def attention(self, qkv: str, layer: KvLayer, attention: Attention) -> str:
        """Causal attention of packed queries, keys and values over cached and new positions.

        qkv is [1, T, (heads + 2 * layer.heads) * head_size], queries alone if the attention is `shared`; [1, T, heads *
        head_size]. Writes the new keys and values into the cache.
        """

    def taps(self, x: str, weight: str, layer: KvLayer) -> str:
        """Weigh each channel of x [1, T, width] and of the positions before it by `weight` [taps, 1, width], that of
        the position itself last. Writes x into the cache: a layer of one head, whose key is the first half of the
        channels and whose value is the second."""

    def gated_taps(self, x: str, weight: str, layer: KvLayer) -> str:
        """Return b * taps(a * c) of x [1, T, 3 * width], which holds a, b and c; [1, T, width]."""

    def delta(self, x: str, delta: Delta) -> str:
        """Return gated DeltaNet of x [1, T, channels], which holds queries, keys and values, the gate of the result,
        and of each value head the rate of update and the decay; [1, T, value_heads * value_size]."""

    def ngrams(self, tables: Mapping[str, Any], layer: KvLayer, vocab: int) -> str:
        """Return the sum of the rows of all tables [rows, width] for input_ids; [1, T, width].

        `tables`: the n-grams of each table (`designed.Ngrams`), by the table's name. `layer`: caches the ids.
        """

    def last(self, x: str) -> str:
        """Return the last position only; [1, 1, width]. All of them in a graph that returns the logits of all."""

    def head(self, x: str, table: str, bias: str | None = None, softcap: float | None = None) -> None:
        """The graph's output: logits [1, 1, vocab] of x [1, 1, width] against `table` [vocab, width], which is the
        embedding or a matrix of its own. `softcap`: the largest logit, as in `Attention`."""


class MatrixNames:
    """Operations that write nothing, and list the matrices that a graph builder reads.

    Attributes:
        read: in their order, (the names of matrices with one input, whether it is a table of embeddings or the head).
        floats: the small matrices that are floats in each format.
    """

    def __init__(self) -> None:
        self.read: list[tuple[tuple[str, ...], bool]] = []
        self.floats: list[str] = []

    def embed(self, table: str, *_: Any) -> str:
        self.read.append(((table,), True))
        return ""

    embed_positions = embed

    def head(self, x: str, table: str, *_: Any, **__: Any) -> None:  # noqa: ARG002 - as in GraphOps
        self.embed(table)

    def packed_linear(self, x: str, weights: list[str], *_: Any) -> str:  # noqa: ARG002
        self.read.append((tuple(weights), False))
        return ""

    def linear(self, x: str, weight: str, *_: Any) -> str:
        return self.packed_linear(x, [weight])

    def float_linear(self, x: str, weight: str) -> str:
        self.floats.append(weight)
        return x

    def ngrams(self, tables: Mapping[str, Any], *_: Any) -> str:
        self.read += [((table,), True) for table in tables]
        return ""

    def add_norm(self, *_: Any) -> tuple[str, str]:
        return "", ""

    def split(self, x: str, sizes: list[int]) -> list[str]:
        return [x] * len(sizes)

    def __getattr__(self, operation: str) -> Callable[..., str]:
        return lambda *_, **__: ""
