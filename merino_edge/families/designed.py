"""MeRino (arXiv 2403.07921), the family whose models are designed here: the search finds its geometries, training
builds its models, and calibration times its layers. Those stages import this module; all other code uses the registry.

Known from the paper: blocks of growing width, an FFN ratio and a depth, shared weights in a block. The torch model is
`designed_torch`, since transformers has none.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from operator import not_
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from merino_edge.families.family import Family
from merino_edge.families.geometry import Keys, LayerShape, facts_by, words_by
from merino_edge.families.graph_ops import Attention, GraphOps, KvLayer, Norm
from merino_edge.families.operators import (
    SLOTS,
    Operator,
    activation,
    attention,
    convolution,
    embed,
    head,
    linear,
    ngrams,
    norm,
    taps,
)
from merino_edge.families.pre_norm import Decoder, Layer, Linear, build_layer, residual_norm
from merino_edge.families.rotary import Rotary

KEYS: Keys = {
    "vocab": "vocab_size", "head_size": "head_size", "context": "max_position_embeddings", "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps", "width_change": "width_change", "taps": "taps",
}  # fmt: skip
MIXED, TAPPED = 3, 4  # taps of a gated convolution; taps before a mixer and before an FFN
NGRAMS = "ngrams."  # the names of the n-gram tables begin so
# Of the hash: a universal one, whose sums of three ids below 2^20 fit into int64.
PRIME, MULTIPLIERS = 2**31 - 1, (1_540_483_477, 1_000_000_933, 1_878_242_191)
MOST_ROWS = 2**31
ID_PARTS = 1024  # a token's id is cached as two numbers below it, which float16 represents exactly


class Block(BaseModel):
    """`depth` layers of one width and FFN ratio; a shared block uses one layer's weights `depth` times. An axis that is
    not used is not written, so that a plain decoder has one description.

    `attention_every`: m: every m-th layer, the first one in the middle of its m, is attention. The others mix positions
    by gated short convolutions (LFM2, arXiv 2511.23404). `kv_heads`: KV heads, each of which an equal group of query
    heads shares (arXiv 2305.13245); None: as many as query heads. `gated`: whether the FFN has a third matrix, whose
    output is multiplied by the activated one (GEGLU, arXiv 2002.05202).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Annotated[int, Field(ge=32, le=8192, multiple_of=32)]
    ffn_ratio: Annotated[float, Field(ge=0.5, le=8)]
    depth: Annotated[int, Field(ge=1, le=64)]
    shared: bool = False
    kv_heads: Annotated[int | None, Field(ge=1, le=1024)] = None
    gated: bool = False
    attention_every: Annotated[int, Field(ge=1, le=64, exclude_if=lambda every: every == 1)] = 1

    def attends(self, use: int) -> bool:
        """Return whether this use of a layer mixes positions by attention."""
        return use % self.attention_every == (self.attention_every - 1) // 2

    @property
    def ffn_width(self) -> int:
        return round(self.width * self.ffn_ratio)

    def kv_width(self, head_size: int) -> int:
        """Return channels of keys, and as many of values."""
        return self.width if self.kv_heads is None else self.kv_heads * head_size

    @model_validator(mode="after")
    def _whole_ffn(self) -> Self:
        if self.ffn_width != self.width * self.ffn_ratio:
            raise ValueError(f"ffn_ratio {self.ffn_ratio} of width {self.width} is no integer number of channels")
        if self.attention_every > (1 if self.shared else self.depth):
            raise ValueError(
                f"attention_every {self.attention_every} must be at most depth {self.depth}, and 1 in a shared block"
            )
        return self


