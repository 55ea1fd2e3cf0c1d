"""MerinoConfig: an `Architecture` in the form that transformers saves as config.json."""

from typing import Any

from pydantic import ValidationError
from transformers import PreTrainedConfig

from merino_edge.families.merino.geometry import Architecture
from merino_edge.storage.faults import fault_list
from merino_runtime.errors import MerinoError


class MerinoConfig(PreTrainedConfig):
    """`Architecture` under the names that transformers and its tools look for.

    Args:
        blocks: a list of `{width, ffn_ratio, depth, shared, kv_heads}`; the last two may be absent.
        vocab_size, max_position_embeddings: `vocab` and `context`.
        head_size, rope_theta, rms_norm_eps: as in `Architecture`.

    `hidden_size`, `num_hidden_layers` and `num_attention_heads` are computed from the blocks, for tools that read them.
    Raises MerinoError for a geometry that cannot be.
    """

    model_type = "merino"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        blocks: list[dict[str, Any]] | None = None,
        vocab_size: int = 256,
        head_size: int = 32,
        max_position_embeddings: int = 256,
        rope_theta: float = 10_000.0,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = True,
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ):
        if not tie_word_embeddings:
            raise MerinoError("tie_word_embeddings is false: a MeRino decoder's head is its embedding, leave it true")
        self.blocks = [{"width": 64, "ffn_ratio": 1.0, "depth": 1, "shared": False}] if blocks is None else blocks
        self.vocab_size = vocab_size
        self.head_size = head_size
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        arch = self.architecture
        self.hidden_size = arch.blocks[-1].width
        self.num_hidden_layers = len(arch.kv_layers)
        self.num_attention_heads = self.hidden_size // head_size
        for derived in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            kwargs.pop(derived, None)
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(**kwargs)

    @property
    def architecture(self) -> Architecture:
        try:
            return Architecture.model_validate({
                "blocks": self.blocks,
                "vocab": self.vocab_size,
                "head_size": self.head_size,
                "context": self.max_position_embeddings,
                "rope_theta": self.rope_theta,
                "rms_norm_eps": self.rms_norm_eps,
            })
        except ValidationError as error:
            raise MerinoError(f"this configuration is not a decoder: {fault_list(error)}") from error

    @classmethod
    def from_architecture(cls, arch: Architecture, **kwargs: Any) -> "MerinoConfig":
        return cls(
            blocks=[block.model_dump() for block in arch.blocks],
            vocab_size=arch.vocab,
            head_size=arch.head_size,
            max_position_embeddings=arch.context,
            rope_theta=arch.rope_theta,
            rms_norm_eps=arch.rms_norm_eps,
            **kwargs,
        )
