"""LLaMA (arXiv 2302.13971) and the families that differ from it in one switch.

LLaMA's form: SmolLM, SmolLM2, TinyLlama, Llama 3.2, Falcon 3. Qwen2 (arXiv 2407.10671) and Qwen2.5 have biases on
queries, keys and values. Qwen3 (arXiv 2505.09388) norms each head of queries and keys. ERNIE 4.5 rotates neighboring
channels. OLMo 2 (arXiv 2501.00656) norms all heads together, and its other norms stand behind attention and FFN.
"""

from typing import ClassVar, Literal

from merino_edge.families.gated import FULL_ATTENTION_KEYS, GatedGeometry, gated_family


class LlamaArchitecture(GatedGeometry):
    """A decoder of the LLaMA kind."""


class Qwen2Architecture(GatedGeometry):
    """A decoder of the Qwen2 kind."""

    QKV_BIAS: ClassVar[bool] = True


class Qwen3Architecture(GatedGeometry):
    """A decoder of the Qwen3 kind."""

    NORMED_HEADS: ClassVar[bool] = True


class Ernie45Architecture(GatedGeometry):
    """A decoder of the ERNIE 4.5 kind."""

    INTERLEAVED: ClassVar[bool] = True


class Olmo2Architecture(GatedGeometry):
    """A decoder of the OLMo 2 kind."""

    NORMED_HEADS: ClassVar[Literal["whole"]] = "whole"
    NORMS: ClassVar[Literal["behind"]] = "behind"


SILU = {"hidden_act": "silu"}
NO_BIAS = {**SILU, "attention_bias": False}
NO_WINDOW = {"use_sliding_window": False}
FAMILIES = (
    gated_family("llama", LlamaArchitecture, "Llama", {**NO_BIAS, "mlp_bias": False, "rope_interleaved": False}),
    gated_family("qwen2", Qwen2Architecture, "Qwen2", {**SILU, **NO_WINDOW}, FULL_ATTENTION_KEYS),
    gated_family("qwen3", Qwen3Architecture, "Qwen3", {**NO_BIAS, **NO_WINDOW}, FULL_ATTENTION_KEYS),
    gated_family("ernie4_5", Ernie45Architecture, "Ernie4_5", {**SILU, "use_bias": False}),
    gated_family("olmo2", Olmo2Architecture, "Olmo2", NO_BIAS),
)
