"""The geometry of Qwen2 (arXiv 2407.10671): LLaMA's form with biases on queries, keys and values."""

from typing import ClassVar

from merino_edge.families.gated import GatedGeometry


class Qwen2Architecture(GatedGeometry):
    """A decoder of the Qwen2 kind."""

    QKV_BIAS: ClassVar[bool] = True
