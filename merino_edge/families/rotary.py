"""Rotary positions (RoFormer, arXiv 2104.09864): pairs of channels of a query or key, turned by angles that grow with
the position. Channel i of a head is paired with i + head_size / 2. Also their keys in config.json, both ways.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from merino_runtime.errors import MerinoError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ROPE_KEYS = {"default": (), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
ORIGINAL = "original_max_position_embeddings"


class RopeScaling(BaseModel):
    """How the frequencies of Llama 3.1 and later were changed for longer contexts (`rope_scaling` in config.json).

    Frequencies whose wavelength is above `original_context / low_freq_factor` positions are divided by `factor`, those
    below `original_context / high_freq_factor` stay, and those in between change linearly from the one to the other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["llama3"]
    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_context: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(f"low_freq_factor {self.low_freq_factor} is not below {self.high_freq_factor}, the high")
        return self


@dataclass(frozen=True)
class Rotary:
    """The parameters of the angles. `turned`: rotated channels of a head, an even number; the other pairs have angle 0.
    """

    theta: float
    turned: int
    scaling: RopeScaling | None = None


def frequencies(rotary: Rotary, head_size: int) -> np.ndarray:
    """Angle per position of each pair, float32 [head_size / 2], computed as the torch models do."""
    steps = np.arange(0, rotary.turned, 2, dtype=np.float32) / rotary.turned
    angles = np.zeros(head_size // 2, np.float32)
    angles[: len(steps)] = scaled(np.float32(rotary.theta) ** -steps, rotary.scaling)
    return angles


def rotary_tables(context: int, head_size: int, rotary: Rotary) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of each position, float32 [context, head_size / 2], computed as the torch models do."""
    angles = np.arange(context, dtype=np.float32)[:, None] * frequencies(rotary, head_size)
    return np.cos(angles), np.sin(angles)


def scaled(angles: np.ndarray, scaling: RopeScaling | None) -> np.ndarray:
    """Frequencies after `scaling`."""
    if scaling is None:
        return angles
    turns = scaling.original_context * angles / (2 * np.pi)  # in the original context
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0, 1)
    return (angles * (kept + (1 - kept) / scaling.factor)).astype(np.float32)


def rope_words(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """Return `rope_parameters` of a configuration."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    kept = scaling.model_dump(exclude={"kind", "original_context"})
    return {"rope_type": scaling.kind, "rope_theta": theta, ORIGINAL: scaling.original_context, **kept}


def rope_facts(words: Mapping[str, Any]) -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling` of a geometry. Raise MerinoError for a kind of scaling that is not known.
    """
    kind = words.get("rope_type", "default")
    if kind not in ROPE_KEYS:
        raise MerinoError(f"rope_scaling has the type {kind!r}, known are {', '.join(ROPE_KEYS)}")
    required = ("rope_theta", *ROPE_KEYS[kind], *((ORIGINAL,) if ROPE_KEYS[kind] else ()))
    unknown = {key for key, value in words.items() if value is not None} - {*required, "rope_type", "type"}
    missing = [key for key in required if words.get(key) is None]
    if unknown or missing:
        faults = [f"{key} is {words[key]!r}, which is not known" for key in sorted(unknown)]
        faults += [f"{key} is missing" for key in missing]
        raise MerinoError(f"rope_scaling of type {kind!r}: {'; '.join(faults)}. Correct it")
    scaling = {key: words[key] for key in ROPE_KEYS[kind]}
    return {
        "rope_theta": words["rope_theta"],
        "rope_scaling": {"kind": kind, "original_context": words[ORIGINAL], **scaling} if scaling else None,
    }


def plain_theta(words: Mapping[str, Any]) -> float:
    """Return `rope_theta` where no scaling is known. Raise MerinoError if there is one."""
    facts = rope_facts(words)
    if facts["rope_scaling"]:
        raise MerinoError(f"rope_scaling has the type {words['rope_type']!r}, known is default")
    return float(facts["rope_theta"])
