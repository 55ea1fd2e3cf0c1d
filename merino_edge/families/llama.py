"""LLaMA, and the families that differ from it in a few switches."""

from typing import Any, ClassVar

from pydantic import BaseModel

from merino_edge.families.equal_layers import GatedGeometry, Rotated, family
from merino_edge.families.geometry import Keys
from merino_edge.families.pre_norm import LLAMA, NORMS_BEHIND
from merino_edge.families.rotary import Positive


class LlamaArchitecture(GatedGeometry):
    """LLaMA (arXiv 2302.13971), SmolLM, SmolLM2, TinyLlama, Llama 3.2, Falcon 3."""


class Qwen2Architecture(GatedGeometry):
    """Qwen2 (arXiv 2407.10671) and Qwen2.5: biases on queries, keys and values."""

    BIASES = ("qkv",)


class Qwen3Architecture(GatedGeometry):
    """Qwen3 (arXiv 2505.09388): norms of each head of queries and keys."""

    NORMED_HEADS = True


class Ernie45Architecture(GatedGeometry):
    """ERNIE 4.5: rotates neighboring channels."""

    INTERLEAVED = True


class Olmo2Architecture(GatedGeometry):
    """OLMo 2 (arXiv 2501.00656): norms all heads together, and its other norms stand behind attention and FFN."""

    NORMED_HEADS = "whole"
    WEIGHTS = NORMS_BEHIND


class HunyuanArchitecture(GatedGeometry):
    """Hunyuan dense (Tencent): norms heads behind the rotation, and a fixed `alpha` stretches its rotary base."""

    NORMED_HEADS = True
    NORM_ROTATED = True
    WEIGHTS = LLAMA._replace(query_norm="self_attn.query_layernorm", key_norm="self_attn.key_layernorm")

    @classmethod
    def rope_of(cls, config: Any) -> dict[str, Any]:
        words = super().rope_of(config)
        if words.get("rope_type") == "dynamic" and words.get("alpha"):
            size = config.head_dim
            theta = words["rope_theta"] * words["alpha"] ** (size / (size - 2))
            return {"rope_type": "default", "rope_theta": theta}
        return words


class StableLmArchitecture(GatedGeometry):
    """StableLM 2 (arXiv 2402.17834): LayerNorm, and positions in a part of each head.

    Attributes:
        rotated: channels of each head that have positions, the first ones in torch.
        biased: whether queries, keys and values have biases.
    """

    KEYS = {**GatedGeometry.KEYS, "norm_eps": "layer_norm_eps", "biased": "use_qkv_bias"}
    NORM = "layer"

    rotated: Rotated
    biased: bool

    @property
    def biases(self) -> tuple[str, ...]:
        return ("qkv",) if self.biased else ()


class Multipliers(BaseModel):
    """Fields of `GatedGeometry` with factors.

    Attributes:
        embedding_factor, residual_factor: on the embedding, and on what a sublayer adds to the residual.
        attention_scale: factor of the attention scores, instead of 1 / sqrt(head_size).
        logits_divisor: of the logits.
    """

    KEYS: ClassVar[Keys] = {
        **GatedGeometry.KEYS, "embedding_factor": "embedding_multiplier", "residual_factor": "residual_multiplier",
        "attention_scale": "attention_multiplier", "logits_divisor": "logits_scaling",
    }  # fmt: skip

    embedding_factor: Positive
    residual_factor: Positive
    attention_scale: Positive
    logits_divisor: Positive


class GraniteArchitecture(Multipliers, GatedGeometry):
    """Granite 3 (arXiv 2408.13359)."""


class GraniteHybridArchitecture(Multipliers, GatedGeometry):
    """Granite 4.0, if all layers are attention and the FFN is one, as in the smallest models."""

    KEYS = {**Multipliers.KEYS, "ffn_width": "shared_intermediate_size"}
    WEIGHTS = LLAMA._replace(up="shared_mlp.input_linear", down="shared_mlp.output_linear")

    def words(self) -> dict[str, Any]:
        return {
            **super().words(), "num_local_experts": 0, "layer_types": ["full_attention"] * self.layers,
            "position_embedding_type": "rope",
            "mamba_n_heads": 1,  # transformers requires a divisor of twice the width, without Mamba layers too
        }  # fmt: skip


SILU = {"hidden_act": "silu"}
NO_BIAS = {**SILU, "attention_bias": False}
NO_BIASES = {**NO_BIAS, "mlp_bias": False}
NO_WINDOW = {"use_sliding_window": False}
FULL_ATTENTION_KEYS = ("layer_types", "sliding_window", "max_window_layers")  # with use_sliding_window false
# Keys of Granite's Mamba layers and experts, which are not read.
UNUSED = (
    "mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv", "mamba_expand",
    "mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias", "time_step_limit", "num_experts_per_tok",
    "output_router_logits", "router_aux_loss_coef", "init_method", "layer_types", "layers_block_type",
    "intermediate_size",
)  # fmt: skip
ONLY_ATTENTION = {"num_local_experts": 0, "position_embedding_type": "rope", "normalization_function": "rmsnorm"}
FAMILIES = (
    family("llama", LlamaArchitecture, "Llama", {**NO_BIASES, "rope_interleaved": False}),
    family("qwen2", Qwen2Architecture, "Qwen2", {**SILU, **NO_WINDOW}, FULL_ATTENTION_KEYS),
    family("qwen3", Qwen3Architecture, "Qwen3", {**NO_BIAS, **NO_WINDOW}, FULL_ATTENTION_KEYS),
    family("ernie4_5", Ernie45Architecture, "Ernie4_5", {**SILU, "use_bias": False}),
    family("olmo2", Olmo2Architecture, "Olmo2", NO_BIAS),
    family("hunyuan_v1_dense", HunyuanArchitecture, "HunYuanDenseV1", NO_BIAS),
    family(
        "stablelm", StableLmArchitecture, "StableLm", {**SILU, "use_parallel_residual": False, "qk_layernorm": False},
    ),
    family("granite", GraniteArchitecture, "Granite", NO_BIASES),
    family("granitemoehybrid", GraniteHybridArchitecture, "GraniteMoeHybrid", {**NO_BIAS, **ONLY_ATTENTION}, UNUSED),
)  # fmt: skip
