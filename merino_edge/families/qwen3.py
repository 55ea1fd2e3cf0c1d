"""Qwen3 (arXiv 2505.09388): LLaMA's form with a norm on each head of queries and keys."""

from typing import Any, ClassVar

from merino_edge.families.family import Family
from merino_edge.families.gated import (
    FULL_ATTENTION_KEYS,
    GATED_KEYS,
    GatedGeometry,
    build_gated,
    check_full_attention,
    gated_facts,
    gated_words,
)


class Qwen3Architecture(GatedGeometry):
    """A decoder of the Qwen3 kind."""

    NORMED_HEADS: ClassVar[bool] = True


def geometry_of(config: Any) -> Qwen3Architecture:
    check_full_attention(config)
    return Qwen3Architecture(**gated_facts(config))


FAMILY = Family(
    name="qwen3",
    geometry=Qwen3Architecture,
    build_graph=build_gated,
    config_name="Qwen3Config",
    model_name="Qwen3ForCausalLM",
    supported={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
    keys=GATED_KEYS | FULL_ATTENTION_KEYS,
    config_words=gated_words,
    geometry_of=geometry_of,
)
