"""The geometry of Granite (arXiv 2408.13359 has its multipliers): LLaMA's form with four of them."""

from merino_edge.families.multiplied import MultipliedGeometry


class GraniteArchitecture(MultipliedGeometry):
    """A decoder of the Granite kind."""
