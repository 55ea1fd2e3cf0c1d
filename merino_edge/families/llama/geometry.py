"""The geometry of LLaMA (arXiv 2302.13971): the common form of a decoder with a gated FFN, and nothing besides."""

from merino_edge.families.gated import GatedGeometry


class LlamaArchitecture(GatedGeometry):
    """A decoder of the LLaMA kind."""
