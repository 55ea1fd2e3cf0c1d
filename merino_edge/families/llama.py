"""LLaMA (arXiv 2302.13971) and what is built like it: SmolLM, SmolLM2, TinyLlama, Llama 3.2.

The common form of a decoder with a gated FFN, and nothing besides.
"""

from merino_edge.families.gated import GatedGeometry, gated_family


class LlamaArchitecture(GatedGeometry):
    """A decoder of the LLaMA kind."""


SUPPORTED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_interleaved": False}
FAMILY = gated_family("llama", LlamaArchitecture, "Llama", SUPPORTED)
