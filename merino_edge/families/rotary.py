"""Rotary positions (RoFormer, arXiv 2104.09864): pairs of channels of a query or key, turned by angles that grow with
the position. Channel i of a head is paired with i + head_size / 2. Also their keys in config.json, both ways.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from merino_runtime.errors import MerinoError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ORIGINAL, PART = "original_max_position_embeddings", "partial_rotary_factor"
NEUTRAL = {"rope_type", "type", "rope_theta", PART}
# By kind: the keys that it needs, and those that it may have.
KINDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", ORIGINAL), ()),
    "yarn": (
        ("factor", ORIGINAL), ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (("short_factor", "long_factor", ORIGINAL), ("factor", "attention_factor")),
}  # fmt: skip


class RopeScaling(BaseModel):
    """How the frequencies were changed for longer contexts (`rope_scaling` in config.json): linear, Llama 3's, YaRN
    (arXiv 2309.00071) and LongRoPE (arXiv 2402.13753) all have this form.

    `divisors`: of the frequency of each pair. `magnitude`: factor of cos and sin.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    divisors: tuple[Positive, ...]
    magnitude: Positive = 1.0


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
    divisors = np.array(rotary.scaling.divisors, np.float32) if rotary.scaling else np.float32(1)
    angles[: len(steps)] = np.float32(rotary.theta) ** -steps / divisors
    return angles


def rotary_tables(context: int, head_size: int, rotary: Rotary) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of each position, float32 [context, head_size / 2], computed as the torch models do."""
    angles = np.arange(context, dtype=np.float32)[:, None] * frequencies(rotary, head_size)
    cos, sin = np.cos(angles), np.sin(angles)
    if rotary.scaling:
        for table in (cos, sin):
            table[:, : rotary.turned // 2] *= np.float32(rotary.scaling.magnitude)
    return cos, sin


def head_order(size: int, turned: int, *, interleaved: bool = False) -> np.ndarray | None:
    """Return which channel of a head of torch's queries and keys the graph has at each place, [size]; None if both are
    alike.

    The graph rotates a channel with the one half a head behind it. `interleaved`: torch rotates neighbors. If torch
    rotates only the first `turned` channels, their second half goes behind the middle of the head, and the other
    channels fill the rest of both halves. The attention scores are the same, and the rotary tables cover whole heads,
    which the fused attention requires in multiples of 16.
    """
    first = np.arange(turned).reshape(2, -1) if not interleaved else np.arange(turned).reshape(-1, 2).T
    still = np.arange(turned, size).reshape(2, -1)
    order = np.concatenate([first, still], axis=1).ravel()
    return None if np.array_equal(order, np.arange(size)) else order


def rope_words(theta: float, scaling: RopeScaling | None, context: int) -> dict[str, Any]:
    """Return `rope_parameters` of a configuration. The form of LongRoPE expresses every scaling."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    factors = list(scaling.divisors)
    return {
        "rope_type": "longrope", "rope_theta": theta, "short_factor": factors, "long_factor": factors, "factor": 1.0,
        "attention_factor": scaling.magnitude, ORIGINAL: context,
    }  # fmt: skip


def rope_facts(words: Mapping[str, Any], turned: int, context: int) -> dict[str, Any]:
    """Return `rope_theta`, `rope_scaling` and `context` of a geometry with `turned` rotated channels per head.

    LongRoPE has other frequencies above its original context, so such a model's context ends there. Raise MerinoError
    for a kind of scaling that is not known.
    """
    kind = words.get("rope_type", "default")
    if kind not in KINDS:
        raise MerinoError(f"rope_scaling has the type {kind!r}, known are {', '.join(KINDS)}")
    required, optional = KINDS[kind]
    unknown = {key for key, value in words.items() if value is not None} - {*required, *optional, *NEUTRAL}
    missing = [key for key in ("rope_theta", *required) if words.get(key) is None]
    if unknown or missing:
        faults = [f"{key} is {words[key]!r}, which is not known" for key in sorted(unknown)]
        faults += [f"{key} is missing" for key in missing]
        raise MerinoError(f"rope_scaling of type {kind!r}: {'; '.join(faults)}")
    theta = float(words["rope_theta"])
    if kind in ("default", "dynamic"):  # dynamic scaling begins behind the model's own context
        return {"rope_theta": theta, "rope_scaling": None, "context": context}
    divisors, magnitude = scaling_of(kind, words, turned, context)
    if kind == "longrope" and list(words["short_factor"]) != list(words["long_factor"]):
        context = min(context, int(words[ORIGINAL]))
    scaling = {"divisors": tuple(float(f"{value:.9g}") for value in divisors), "magnitude": magnitude}
    return {"rope_theta": theta, "rope_scaling": scaling, "context": context}


def scaling_of(kind: str, words: Mapping[str, Any], turned: int, context: int) -> tuple[np.ndarray, float]:
    """Return the divisor of each frequency, [turned / 2], and the factor of cos and sin."""
    half, theta, factor = turned // 2, float(words["rope_theta"]), float(words.get("factor") or 1)
    stated = words.get("attention_factor")
    if kind == "linear":
        return np.full(half, factor), 1.0
    if kind == "longrope":
        divisors = np.array(words["short_factor"], np.float64)
        if divisors.shape != (half,):
            raise MerinoError(f"rope_scaling has {divisors.size} short factors for {half} pairs")
        longer = words.get("factor") or context / words[ORIGINAL]
        magnitude = math.sqrt(1 + math.log(longer) / math.log(words[ORIGINAL])) if longer > 1 else 1.0
        return divisors, magnitude if stated is None else float(stated)
    angles = theta ** -(np.arange(0, turned, 2) / turned)
    if kind == "llama3":  # long waves are stretched by `factor`, short ones are not, those between in proportion
        low, high = words["low_freq_factor"], words["high_freq_factor"]
        if low >= high:
            raise MerinoError(f"rope_scaling has low_freq_factor {low}, which is not below high_freq_factor {high}")
        kept = np.clip((words[ORIGINAL] * angles / (2 * np.pi) - low) / (high - low), 0, 1)
        return 1 / (kept + (1 - kept) / factor), 1.0

    def pair_of(rotations: float) -> float:  # the pair that turns so often within the original context
        return turned * math.log(words[ORIGINAL] / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_of(words.get("beta_fast") or 32), pair_of(words.get("beta_slow") or 1)
    if words.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, turned - 1)
    ramp = np.clip((np.arange(half) - first) / (last - first or 0.001), 0, 1)

    def grown(scale: float = 1.0) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    by_scale = words.get("mscale") and words.get("mscale_all_dim")
    magnitude = grown(words["mscale"]) / grown(words["mscale_all_dim"]) if by_scale else grown()
    return 1 / (ramp / factor + 1 - ramp), magnitude if stated is None else float(stated)


def turned_channels(words: Mapping[str, Any], head_size: int) -> int:
    """Return the rotated channels of a head."""
    return int(head_size * (words.get(PART) or 1.0))


def plain_theta(words: Mapping[str, Any]) -> float:
    """Return `rope_theta` where no scaling is known. Raise MerinoError if there is one."""
    if words.get("rope_type", "default") != "default":
        raise MerinoError(f"rope_scaling has the type {words['rope_type']!r}, known is default")
    return float(rope_facts(words, 2, 1)["rope_theta"])
