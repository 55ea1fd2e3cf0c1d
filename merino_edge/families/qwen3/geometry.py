"""The geometry of Qwen3 (arXiv 2505.09388): LLaMA's form with a norm on each head of queries and keys."""

from typing import ClassVar

from merino_edge.families.gated import GatedGeometry


class Qwen3Architecture(GatedGeometry):
    """A decoder of the Qwen3 kind."""

    NORMED_HEADS: ClassVar[bool] = True
