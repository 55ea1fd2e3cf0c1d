"""LLaMA (arXiv 2302.13971) and what is built like it: SmolLM, SmolLM2, TinyLlama, Llama 3.2.

The common form of a decoder with a gated FFN, and nothing besides.
"""

from typing import Any

from merino_edge.families.family import Family
from merino_edge.families.gated import GATED_KEYS, GatedGeometry, build_gated, gated_facts, gated_words


class LlamaArchitecture(GatedGeometry):
    """A decoder of the LLaMA kind."""


def geometry_of(config: Any) -> LlamaArchitecture:
    return LlamaArchitecture(**gated_facts(config))


FAMILY = Family(
    name="llama",
    geometry=LlamaArchitecture,
    build_graph=build_gated,
    config_name="LlamaConfig",
    model_name="LlamaForCausalLM",
    supported={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_interleaved": False},
    keys=GATED_KEYS,
    config_words=gated_words,
    geometry_of=geometry_of,
)
