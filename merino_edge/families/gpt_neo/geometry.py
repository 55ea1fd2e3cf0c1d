"""The geometry of GPT-Neo (EleutherAI 2021): GPT-2's form with layers that look back a window only.

Queries, keys and values have no biases, and their products are not scaled.
"""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from merino_edge.families.biased import BiasedGeometry, transformer_decoder
from merino_edge.families.graph_ops import Attention, KvLayer
from merino_edge.families.pre_norm import Decoder, Layer, Linear
from merino_edge.families.uniform import Biased
from merino_runtime.bundle_schema import LONGEST_CONTEXT


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
            out=Linear((f"{mixing}.out_proj.weight",), (f"{mixing}.out_proj.bias",)),
            ffn_norm=self.layer_norm(f"{at}.ln_2"),
            up=Linear((f"{at}.mlp.c_fc.weight",), (f"{at}.mlp.c_fc.bias",)),
            down=Linear((f"{at}.mlp.c_proj.weight",), (f"{at}.mlp.c_proj.bias",)),
            activation="gelu",
            gated=False,
        )

    def decoder(self) -> Decoder:
        return transformer_decoder(self, [self.layer_of(layer) for layer in range(self.layers)])
