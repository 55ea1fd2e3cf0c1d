"""Phi-3 (arXiv 2404.14219) and Phi-4-mini (arXiv 2503.01743): LLaMA's form with packed matrices, a window, and LongRoPE
over a part of each head.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from merino_edge.families.gated import WindowedGeometry, gated_family, in_heads
from merino_edge.families.llama import SILU
from merino_edge.families.pre_norm import Layer, Linear
from merino_edge.families.rotary import ORIGINAL
from merino_edge.families.weights import Layout, permuted


class Phi3Architecture(WindowedGeometry):
    """A decoder of the Phi-3 kind. `rotated`: channels of each head that have positions, the first ones in torch."""

    LISTED: ClassVar[bool] = False

    rotated: Annotated[int, Field(ge=2, multiple_of=2)]

    @classmethod
    def rope_of(cls, config: Any) -> dict[str, Any]:
        words = super().rope_of(config)
        long = words.get("rope_type") == "longrope"
        return {ORIGINAL: config.original_max_position_embeddings, **words} if long else words

    def layer_of(self, layer: int) -> Layer:
        at = f"model.layers.{layer}"
        qkv, up = Linear((f"{at}.self_attn.qkv_proj.weight",)), Linear((f"{at}.mlp.gate_up_proj.weight",))
        return replace(super().layer_of(layer), qkv=qkv, up=up)

    def layout(self, name: str) -> Layout | None:
        order = self.key_order()
        if order is None or "qkv_proj" not in name:
            return None
        turned, values = self.heads + self.kv_heads, self.kv_heads * self.head_size
        return permuted(np.concatenate([in_heads(order, turned), turned * self.head_size + np.arange(values)]))


KEYS = (ORIGINAL, "embd_pdrop", "resid_pdrop")
FAMILY = gated_family("phi3", Phi3Architecture, "Phi3", SILU, KEYS)
