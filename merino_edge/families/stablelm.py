"""StableLM 2 (arXiv 2402.17834): LLaMA's form with LayerNorm, and positions in a part of each head."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from merino_edge.families.gated import GATED, GatedGeometry, gated_family
from merino_edge.families.geometry import Keys
from merino_edge.families.llama import SILU


class StableLmArchitecture(GatedGeometry):
    """A decoder of the StableLM kind.

    Attributes:
        rotated: channels of each head that have positions, the first ones in torch.
        biased: whether queries, keys and values have biases.
    """

    NAMES: ClassVar[Keys] = {**GATED, "norm_eps": "layer_norm_eps"}
    NORM: ClassVar[Literal["layer"]] = "layer"

    rotated: Annotated[int, Field(ge=2, multiple_of=2)]
    biased: bool

    @model_validator(mode="after")
    def heads_fill_the_width(self) -> Self:
        if self.heads * self.head_size != self.width:
            raise ValueError(f"{self.heads} heads of {self.head_size} channels are not the width, {self.width}")
        return self

    @property
    def qkv_biased(self) -> bool:
        return self.biased

    @classmethod
    def facts(cls, config: Any) -> dict[str, Any]:
        return {**super().facts(config), "biased": config.use_qkv_bias}

    def words(self) -> dict[str, Any]:
        return {**super().words(), "use_qkv_bias": self.biased}


SUPPORTED = {**SILU, "use_parallel_residual": False, "qk_layernorm": False}
FAMILY = gated_family("stablelm", StableLmArchitecture, "StableLm", SUPPORTED, ("use_qkv_bias", "hidden_dropout"))
