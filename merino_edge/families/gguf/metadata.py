"""The metadata of a GGUF: counts and numbers of its architecture, checked when they are read, and rotary positions.

A key that is not read and not neutral may change the logits, so it is an error. Also the ids and the vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from merino_edge.families.checkpoint import CHOOSE
from merino_edge.families.gguf.blocks import weights_of
from merino_edge.families.gguf.file import AGAIN, GgufFile, checked_value, shown
from merino_runtime.errors import MerinoError

ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
LARGEST = 1 << 40

# Keys that change no token, and their allowed value; None: any. Another key of the architecture that is not read and is
# not 0 may change the logits, so the file is refused.
NEUTRAL: Mapping[str, Any] = {
    "vocab_size": None, "expert_used_count": None, "rope.scaling.finetuned": None,
    "rope.dimension_sections": None,  # of Qwen2-VL; all sections have the same positions in text
    "attention.causal": True, "embedding_scale": 1, "residual_scale": 1, "logit_scale": 1,
    "rope.scaling.attn_factor": 1,
}  # fmt: skip


class Metadata(NamedTuple):
    """The keys of the file's architecture, without its name before them. `read`: those that were read so far."""

    file: GgufFile
    architecture: str
    read: set[str]

    def value(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return self.file.metadata.get(f"{self.architecture}.{key}", default)

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.file.metadata

    def count(self, key: str, default: int | None = None) -> int:
        return int(self._checked(key, lambda v: type(v) is int and 0 < v < LARGEST, "an integer above 0", default))

    def same_count(self, key: str, default: int | None = None) -> int:
        """Return a count that may be a list with an entry per layer, which then must be equal."""
        stored = self.value(key)
        if isinstance(stored, list | np.ndarray):
            counts = stored if isinstance(stored, np.ndarray) and stored.dtype.kind in "iu" else np.zeros(1)
            if len(set(counts.tolist())) != 1 or counts[0] < 1:
                raise MerinoError(
                    f"{self.file.path}: {self.architecture}.{key} is {shown(stored)}: exported are models of equal"
                    " layers"
                )
            return int(counts[0])
        return self.count(key, default)

    def real(self, key: str, default: float | None = None) -> float:
        def judge(value: Any) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e30

        return rounded(float(self._checked(key, judge, "a number above 0", default)))

    def _checked(self, key: str, judge: Callable[[Any], bool], allowed: str, default: Any) -> Any:
        self.read.add(key)
        return checked_value(self.file.metadata, f"{self.architecture}.{key}", judge, allowed, default)

    def tensor(self, name: str) -> bool:
        return name in self.file.tensors

    def rows(self, name: str) -> int:
        """Return the rows of a matrix that must be there."""
        if not self.tensor(name):
            raise MerinoError(f"{self.file.path} lacks {name}, which a {self.architecture} has. {AGAIN}")
        return int(self.file.tensors[name].shape[0])

    def refuse_others(self) -> None:
        """Raise MerinoError for keys that were not read and are not neutral, all at once."""
        begin = f"{self.architecture}."
        own = {key[len(begin) :]: value for key, value in self.file.metadata.items() if key.startswith(begin)}
        wrong = [
            f"{begin}{key} is {shown(value)}" for key, value in own.items()
            if key not in self.read and not is_neutral(key, value)
        ]  # fmt: skip
        if wrong:
            raise MerinoError(
                f"{self.file.path} is a variant of {self.architecture} that is not exported: {'; '.join(wrong)}."
                f" {CHOOSE}"
            )


def is_neutral(key: str, value: Any) -> bool:
    if key in NEUTRAL:
        return NEUTRAL[key] is None or isinstance(value, int | float) and value == NEUTRAL[key]
    return isinstance(value, int | float) and value == 0


def rounded(value: float) -> float:
    """Stored in float32, written in decimals: 9.999999747e-06 was 1e-05."""
    return float(f"{value:.7g}")


def rotary(metadata: Metadata, default: float = 10000.0) -> dict[str, Any]:
    """Return `rope_parameters`: the scaling is in tensors with a divisor per frequency, or in the metadata.

    Raise MerinoError for a kind of scaling that is not known. As in llama.cpp it is linear where none is stated.
    """
    kind = metadata.value("rope.scaling.type", "linear")
    factor = max(metadata.value(key, 0) or 0 for key in ("rope.scaling.factor", "rope.scale_linear"))
    original, context = metadata.value("rope.scaling.original_context_length"), metadata.count("context_length")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": metadata.real("rope.freq_base", default)}
    long = metadata.tensor(LONG_FACTORS["long_factor"])
    tensors = LONG_FACTORS if long else dict.fromkeys(LONG_FACTORS, ROPE_FACTORS)
    if metadata.tensor(tensors["long_factor"]):
        factors = {key: weights_of(metadata.file, name).reshape(-1).tolist() for key, name in tensors.items()}
        magnitude = metadata.real("rope.scaling.attn_factor", 1.0)
        if magnitude == 1 and set(factors["long_factor"]) == {1.0} == set(factors["short_factor"]):
            return rope
        return {
            **rope, "rope_type": "longrope", **{key: list(map(rounded, values)) for key, values in factors.items()},
            "factor": 1.0, "attention_factor": magnitude, "original_max_position_embeddings": original or context,
        }  # fmt: skip
    if kind == "none" or factor in (0, 1):
        return rope
    if kind == "linear":
        return {**rope, "rope_type": "linear", "factor": rounded(factor)}
    if kind == "yarn" and original:
        return {**rope, "rope_type": "yarn", "factor": rounded(factor), "original_max_position_embeddings": original}
    raise MerinoError(
        f"{metadata.file.path}: {metadata.architecture}.rope.scaling.type is {shown(kind)}: exported are linear, and"
        " yarn with its original_context_length"
    )


def vocabulary(metadata: Metadata) -> int:
    """Return rows of the embedding. The list of tokens may be shorter, where the embedding is padded."""
    place = metadata.file.tensors.get("token_embd.weight")
    if place is None or len(place.shape) != 2:
        raise MerinoError(f"{metadata.file.path} has no token_embd.weight: give a model that generates text")
    rows = place.shape[0]
    tokens = metadata.file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > rows:
        raise MerinoError(f"{metadata.file.path} has {len(tokens):,} tokens and an embedding of {rows:,} rows. {AGAIN}")
    return rows
