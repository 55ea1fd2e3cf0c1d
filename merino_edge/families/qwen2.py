"""Qwen2 (arXiv 2407.10671) and Qwen2.5 (arXiv 2412.15115): LLaMA's form with biases on queries, keys and values."""

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


class Qwen2Architecture(GatedGeometry):
    """A decoder of the Qwen2 kind."""

    QKV_BIAS: ClassVar[bool] = True


def geometry_of(config: Any) -> Qwen2Architecture:
    check_full_attention(config)
    return Qwen2Architecture(**gated_facts(config))


FAMILY = Family(
    name="qwen2",
    geometry=Qwen2Architecture,
    build_graph=build_gated,
    config_name="Qwen2Config",
    model_name="Qwen2ForCausalLM",
    supported={"hidden_act": "silu", "use_sliding_window": False},
    keys=GATED_KEYS | FULL_ATTENTION_KEYS,
    config_words=gated_words,
    geometry_of=geometry_of,
)
