"""The common part of the decoders after GPT (Radford et al. 2018): equal layers with LayerNorm, as many KV heads as
query heads, an FFN of two matrices, and biases. A family's class adds its own features.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from merino_edge.families.geometry import Biased, EqualLayers, Keys, UniformGeometry, facts_by, words_by
from merino_edge.families.graph_ops import GraphOps, Norm
from merino_edge.families.pre_norm import Decoder, Layer, Linear, build_decoder
from merino_edge.families.rotary import PART, Positive, plain_theta, rope_words, turned_channels
from merino_runtime.bundle.schema import LARGEST_LAYER, LARGEST_VOCAB, LONGEST_CONTEXT


class BiasedGeometry(EqualLayers):
    """A decoder of equal layers with LayerNorm.

    Attributes:
        norm_eps: added to the variance in LayerNorm.
    """

    BIASES: ClassVar[tuple[Biased, ...]] = ("qkv", "out", "ffn")
    POSITIONS: ClassVar[Literal["learned", "rotary"]] = "learned"

    width: Annotated[int, Field(ge=8, le=65_536)]
    layers: Annotated[int, Field(ge=1, le=1024)]
    heads: Annotated[int, Field(ge=1, le=LARGEST_LAYER)]
    ffn_width: Annotated[int, Field(ge=8, le=1_048_576)]
    vocab: Annotated[int, Field(ge=2, le=LARGEST_VOCAB)]
    context: Annotated[int, Field(ge=2, le=LONGEST_CONTEXT)]
    norm_eps: Positive

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not split into {self.heads} heads")
        return self

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def embed_width(self) -> int:
        return self.width

    @property
    def has_tied_head(self) -> bool:
        """Return whether the head is the embedding."""
        return True

    @property
    def counts(self) -> UniformGeometry:
        return UniformGeometry(
            layers=self.layers, width=self.width, heads=self.heads, kv_heads=self.heads, head_size=self.head_size,
            ffn_width=self.ffn_width, vocab=self.vocab, context=self.context, gated=False, norm="layer",
            final_norm=True, query_key_norm=False, biases=self.BIASES, positions=self.POSITIONS, position_offset=0,
            tied=self.has_tied_head, embed_width=self.width, last_alone=True,
        )  # fmt: skip

    def layer_norm(self, at: str) -> Norm:
        return Norm(f"{at}.weight", f"{at}.bias", self.norm_eps)

    def decoder(self) -> Decoder:
        """Return what the graph builder writes."""
        raise NotImplementedError


def partly_rotated_words(keys: Keys, geometry: Any) -> dict[str, Any]:
    """Return config.json's words of a geometry of which the first `rotated` channels of each head have positions."""
    rope = rope_words(geometry.rope_theta, None, geometry.context)
    return {**words_by(keys, geometry), "rope_parameters": {**rope, PART: geometry.rotated / geometry.head_size}}


def partly_rotated_facts(keys: Keys, config: Any) -> dict[str, Any]:
    """Return the facts of such a geometry. Raise MerinoError for positions that are scaled."""
    words = config.rope_parameters
    rotated = turned_channels(words, config.hidden_size // config.num_attention_heads)
    return {**facts_by(keys, config), "rotated": rotated, "rope_theta": plain_theta(words)}


def linear(at: str) -> Linear:
    return Linear((f"{at}.weight",), (f"{at}.bias",))


def transformer_decoder(arch: BiasedGeometry, layers: Sequence[Layer]) -> Decoder:
    """Return the decoder of GPT-2 and GPT-Neo, by its tensors' names: learned positions from 0, the head is the
    embedding."""
    embedding = "transformer.wte.weight"
    return Decoder(
        embedding=embedding,
        head=embedding,
        layers=tuple(layers),
        final_norm=arch.layer_norm("transformer.ln_f"),
        positions=("transformer.wpe.weight", 0),
    )


def build_biased(graph: GraphOps, arch: BiasedGeometry) -> None:
    """Write the whole graph of any of these families: ids to logits of the last position."""
    build_decoder(graph, arch.decoder())
