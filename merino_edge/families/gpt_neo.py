"""GPT-Neo (EleutherAI 2021), as TinyStories (arXiv 2305.07759) has it.

GPT-2's form with layers of sliding-window attention. Queries, keys and values have no biases, and the attention scores
are not scaled.
"""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from merino_edge.families.biased import BiasedGeometry, build_biased, linear, transformer_decoder
from merino_edge.families.family import Family
from merino_edge.families.geometry import Biased, Keys, facts_by, words_by
from merino_edge.families.graph_ops import Attention, KvLayer
from merino_edge.families.pre_norm import Decoder, Layer, Linear
from merino_runtime.bundle.schema import LONGEST_CONTEXT
from merino_runtime.errors import MerinoError

KEYS: Keys = {
    "width": "hidden_size", "layers": "num_layers", "heads": "num_heads", "vocab": "vocab_size",
    "context": "max_position_embeddings", "norm_eps": "layer_norm_epsilon", "window": "window_size",
}  # fmt: skip


class GptNeoArchitecture(BiasedGeometry):
    """A decoder of the GPT-Neo kind.

    Attributes:
        window: positions that a layer with a window sees, its own included.
        windowed: of each layer, whether it has the window; the others see all positions.
    """

    BIASES: ClassVar[tuple[Biased, ...]] = ("out", "ffn")

    window: Annotated[int, Field(ge=1, le=LONGEST_CONTEXT)]
    windowed: tuple[bool, ...]

    @model_validator(mode="after")
    def _of_each_layer(self) -> Self:
        if len(self.windowed) != self.layers:
            raise ValueError(f"windowed has {len(self.windowed)} entries for {self.layers} layers")
        return self

    def layer_of(self, layer: int) -> Layer:
        at = f"transformer.h.{layer}"
        mixing = f"{at}.attn.attention"
        return Layer(
            cache=KvLayer(layer, self.heads, self.head_size),
            attention=Attention(self.heads, 1.0, None, self.window if self.windowed[layer] else None),
            attention_norm=self.layer_norm(f"{at}.ln_1"),
            qkv=Linear(tuple(f"{mixing}.{part}_proj.weight" for part in "qkv")),
            out=linear(f"{mixing}.out_proj"),
            ffn_norm=self.layer_norm(f"{at}.ln_2"),
            up=linear(f"{at}.mlp.c_fc"),
            down=linear(f"{at}.mlp.c_proj"),
            activation="gelu",
            gated=False,
        )

    def decoder(self) -> Decoder:
        return transformer_decoder(self, [self.layer_of(layer) for layer in range(self.layers)])


def config_words(geometry: GptNeoArchitecture) -> dict[str, Any]:
    kinds = ["local" if windowed else "global" for windowed in geometry.windowed]
    own = {"intermediate_size": geometry.ffn_width, "attention_types": [[kinds, 1]]}
    return words_by(KEYS, geometry) | own


def geometry_of(config: Any) -> GptNeoArchitecture:
    listed = config.expand_attention_types_params(config.attention_types)
    if listed != config.attention_layers:
        raise MerinoError(
            f"attention_types lists {listed}, and attention_layers is {config.attention_layers}: correct one"
        )
    windowed = tuple(kind == "local" for kind in config.attention_layers)  # transformers knows these two only
    ffn_width = config.intermediate_size or 4 * config.hidden_size
    return GptNeoArchitecture(**facts_by(KEYS, config), ffn_width=ffn_width, windowed=windowed)


FAMILY = Family(
    name="gpt_neo",
    geometry=GptNeoArchitecture,
    build_graph=build_biased,
    config_name="GPTNeoConfig",
    model_name="GPTNeoForCausalLM",
    supported={"activation_function": "gelu_new", "tie_word_embeddings": True},
    keys=frozenset(KEYS.values()) | {
        "intermediate_size", "attention_types", "attention_layers", "embed_dropout", "resid_dropout",
        "gradient_checkpointing", "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
        "summary_first_dropout",
    },
    config_words=config_words,
    geometry_of=geometry_of,
)  # fmt: skip
