"""The geometry of published decoders, whose layers are equal. A family is a class with its own switches and fields.
This module derives from them the operators, the graph, and the keys of config.json, both ways.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from merino_edge.families.family import Family
from merino_edge.families.geometry import Keys, LayerShape, attention_operators, decoder_operators, facts_by, words_by
from merino_edge.families.graph_ops import Attention, GraphOps, KvLayer, Norm
from merino_edge.families.operators import Operator
from merino_edge.families.pre_norm import LLAMA, Decoder, Layer, Linear, Names, build_decoder
from merino_edge.families.rotary import (
    PART,
    Positive,
    RopeScaling,
    Rotary,
    head_order,
    plain_theta,
    rope_facts,
    rope_words,
    turned_channels,
)
from merino_edge.families.weights import Layout, permuted
from merino_runtime.bundle.schema import LARGEST_LAYER, LARGEST_VOCAB, LONGEST_CONTEXT
from merino_runtime.errors import MerinoError

Heads = Annotated[int, Field(ge=1, le=LARGEST_LAYER)]
Rotated = Annotated[int, Field(ge=2, multiple_of=2)]
Window = Annotated[int, Field(ge=1, le=LONGEST_CONTEXT)]
HeadNorm = bool | Literal["whole", "plain"]
ROPE_KEYS = frozenset({"head_dim", "rope_theta", "rope_scaling", "rope_parameters", PART})
WINDOW_KEYS = frozenset({"layer_types", "sliding_window", "sliding_window_pattern"})
ACTIVATIONS = {  # the graph's activation, by its name in config.json
    "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf", "relu": "relu", "silu": "silu",
}  # fmt: skip


class EqualLayers(BaseModel):
    """A decoder of equal layers. Switches are class variables; what differs between models of a family is a field.

    Beside the fields here, a family may have these fields or properties: `tied`, `parallel`, `activation`;
    `rope_theta`, `rope_scaling`, `rotated` (rotated channels of a head), `rotated_layers`; `window`, `windowed`, and
    `local_rope_theta` of the layers with the window;
    `attention_scale`, `attention_softcap`, `logit_softcap`; `embedding_factor`, `residual_factor`, `logits_divisor`.

    Attributes:
        KEYS: keys of config.json by field.
        WEIGHTS: names of the weights.
        NORM: LayerNorm (`layer`) has two parameters per channel, RMSNorm (`rms`) one.
        GATED: whether the FFN has a third matrix, whose output multiplies the activated one (SwiGLU, Shazeer 2020).
        BIASES: the matrices with biases: those into attention (`qkv`), out of it (`out`), of the FFN (`ffn`).
        NORMED_HEADS: whether queries and keys are normed, with one parameter per channel of a head; `whole`: per
            channel of all heads; `plain`: without parameters. NORM_ROTATED: whether they are rotated before.
        INTERLEAVED: whether torch rotates neighboring channels.
        ACTIVATION: of the FFN, as config.json names it.
        KINDS: the known entries of `layer_types`. LISTED: the field with the value of each layer's kind; empty if
            layers do not differ.
        POSITION_OFFSET: rows of the position embedding that are never read.
        LAST_ALONE: whether only the last position is computed behind the last attention; else from the final norm on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    KEYS: ClassVar[Keys] = {
        "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
        "ffn_width": "intermediate_size", "vocab": "vocab_size", "context": "max_position_embeddings",
    }  # fmt: skip
    WEIGHTS: ClassVar[Names] = LLAMA
    NORM: ClassVar[Literal["rms", "layer"]] = "rms"
    GATED: ClassVar[bool] = True
    BIASES: ClassVar[tuple[str, ...]] = ()
    NORMED_HEADS: ClassVar[HeadNorm] = False
    NORM_ROTATED: ClassVar[bool] = False
    ACTIVATION: ClassVar[str] = "silu"
    HEAD_BIAS: ClassVar[bool] = False
    INTERLEAVED: ClassVar[bool] = False
    KINDS: ClassVar[Mapping[str, bool]] = {"full_attention": True}
    LISTED: ClassVar[str] = ""
    POSITION_OFFSET: ClassVar[int] = 0
    LAST_ALONE: ClassVar[bool] = True

    width: Annotated[int, Field(ge=8, le=65_536)]
    layers: Annotated[int, Field(ge=1, le=1024)]
    heads: Heads
    ffn_width: Annotated[int, Field(ge=8, le=1_048_576)]
    vocab: Annotated[int, Field(ge=2, le=LARGEST_VOCAB)]
    context: Annotated[int, Field(ge=2, le=LONGEST_CONTEXT)]

    if TYPE_CHECKING:  # fields or properties of families

        def __getattr__(self, name: str) -> Any: ...

    @model_validator(mode="after")
    def _of_each_layer(self) -> Self:
        for name, value in self:
            if isinstance(value, tuple) and len(value) != self.layers:
                raise ValueError(f"{name} has {len(value)} entries for {self.layers} layers")
        return self

    # config.json

    @classmethod
    def read_keys(cls) -> frozenset[str]:
        """Return the keys of config.json that are read."""
        fields = cls.model_fields
        more = ROPE_KEYS if "rope_theta" in fields else frozenset()
        return more | set(cls.KEYS.values()) | (WINDOW_KEYS if "windowed" in fields else frozenset())

    @classmethod
    def of_config(cls, config: Any) -> Self:
        return cls(**cls.facts(config))

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        """Return the fields in a configuration. Raise MerinoError for a variant that is not known."""
        if fault := cls.layers_fault(getattr(config, "layer_types", None) or ()):
            raise MerinoError(fault)
        fields, facts = cls.model_fields, facts_by(cls.KEYS, config)
        facts["ffn_width"] = facts.get("ffn_width") or 4 * facts["width"]
        if cls.LISTED:
            facts[cls.LISTED] = tuple(cls.KINDS[kind] for kind in config.layer_types)
        if "window" in fields and "window" not in facts:
            window = config.sliding_window
            windowed = facts.setdefault("windowed", (window is not None,) * facts["layers"])
            facts["window"] = window if any(windowed) else None
        if "rope_theta" not in fields:
            return facts
        head_size = facts["width"] // facts["heads"]
        if "head_size" in fields:
            facts["head_size"] = head_size = getattr(config, "head_dim", None) or head_size
        words = cls.rope_of(config)
        if "local_rope_theta" in fields:
            facts["local_rope_theta"] = plain_theta(words["sliding_attention"])
            words = words["full_attention"]
        turned = turned_channels(words, head_size)
        if "rotated" in fields:
            facts["rotated"] = turned
        elif turned != head_size:
            raise MerinoError(f"{PART} is {turned / head_size:g}, supported is 1")
        if "rope_scaling" not in fields:
            return {**facts, "rope_theta": plain_theta(words)}
        return facts | rope_facts(words, turned, config.max_position_embeddings)

    @classmethod
    def layers_fault(cls, kinds: Iterable[Any]) -> str:
        """Return which entries of `layer_types` are not known; empty if all are."""
        unknown, known = sorted(set(map(str, kinds)) - set(cls.KINDS)), ", ".join(map(repr, cls.KINDS))
        return f"layer_types has {', '.join(map(repr, unknown))}, known: {known}" if unknown else ""

    @classmethod
    def rope_of(cls, config: Any) -> dict[str, Any]:
        """Return `rope_parameters` of a configuration."""
        return dict(config.rope_parameters)

    def words(self) -> dict[str, Any]:
        fields, words = type(self).model_fields, words_by(self.KEYS, self)
        if self.LISTED:
            kinds = {value: kind for kind, value in self.KINDS.items()}
            words["layer_types"] = [kinds[value] for value in getattr(self, self.LISTED)]
        if "window" in fields and "window" not in self.KEYS:
            words["sliding_window"] = self.window
        if "head_size" in fields:
            words |= {"head_dim": self.head_size, "pad_token_id": None}
        if "rope_theta" in fields:
            rope = rope_words(self.rope_theta, getattr(self, "rope_scaling", None), self.context)
            part = {PART: self.turned / self.head_size} if "rotated" in fields else {}
            words["rope_parameters"] = {**rope, **part}
        if "local_rope_theta" in fields:
            local = rope_words(self.local_rope_theta, None, self.context)
            words["rope_parameters"] = {"full_attention": words["rope_parameters"], "sliding_attention": local}
        return words

    # Operators

    @property
    def operators(self) -> list[Operator]:
        return list(decoder_operators(self))

    @property
    def kv_layers(self) -> list[tuple[int, int]]:
        return [(self.kv_heads, self.head_size)] * self.layers

    @property
    def layer_shapes(self) -> list[LayerShape]:
        return [LayerShape(self.width, self.ffn_width, self.heads)] * self.layers

    def shape(self) -> str:
        return f"{self.layers} layers of {self.width}, FFN {'gated ' if self.GATED else ''}{self.ffn_width}"

    def mixer(self, layer: int, final: bool) -> Iterable[Operator]:  # noqa: ARG002 - layers of a family may differ
        """Return the operators that mix the positions in a layer. `final`: whether it computes one position only
        behind them."""
        return attention_operators(self, final)

    # Graph

    def build_graph(self, graph: GraphOps) -> None:
        decoder = self.decoder()
        assert decoder is not None, f"{type(self).__name__} must write its own graph"
        build_decoder(graph, decoder)

    def decoder(self) -> Decoder | None:
        names = self.WEIGHTS
        embedding, tied = f"{names.embedding}.weight", getattr(self, "tied", True)
        return Decoder(
            embedding=embedding,
            head=embedding if tied else f"{names.head}.weight",
            head_bias=f"{names.head}.bias" if self.HEAD_BIAS else None,
            layers=tuple(self.layer_of(layer) for layer in range(self.layers)),
            final_norm=self.norm(names.final_norm),
            positions=(f"{names.positions}.weight", self.POSITION_OFFSET) if names.positions else None,
            parallel=getattr(self, "parallel", False),
            embedding_norm=self.norm(names.embedding_norm) if names.embedding_norm else None,
            embedding_factor=getattr(self, "embedding_factor", 1.0),
            residual_factor=getattr(self, "residual_factor", 1.0),
            logit_factor=1 / getattr(self, "logits_divisor", 1.0),
            logit_softcap=getattr(self, "logit_softcap", None),
        )

    def layer_of(self, layer: int) -> Layer:
        """Return the layer with the names that transformers gives its weights."""
        names, at = self.WEIGHTS, self.WEIGHTS.layer.format(layer)

        def matrices(listed: str, kind: str) -> Linear:
            whole = [f"{at}.{name}" for name in listed.split()]
            biased = whole if kind in self.biases else []
            return Linear(tuple(f"{name}.weight" for name in whole), tuple(f"{name}.bias" for name in biased))

        def norm(name: str) -> Norm | None:
            return self.norm(f"{at}.{name}") if name else None

        return Layer(
            cache=KvLayer(layer, self.kv_heads, self.head_size),
            attention=self.attention_of(layer),
            attention_norm=norm(names.attention_norm),
            qkv=matrices(names.qkv, "qkv"),
            out=matrices(names.out, "out"),
            ffn_norm=norm(names.ffn_norm),
            up=matrices(names.up, "ffn"),
            down=matrices(names.down, "ffn"),
            activation=ACTIVATIONS[getattr(self, "activation", self.ACTIVATION)],
            gated=self.GATED,
            norm_behind_attention=norm(names.norm_behind_attention),
            norm_behind_ffn=norm(names.norm_behind_ffn),
        )

    def norm(self, at: str) -> Norm:
        return Norm(f"{at}.weight", f"{at}.bias" if self.NORM == "layer" else None, self.norm_eps)

    @property
    def biases(self) -> tuple[str, ...]:
        return self.BIASES

    def head_norms(self, layer: int) -> HeadNorm:  # noqa: ARG002 - layers of a family may differ
        """Return whether a layer norms queries and keys, and how."""
        return self.NORMED_HEADS

    def attention_of(self, layer: int) -> Attention:
        names, at, kind = self.WEIGHTS, self.WEIGHTS.layer.format(layer), self.head_norms(layer)
        query_norm = key_norm = Norm("", None, self.norm_eps, self.head_size)
        if kind != "plain":
            query_norm, key_norm = (
                Norm(f"{at}.{name}.weight", None, self.norm_eps) for name in (names.query_norm, names.key_norm)
            )
        windowed = getattr(self, "windowed", None)
        return Attention(
            self.heads,
            getattr(self, "attention_scale", self.head_size**-0.5),
            self.rotary_of(layer),
            window=self.window if windowed and windowed[layer] else None,
            query_norm=query_norm if kind else None,
            key_norm=key_norm if kind else None,
            norm_whole=kind == "whole",
            norm_rotated=self.NORM_ROTATED,
            softcap=getattr(self, "attention_softcap", None),
        )

    def rotary_of(self, layer: int) -> Rotary | None:
        """Return the rotary positions of a layer; None if it has none."""
        rotated = getattr(self, "rotated_layers", None)
        if "rope_theta" not in type(self).model_fields or rotated and not rotated[layer]:
            return None
        if "local_rope_theta" in type(self).model_fields and self.windowed[layer]:
            return Rotary(self.local_rope_theta, self.turned)
        return Rotary(self.rope_theta, self.turned, getattr(self, "rope_scaling", None))

    # The state dict's layout

    @property
    def turned(self) -> int:
        """Return the rotated channels of a head."""
        return int(getattr(self, "rotated", self.head_size))

    def key_order(self) -> np.ndarray | None:
        return head_order(self.head_size, self.turned, interleaved=self.INTERLEAVED)

    def layout(self, name: str) -> Layout | None:
        order, part = self.key_order(), name.split(".")[-2]
        heads = {"q_proj": self.heads, "k_proj": self.kv_heads}.get(part)
        return permuted(in_heads(order, heads)) if order is not None and heads else None


