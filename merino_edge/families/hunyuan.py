"""Hunyuan dense (Tencent, 0.5B to 7B): LLaMA's form with a norm on each head of queries and keys behind the rotation.
A fixed `alpha` stretches its rotary base.
"""

from dataclasses import replace
from typing import Any, ClassVar

from merino_edge.families.gated import GatedGeometry, gated_family
from merino_edge.families.graph_ops import Attention
from merino_edge.families.llama import NO_BIAS


class HunyuanArchitecture(GatedGeometry):
    """A decoder of the Hunyuan kind."""

    NORMED_HEADS: ClassVar[bool] = True
    HEAD_NORMS: ClassVar[tuple[str, str]] = ("query_layernorm", "key_layernorm")

    @classmethod
    def rope_of(cls, config: Any) -> dict[str, Any]:
        words = dict(config.rope_parameters)
        if words.get("rope_type") == "dynamic" and words.get("alpha"):
            size = config.head_dim
            theta = words["rope_theta"] * words["alpha"] ** (size / (size - 2))
            return {"rope_type": "default", "rope_theta": theta}
        return words

    def attention_of(self, layer: int) -> Attention:
        return replace(super().attention_of(layer), norm_rotated=True)


FAMILY = gated_family("hunyuan_v1_dense", HunyuanArchitecture, "HunYuanDenseV1", NO_BIAS)
