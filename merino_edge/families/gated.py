"""The common part of the decoders after LLaMA (arXiv 2302.13971): equal layers with RMSNorm, rotary positions, fewer KV
heads than query heads, and a gated FFN. A family's class adds its own features. Also the keys of config.json that these
families share, both ways.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from merino_edge.families.family import Family
from merino_edge.families.geometry import Biased, EqualLayers, Keys, UniformGeometry, facts_by, words_by
from merino_edge.families.graph_ops import Attention, GraphOps, KvLayer, Norm
from merino_edge.families.pre_norm import Decoder, Layer, Linear, build_decoder
from merino_edge.families.rotary import Positive, RopeScaling, Rotary, rope_facts, rope_words
from merino_runtime.bundle.schema import LARGEST_LAYER, LARGEST_VOCAB, LONGEST_CONTEXT
from merino_runtime.errors import MerinoError

Heads = Annotated[int, Field(ge=1, le=LARGEST_LAYER)]
GATED: Keys = {
    "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "ffn_width": "intermediate_size", "vocab": "vocab_size",
    "context": "max_position_embeddings", "tied": "tie_word_embeddings", "norm_eps": "rms_norm_eps",
}  # fmt: skip
GATED_KEYS = frozenset(GATED.values()) | {"head_dim", "rope_theta", "rope_scaling", "rope_parameters"}
FULL_ATTENTION_KEYS = frozenset({"layer_types", "sliding_window", "max_window_layers"})  # with use_sliding_window false


class GatedGeometry(EqualLayers):
    """A decoder of equal layers with a gated FFN.

    Attributes:
        kv_heads: KV heads; a group of `heads / kv_heads` query heads shares each.
        head_size: channels of a head; `heads * head_size` need not be `width`.
        tied: whether the head is the embedding.
        norm_eps: added to the mean square in RMSNorm.
        rope_theta, rope_scaling: base of the rotary frequencies, and how they were changed for longer contexts.
    """

    QKV_BIAS: ClassVar[bool] = False
    NORMED_HEADS: ClassVar[bool] = False  # RMSNorm of the queries and keys of each head
    NORMS_BEHIND: ClassVar[bool] = False
    ACTIVATION: ClassVar[str] = "silu"

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

    @property
    def embed_width(self) -> int:
        return self.width

    @property
    def counts(self) -> UniformGeometry:
        biases: tuple[Biased, ...] = ("qkv",) if self.QKV_BIAS else ()
        return UniformGeometry(
            layers=self.layers, width=self.width, heads=self.heads, kv_heads=self.kv_heads, head_size=self.head_size,
            ffn_width=self.ffn_width, vocab=self.vocab, context=self.context, gated=True, norm="rms", final_norm=True,
            query_key_norm=self.NORMED_HEADS, biases=biases, positions="rotary", position_offset=0, tied=self.tied,
            embed_width=self.width, norms_behind=self.NORMS_BEHIND, last_alone=True,
        )  # fmt: skip

    def rms_norm(self, at: str) -> Norm:
        return Norm(f"{at}.weight", None, self.norm_eps)

    def attention_of(self, layer: int) -> Attention:
        """Return the attention of a layer. Norms of heads are named as in the state dict."""
        at = f"model.layers.{layer}.self_attn"
        norms = [self.rms_norm(f"{at}.{part}_norm") if self.NORMED_HEADS else None for part in "qk"]
        rotary = Rotary(self.rope_theta, self.head_size, self.rope_scaling)
        return Attention(self.heads, self.head_size**-0.5, rotary, None, *norms)

    def layer_of(self, layer: int) -> Layer:
        """Return the layer with the names that transformers gives its weights."""
        at = f"model.layers.{layer}"
        qkv = [f"{at}.self_attn.{part}_proj" for part in "qkv"]
        return Layer(
            cache=KvLayer(layer, self.kv_heads, self.head_size),
            attention=self.attention_of(layer),
            attention_norm=self.rms_norm(f"{at}.input_layernorm"),
            qkv=Linear(
                tuple(f"{name}.weight" for name in qkv), tuple(f"{name}.bias" for name in qkv if self.QKV_BIAS)
            ),
            out=Linear((f"{at}.self_attn.o_proj.weight",)),
            ffn_norm=self.rms_norm(f"{at}.post_attention_layernorm"),
            up=Linear((f"{at}.mlp.gate_proj.weight", f"{at}.mlp.up_proj.weight")),
            down=Linear((f"{at}.mlp.down_proj.weight",)),
            activation=self.ACTIVATION,
            gated=True,
        )

    def decoder(self) -> Decoder:
        """Return what the graph builder writes."""
        embedding = "model.embed_tokens.weight"
        return Decoder(
            embedding=embedding,
            head=embedding if self.tied else "lm_head.weight",
            layers=tuple(self.layer_of(layer) for layer in range(self.layers)),
            final_norm=self.rms_norm("model.norm"),
        )


def build_gated(graph: GraphOps, arch: GatedGeometry) -> None:
    """Write the whole graph of any of these families: ids to logits of the last position."""
    build_decoder(graph, arch.decoder())


def gated_words(geometry: GatedGeometry) -> dict[str, Any]:
    """Return arguments of transformers' configuration."""
    rope = rope_words(geometry.rope_theta, geometry.rope_scaling)
    return {**words_by(GATED, geometry), "head_dim": geometry.head_size, "rope_parameters": rope}


def shape_facts(config: Any) -> dict[str, Any]:
    """Return fields of the geometry that have the same names in all these families, without the rotary ones."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {**facts_by(GATED, config), "head_size": head_size}


def gated_facts(config: Any) -> dict[str, Any]:
    """Return all fields of a `GatedGeometry`."""
    return {**shape_facts(config), **rope_facts(config.rope_parameters)}


def check_full_attention(config: Any) -> None:
    """Raise MerinoError if a layer's attention is not full attention."""
    other = sorted({kind for kind in config.layer_types or () if kind != "full_attention"})
    if other:
        raise MerinoError(f"layer_types has {', '.join(map(repr, other))}, known is 'full_attention'")


def gated_family(
    name: str, geometry: type[GatedGeometry], classes: str, supported: Mapping[str, Any], *, layer_types: bool = False
) -> Family:
    """Return a family of the common part only. `classes`: the beginning of the names of its classes in transformers;
    `layer_types`: whether its config.json lists the attention of each layer, which must be full attention."""

    def geometry_of(config: Any) -> GatedGeometry:
        if layer_types:
            check_full_attention(config)
        return geometry(**gated_facts(config))

    return Family(
        name=name, geometry=geometry, build_graph=build_gated, config_name=f"{classes}Config",
        model_name=f"{classes}ForCausalLM", supported=supported,
        keys=GATED_KEYS | (FULL_ATTENTION_KEYS if layer_types else frozenset()), config_words=gated_words,
        geometry_of=geometry_of,
    )  # fmt: skip
