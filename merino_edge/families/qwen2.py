"""Qwen2 (arXiv 2407.10671) and Qwen2.5 (arXiv 2412.15115): LLaMA's form with biases on queries, keys and values."""

from typing import ClassVar

from merino_edge.families.gated import GatedGeometry, gated_family


class Qwen2Architecture(GatedGeometry):
    """A decoder of the Qwen2 kind."""

    QKV_BIAS: ClassVar[bool] = True


SUPPORTED = {"hidden_act": "silu", "use_sliding_window": False}
FAMILY = gated_family("qwen2", Qwen2Architecture, "Qwen2", SUPPORTED, layer_types=True)