class Ngrams(BaseModel):
    """A table of hashed n-grams. The row of the last `order` tokens is added to the embedding (arXiv 2501.16975)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: Annotated[int, Field(ge=2, le=len(MULTIPLIERS))]
    rows: Annotated[int, Field(ge=2, le=MOST_ROWS)]

    def index(self, ids: Any) -> Any:
        """Return the row of each token: `ids` are the arrays of the token's id and of the ids before it, nearest first,
        in int64. Before the text begins, the id is `vocab`."""
        mixed = sum(one * factor for one, factor in zip(ids[: self.order], MULTIPLIERS, strict=False))
        return mixed % PRIME % self.rows


class Architecture(BaseModel):
    """A decoder: everything but the weights that its graph depends on.

    Attributes:
        width_change: how the residual stream gets another width, between blocks and before the head. `projection`: by
            a learned matrix; widths never shrink. `padding`: new channels are zeros, surplus ones are dropped, without
            weights (arXiv 2606.18246); widths may shrink.
        vocab: rows of the embedding, which is the head too.
        head_size: channels per attention head, the same in every block.
        context: the longest sequence in tokens.
        rope_theta: base of the rotary frequencies (RoFormer, arXiv 2104.09864).
        rms_norm_eps: added to the mean square in RMSNorm.
        taps: whether causal taps precede each mixer, and each FFN but the last (Canon layers, arXiv 2512.17351). The
            last FFN has none, because a prefill computes it at one position.
        ngrams: tables beside the embedding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: Annotated[tuple[Block, ...], Field(min_length=1, max_length=16)]
    vocab: Annotated[int, Field(ge=2, le=1_000_000)]
    head_size: Annotated[int, Field(ge=8, le=256, multiple_of=8)] = 64
    context: Annotated[int, Field(ge=2, le=131_072)] = 1024
    width_change: Literal["projection", "padding"] = "projection"
    rope_theta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10_000.0
    rms_norm_eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-6
    taps: Annotated[bool, Field(exclude_if=not_)] = False
    ngrams: Annotated[tuple[Ngrams, ...], Field(max_length=2, exclude_if=not_)] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        widths = [block.width for block in self.blocks]
        if self.width_change == "projection" and widths != sorted(widths):
            raise ValueError(f"widths are {widths}, must not shrink from block to block by a projection")
        bad = [width for width in widths if width % self.head_size]
        if bad:
            raise ValueError(f"widths {bad} must be multiples of head_size {self.head_size}")
        odd = [block.kv_heads for block in self.blocks if block.width % block.kv_width(self.head_size)]
        if odd:
            heads = [width // self.head_size for width in widths]
            raise ValueError(f"kv_heads {odd} must divide the blocks' heads, {heads}")
        if self.taps and any(block.shared for block in self.blocks):
            raise ValueError("taps are not possible in a shared block: leave out taps or shared")
        orders = [table.order for table in self.ngrams]
        if len(set(orders)) < len(orders):
            raise ValueError(f"ngrams have the orders {orders}, must differ in their orders")
        return self

    @property
    def padded(self) -> bool:
        return self.width_change == "padding"

    @property
    def caches_inputs(self) -> bool:
        """Return whether the cache holds more than keys and values."""
        mixed = any(not block.attends(use) for block in self.blocks for use in range(block.depth))
        return mixed or self.taps or bool(self.ngrams)

    @property
    def embed_width(self) -> int:
        return self.blocks[0].width

    @property
    def operators(self) -> list[Operator]:
        return list(decoder_operators(self))

    @property
    def kv_layers(self) -> list[tuple[int, int]]:
        """A convolution caches its input like keys and values, half of the channels as each. The tokens' ids are the
        last layer."""
        layers = []
        for index, block in enumerate(self.blocks):
            rows = (1, block.width // 2)
            for use in range(block.depth):
                heads = block.kv_width(self.head_size) // self.head_size
                layers.append((heads, self.head_size) if block.attends(use) else rows)
                layers += [rows] * tapped(self, index, use)
        return layers + [(1, 1)] * bool(self.ngrams)

    @property
    def layer_shapes(self) -> list[LayerShape]:
        return [
            LayerShape(block.width, block.ffn_width, block.width // self.head_size)
            for block in self.blocks for _ in range(block.depth)
        ]  # fmt: skip

    @classmethod
    def of_config(cls, config: Any) -> Self:
        return cls.model_validate({**facts_by(KEYS, config), "blocks": config.blocks, "ngrams": config.ngrams})

    def words(self) -> dict[str, Any]:
        parts = self.model_dump(include={"blocks", "ngrams"})
        return {**words_by(KEYS, self), **{name: list(part) for name, part in parts.items()}}

    def build_graph(self, graph: GraphOps) -> None:
        build_designed(graph, self)

    def decoder(self) -> None:
        """There is none: `build_designed` writes the graph."""

    def layout(self, name: str) -> None:
        """Weights lie in the graph as in the state dict."""

    def key_order(self) -> None:
        """Channels of keys lie in the graph as in torch."""

    def shape(self) -> str:
        """`384x1.5x4 512x1.5x5k2s`: width x FFN ratio x depth of each block, `g` if the FFN is gated, `k` and the KV
        heads if there are fewer of them than query heads, `a4` if every 4th layer is attention, `s` if shared. `taps`,
        and `2:65536` for a table of so many bigrams."""
        shapes = []
        for block in self.blocks:
            grouped = f"k{block.kv_heads}" if block.kv_width(self.head_size) < block.width else ""
            every = f"a{block.attention_every}" if block.attention_every > 1 else ""
            flags = f"{'g' if block.gated else ''}{grouped}{every}{'s' if block.shared else ''}"
            shapes.append(f"{block.width}x{block.ffn_ratio:g}x{block.depth}{flags}")
        return " ".join(shapes + ["taps"] * self.taps + [f"{table.order}:{table.rows}" for table in self.ngrams])


def tapped(arch: Architecture, index: int, use: int) -> int:
    """Return how many causal taps with residual this use of a layer has: before its mixer, and before its FFN."""
    last = index == len(arch.blocks) - 1 and use == arch.blocks[index].depth - 1
    return (1 if last else 2) * arch.taps


def attention_operators(
    width: int, heads: int, *, kv_width: int, own: bool = True, final: bool = False
) -> Iterator[Operator]:
    """RMSNorm, packed QKV, attention, output.

    `kv_width`: channels of keys and of values; `own`: whether they store their weights; `final`: whether one position
    only is computed after the attention.
    """
    yield norm(width, own=own)
    yield linear(width, width + 2 * kv_width, own=own, also_live=width)
    yield attention(width, heads, kv_width=kv_width, also_live=width)
    yield linear(width, width, own=own, also_live=width, final=final)


def convolution_operators(width: int, *, final: bool = False) -> Iterator[Operator]:
    """RMSNorm and gated convolution."""
    yield norm(width)
    yield from convolution(width, MIXED, final=final)


def ffn_operators(
    width: int, ffn_width: int, *, gated: bool = False, own: bool = True, final: bool = False
) -> Iterator[Operator]:
    """RMSNorm, up (packed with the gate), GELU, down."""
    yield norm(width, own=own, also_live=width, final=final)
    yield linear(width, 2 * ffn_width if gated else ffn_width, own=own, also_live=width, final=final)
    yield activation(ffn_width, also_live=width + ffn_width if gated else width, final=final)
    yield linear(ffn_width, width, own=own, also_live=width, final=final)


def block_operators(block: Block, head_size: int, *, last: bool = False) -> Iterator[Operator]:
    """Yield all uses of a block's layers.

    `last`: the decoder's last block. Its last layer computes only the last position after its attention. Between two
    uses of a shared layer all its matrices are read.
    """
    width = block.width
    for use in range(block.depth):
        own, final = use == 0 or not block.shared, last and use == block.depth - 1
        if block.attends(use):
            kv_width = block.kv_width(head_size)
            mixer = attention_operators(width, width // head_size, kv_width=kv_width, own=own, final=final)
        else:
            mixer = convolution_operators(width, final=final)
        ops = [*mixer, *ffn_operators(width, block.ffn_width, gated=block.gated, own=own, final=final)]
        between = 0 if own else sum(op.matrix for op in ops)
        yield from (replace(op, reread=between) if op.matrix else op for op in ops)


def transition_operators(before: int, after: int, *, padded: bool = False, final: bool = False) -> Iterator[Operator]:
    """Yield the projection where the width changes, or the copy that padding makes; none if it does not change."""
    if before != after:
        yield activation(max(before, after), final=final) if padded else linear(before, after, final=final)


def end_operators(first: int, last: int, vocab: int, *, padded: bool = False) -> Iterator[Operator]:
    """Embedding, final norm, the way back to the embedding's width, and the tied head."""
    yield embed(vocab, first)
    yield norm(last, final=True)
    yield from transition_operators(last, first, padded=padded, final=True)
    yield head(first, vocab)


def ngram_operators(width: int, tables: Iterable[Ngrams]) -> Iterator[Operator]:
    """The ids that are hashed, and the tables."""
    rows = [ngrams(table.rows, width) for table in tables]
    yield from [Operator("ids", width=1, live=4), *rows] if rows else []


def decoder_operators(arch: Architecture) -> Iterator[Operator]:
    first, last = arch.blocks[0].width, arch.blocks[-1].width
    for index, block in enumerate(arch.blocks):
        yield from transition_operators(arch.blocks[max(0, index - 1)].width, block.width, padded=arch.padded)
        yield from block_operators(block, arch.head_size, last=index == len(arch.blocks) - 1)
        for use in range(block.depth):
            yield from [taps(block.width, TAPPED, also_live=block.width)] * tapped(arch, index, use)
    if arch.caches_inputs:
        yield SLOTS
    yield from ngram_operators(first, arch.ngrams)
    yield from end_operators(first, last, arch.vocab, padded=arch.padded)


def build_designed(graph: GraphOps, arch: Architecture) -> None:
    """Write the whole graph: ids to logits of the last position."""
    table = "embed_tokens.weight"
    decoder = Decoder(table, table, tuple(layers_of(arch)), Norm("norm.weight", None, arch.rms_norm_eps))
    x, delta = graph.embed(decoder.embedding), None
    if arch.ngrams:
        names = {f"{NGRAMS}{index}.weight": table for index, table in enumerate(arch.ngrams)}
        ids = KvLayer(len(arch.kv_layers) - 1, *arch.kv_layers[-1])
        x = graph.add(x, graph.ngrams(names, ids, arch.vocab))
    before, layers = arch.blocks[0].width, iter(decoder.layers)
    for index, block in enumerate(arch.blocks):
        if block.width != before:
            x, delta = graph.add(x, delta) if delta else x, None
            if arch.padded:
                x = graph.resize(x, before, block.width)
            else:
                x = graph.linear(x, f"blocks.{index}.enter.weight")
        for _ in range(block.depth):
            x, delta = build_layer(graph, decoder, next(layers), x, delta)
        before = block.width
    normed, _ = residual_norm(graph, x, delta, decoder.final_norm)
    first, last = arch.blocks[0].width, arch.blocks[-1].width
    if last != first:
        normed = graph.resize(normed, last, first) if arch.padded else graph.linear(normed, "leave.weight")
    graph.head(normed, decoder.head)


def layers_of(arch: Architecture) -> Iterator[Layer]:
    """Yield each use of a layer, with the names of its weights."""
    size = arch.head_size
    cache = (KvLayer(index, *shape) for index, shape in enumerate(arch.kv_layers))
    for index, block in enumerate(arch.blocks):
        for use in range(block.depth):
            at = f"blocks.{index}.layers.{0 if block.shared else use}"
            mixer = f"{at}.attention" if block.attends(use) else f"{at}.convolution"
            mixed, taps = next(cache), tapped(arch, index, use)
            yield Layer(
                cache=mixed,
                attention=Attention(block.width // size, size**-0.5, Rotary(arch.rope_theta, size)),
                attention_norm=Norm(f"{at}.attention_norm.weight", None, arch.rms_norm_eps),
                qkv=Linear((f"{mixer}.qkv.weight" if block.attends(use) else f"{mixer}.into.weight",)),
                out=Linear((f"{mixer}.out.weight",)),
                ffn_norm=Norm(f"{at}.ffn_norm.weight", None, arch.rms_norm_eps),
                up=Linear((f"{at}.up.weight",)),
                down=Linear((f"{at}.down.weight",)),
                activation="gelu",
                gated=block.gated,
                convolution=None if block.attends(use) else f"{mixer}.taps.weight",
                attention_taps=(f"{at}.attention_taps.weight", next(cache)) if taps else None,
                ffn_taps=(f"{at}.ffn_taps.weight", next(cache)) if taps > 1 else None,
            )


FAMILY = Family(
    name="merino",
    geometry=Architecture,
    module="merino_edge.families.designed_torch",
    config_name="MerinoConfig",
    model_name="MerinoForCausalLM",
    supported={},  # MerinoConfig itself refuses other values
    keys=frozenset(KEYS.values()) | {
        "blocks", "ngrams", "hidden_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings",
        "rope_parameters",
    },
)  # fmt: skip
