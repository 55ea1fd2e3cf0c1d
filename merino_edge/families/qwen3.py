"""Qwen3 (arXiv 2505.09388): LLaMA's form with a norm on each head of queries and keys."""

from typing import ClassVar

from merino_edge.families.gated import GatedGeometry, gated_family


class Qwen3Architecture(GatedGeometry):
    """A decoder of the Qwen3 kind."""

    NORMED_HEADS: ClassVar[bool] = True


SUPPORTED = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}
FAMILY = gated_family("qwen3", Qwen3Architecture, "Qwen3", SUPPORTED, layer_types=True)
