"""The common part of the decoders after LLaMA (arXiv 2302.13971): equal layers, rotary positions, fewer KV heads than
query heads, and a gated FFN. A family's class adds its own features by switches and fields. Also the keys of
config.json that these families share, both ways.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from merino_edge.families.family import Family
from merino_edge.families.geometry import Biased, EqualLayers, Keys, UniformGeometry, facts_by, words_by
from merino_edge.families.graph_ops import Attention, GraphOps, KvLayer, Norm
from merino_edge.families.pre_norm import Decoder, Layer, Linear, build_decoder
from merino_edge.families.rotary import (
    PART,
    Positive,
    RopeScaling,
    Rotary,
    head_order,
    rope_facts,
    rope_words,
    turned_channels,
)
from merino_edge.families.weights import Layout, permuted
from merino_runtime.bundle.schema import LARGEST_LAYER, LARGEST_VOCAB, LONGEST_CONTEXT
from merino_runtime.errors import MerinoError

Heads = Annotated[int, Field(ge=1, le=LARGEST_LAYER)]
Window = Annotated[int, Field(ge=1, le=LONGEST_CONTEXT)]
GATED: Keys = {
    "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "ffn_width": "intermediate_size", "vocab": "vocab_size",
    "context": "max_position_embeddings", "tied": "tie_word_embeddings", "norm_eps": "rms_norm_eps",
}  # fmt: skip
GATED_KEYS = frozenset(GATED.values()) | {"head_dim", "rope_theta", "rope_scaling", "rope_parameters", PART}
WINDOW_KEYS = frozenset({"layer_types", "sliding_window", "sliding_window_pattern"})
FULL_ATTENTION_KEYS = frozenset({"layer_types", "sliding_window", "max_window_layers"})  # with use_sliding_window false
KINDS = {"full_attention": False, "sliding_attention": True}  # by layer_types: whether a layer has the window


class GatedGeometry(EqualLayers):
    """A decoder of equal layers with a gated FFN.

    Attributes:
        kv_heads: KV heads; a group of `heads / kv_heads` query heads shares each.
        head_size: channels of a head; `heads * head_size` need not be `width`.
        tied: whether the head is the embedding.
        norm_eps: added to the mean square in RMSNorm, or to the variance in LayerNorm.
        rope_theta, rope_scaling: base of the rotary frequencies, and how they were changed for longer contexts.
    """

    NAMES: ClassVar[Keys] = GATED
    QKV_BIAS: ClassVar[bool] = False
    NORMED_HEADS: ClassVar[bool | Literal["whole", "plain"]] = False  # see UniformGeometry.query_key_norm
    HEAD_NORMS: ClassVar[tuple[str, str]] = ("q_norm", "k_norm")
    NORM: ClassVar[Literal["rms", "layer"]] = "rms"
    NORMS: ClassVar[Literal["before", "behind", "both"]] = "before"  # where they stand, of attention and of the FFN
    ACTIVATION: ClassVar[str] = "silu"
    FFN: ClassVar[str] = "mlp"
    INTERLEAVED: ClassVar[bool] = False  # whether torch rotates neighboring channels

    width: Annotated[int, Field(ge=8, le=65_536)]
    layers: Annotated[int, Field(ge=1, le=1024)]
    heads: Heads
    kv_heads: Heads
    head_size: Annotated[int, Field(ge=2, le=LARGEST_LAYER, multiple_of=2)]
    ffn_width: Annotated[int, Field(ge=8, le=1_048_576)]
    vocab: Annotated[int, Field(ge=2, le=LARGEST_VOCAB)]
    context: Annotated[int, Field(ge=2, le=LONGEST_CONTEXT)]
    tied: bool
    norm_eps: Positive
    rope_theta: Positive
    rope_scaling: RopeScaling | None = None

    @model_validator(mode="after")
    def _groups(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        return self

    @model_validator(mode="after")
    def _of_each_layer(self) -> Self:
        for name, value in self:
            if isinstance(value, tuple) and len(value) != self.layers:
                raise ValueError(f"{name} has {len(value)} entries for {self.layers} layers")
        if self.rope_scaling and 2 * len(self.rope_scaling.divisors) != self.turned:
            raise ValueError(f"rope_scaling has {len(self.rope_scaling.divisors)} divisors for {self.turned} channels")
        return self

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        """Return the fields in a configuration. Raise MerinoError for a variant that is not known."""
        cls.check_layers(config)
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        facts = {**facts_by(cls.NAMES, config), "head_size": head_size}
        turned = turned_channels(cls.rope_of(config), head_size)
        if "rotated" in cls.model_fields:
            facts["rotated"] = turned
        elif turned != head_size:
            raise MerinoError(f"{PART} is {turned / head_size:g}, supported is 1")
        return facts | rope_facts(cls.rope_of(config), turned, config.max_position_embeddings)

    @classmethod
    def check_layers(cls, config: Any) -> None:
        """Raise MerinoError if a layer's attention is not full attention."""
        other = sorted({kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"})
        if other:
            raise MerinoError(f"layer_types has {', '.join(map(repr, other))}, known is 'full_attention'")

    @classmethod
    def rope_of(cls, config: Any) -> dict[str, Any]:
        """Return `rope_parameters` of a configuration, those of full attention if there are two."""
        return dict(config.rope_parameters)

    def words(self) -> dict[str, Any]:
        """Return arguments of transformers' configuration."""
        rope = rope_words(self.rope_theta, self.rope_scaling, self.context)
        part = {} if self.turned == self.head_size else {PART: self.turned / self.head_size}
        own = {"head_dim": self.head_size, "rope_parameters": {**rope, **part}, "pad_token_id": None}
        return {**words_by(self.NAMES, self), **own}

    @property
    def turned(self) -> int:
        """Return the rotated channels of a head."""
        return int(getattr(self, "rotated", self.head_size))

    @property
    def embed_width(self) -> int:
        return self.width

    @property
    def qkv_biased(self) -> bool:
        return self.QKV_BIAS

    def head_norms(self, layer: int) -> bool | Literal["whole", "plain"]:  # noqa: ARG002 - a family may ask for it
        """Return whether a layer norms queries and keys, and how."""
        return self.NORMED_HEADS

    @property
    def counts(self) -> UniformGeometry:
        biases: tuple[Biased, ...] = ("qkv",) if self.qkv_biased else ()
        return UniformGeometry(
            layers=self.layers, width=self.width, heads=self.heads, kv_heads=self.kv_heads, head_size=self.head_size,
            ffn_width=self.ffn_width, vocab=self.vocab, context=self.context, gated=True, norm=self.NORM,
            final_norm=True, query_key_norm=self.head_norms(0), biases=biases, positions="rotary", position_offset=0,
            tied=self.tied, embed_width=self.width, norms=4 if self.NORMS == "both" else 2, last_alone=True,
        )  # fmt: skip

    def norm(self, at: str) -> Norm:
        return Norm(f"{at}.weight", f"{at}.bias" if self.NORM == "layer" else None, self.norm_eps)

    def attention_of(self, layer: int) -> Attention:
        """Return the attention of a layer. Norms of heads are named as in the state dict."""
        at, kind = f"model.layers.{layer}.self_attn", self.head_norms(layer)
        query_norm, key_norm = (Norm(f"{at}.{name}.weight", None, self.norm_eps) for name in self.HEAD_NORMS)
        if kind == "plain":
            query_norm = key_norm = Norm("", None, self.norm_eps, self.head_size)
        return Attention(
            self.heads, self.head_size**-0.5, Rotary(self.rope_theta, self.turned, self.rope_scaling),
            query_norm=query_norm if kind else None, key_norm=key_norm if kind else None, norm_whole=kind == "whole",
        )  # fmt: skip

    def layer_of(self, layer: int) -> Layer:
        """Return the layer with the names that transformers gives its weights."""
        at = f"model.layers.{layer}"
        qkv = [f"{at}.self_attn.{part}_proj" for part in "qkv"]
        before, behind = self.NORMS != "behind", self.NORMS != "before"
        ffn_norm = "pre_feedforward_layernorm" if behind else "post_attention_layernorm"
        return Layer(
            cache=KvLayer(layer, self.kv_heads, self.head_size),
            attention=self.attention_of(layer),
            attention_norm=self.norm(f"{at}.input_layernorm") if before else None,
            qkv=Linear(
                tuple(f"{name}.weight" for name in qkv), tuple(f"{name}.bias" for name in qkv if self.qkv_biased)
            ),
            out=Linear((f"{at}.self_attn.o_proj.weight",)),
            ffn_norm=self.norm(f"{at}.{ffn_norm}") if before else None,
            up=Linear((f"{at}.{self.FFN}.gate_proj.weight", f"{at}.{self.FFN}.up_proj.weight")),
            down=Linear((f"{at}.{self.FFN}.down_proj.weight",)),
            activation=self.ACTIVATION,
            gated=True,
            norm_behind_attention=self.norm(f"{at}.post_attention_layernorm") if behind else None,
            norm_behind_ffn=self.norm(f"{at}.post_feedforward_layernorm") if behind else None,
        )

    def decoder(self) -> Decoder:
        """Return what the graph builder writes."""
        embedding = "model.embed_tokens.weight"
        return Decoder(
            embedding=embedding,
            head=embedding if self.tied else "lm_head.weight",
            layers=tuple(self.layer_of(layer) for layer in range(self.layers)),
            final_norm=self.norm("model.norm"),
        )

    def key_order(self) -> np.ndarray | None:
        """Return which channel of torch's keys the graph has at each place of a head; None if both are alike."""
        return head_order(self.head_size, self.turned, interleaved=self.INTERLEAVED)

    def layout(self, name: str) -> Layout | None:
        """Return how a weight of the state dict lies in the graph; None if both are alike."""
        order, part = self.key_order(), name.split(".")[-2]
        heads = {"q_proj": self.heads, "k_proj": self.kv_heads}.get(part)
        if order is None or heads is None:
            return None
        return permuted(in_heads(order, heads))


class WindowedGeometry(GatedGeometry):
    """A decoder with layers of sliding-window attention.

    Attributes:
        window: positions that a layer with a window sees, its own included; None if no layer has one.
        windowed: of each layer, whether it has the window; the others see all positions.
    """

    LISTED: ClassVar[bool] = True  # whether the configuration lists the attention of each layer; else all are alike

    window: Window | None = None
    windowed: tuple[bool, ...]

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        window = config.sliding_window
        windowed = [window is not None] * config.num_hidden_layers
        if cls.LISTED:
            windowed = [KINDS.get(kind, False) for kind in config.layer_types]
        return super().facts(config) | {"window": window if any(windowed) else None, "windowed": tuple(windowed)}

    @classmethod
    def check_layers(cls, config: Any) -> None:
        if cls.LISTED:
            check_kinds(config, KINDS)

    def words(self) -> dict[str, Any]:
        kinds = {windowed: kind for kind, windowed in KINDS.items()}
        listed = {"layer_types": [kinds[windowed] for windowed in self.windowed]} if self.LISTED else {}
        return {**super().words(), "sliding_window": self.window, **listed}

    def attention_of(self, layer: int) -> Attention:
        return replace(super().attention_of(layer), window=self.window if self.windowed[layer] else None)


def check_kinds(config: Any, known: Iterable[str]) -> None:
    """Raise MerinoError for kinds in `layer_types` other than the known ones."""
    unknown = sorted({str(kind) for kind in config.layer_types} - set(known))
    if unknown:
        listed = ", ".join(map(repr, known))
        raise MerinoError(f"layer_types has {', '.join(map(repr, unknown))}, known are {listed}")


def in_heads(order: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of a matrix of `heads` heads, each in the order of its channels, [heads * head_size]."""
    return (np.arange(heads)[:, None] * len(order) + order).ravel()


def build_gated(graph: GraphOps, arch: GatedGeometry) -> None:
    """Write the whole graph of any of these families: ids to logits of the last position."""
    build_decoder(graph, arch.decoder())


def gated_family(
    name: str, geometry: type[GatedGeometry], classes: str, supported: Mapping[str, Any],
    keys: Iterable[str] = (), *, config_name: str = "",
) -> Family:  # fmt: skip
    """Return a family whose geometry reads and writes its configuration. `classes`: the beginning of the names of its
    classes in transformers; `keys`: further keys of config.json that it reads."""
    windowed = WINDOW_KEYS if issubclass(geometry, WindowedGeometry) else frozenset()
    return Family(
        name=name, geometry=geometry, build_graph=build_gated, config_name=config_name or f"{classes}Config",
        model_name=f"{classes}ForCausalLM", supported=supported,
        keys=GATED_KEYS | set(geometry.NAMES.values()) | windowed | set(keys),
        config_words=lambda known: known.words(),
        geometry_of=lambda config: geometry(**geometry.facts(config)),
        layout=lambda known, weight: known.layout(weight), key_order=lambda known: known.key_order(),
    )  # fmt: skip