class Windowed(BaseModel):
    """Fields of `EqualLayers` with layers of sliding-window attention.

    Attributes:
        window: positions that a layer with a window sees, its own included.
        windowed: of each layer, whether it has the window; the others see all positions.
    """

    KINDS: ClassVar[Mapping[str, bool]] = {"full_attention": False, "sliding_attention": True}

    window: Window | None = None
    windowed: tuple[bool, ...]


class MultiHead:
    """Of `EqualLayers` whose query heads have a KV head each and fill the width (Vaswani et al., arXiv 1706.03762)."""

    width: int
    heads: int

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def head_size(self) -> int:
        return self.width // self.heads


class GatedGeometry(EqualLayers):
    """A decoder after LLaMA (arXiv 2302.13971): a gated FFN, rotary positions, and fewer KV heads than query heads.

    Attributes:
        kv_heads: KV heads; a group of `heads / kv_heads` query heads shares each (GQA, arXiv 2305.13245).
        head_size: channels of a head; `heads * head_size` need not be `width`.
        tied: whether the head is the embedding.
        norm_eps: added to the mean square in RMSNorm, or to the variance in LayerNorm.
        rope_theta, rope_scaling: base of the rotary frequencies, and how they were changed for longer contexts.
    """

    KEYS: ClassVar[Keys] = {
        **EqualLayers.KEYS, "kv_heads": "num_key_value_heads", "tied": "tie_word_embeddings",
        "norm_eps": "rms_norm_eps",
    }  # fmt: skip

    kv_heads: Heads
    head_size: Annotated[int, Field(ge=2, le=LARGEST_LAYER, multiple_of=2)]
    tied: bool
    norm_eps: Positive
    rope_theta: Positive
    rope_scaling: RopeScaling | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.rope_scaling and 2 * len(self.rope_scaling.divisors) != self.turned:
            raise ValueError(f"rope_scaling has {len(self.rope_scaling.divisors)} divisors for {self.turned} channels")
        return self

    @property
    def embed_width(self) -> int:
        return self.width


def in_heads(order: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of a matrix of `heads` heads, each in the order of its channels, [heads * head_size]."""
    return (np.arange(heads)[:, None] * len(order) + order).ravel()


def family(
    name: str, geometry: type[EqualLayers], classes: str, supported: Mapping[str, Any], keys: Iterable[str] = (), *,
    config_name: str = "", model_name: str = "",
) -> Family:  # fmt: skip
    """Return a family. `classes`: the beginning of the names of its classes in transformers; `keys`: further keys of
    config.json that it reads."""
    return Family(
        name=name, geometry=geometry, config_name=config_name or f"{classes}Config",
        model_name=model_name or f"{classes}ForCausalLM", supported=supported, keys=geometry.read_keys() | set(keys),
    )  # fmt: skip
