"""The words of config.json for rotary positions, both ways."""

from collections.abc import Mapping
from typing import Any

from merino_edge.families.rotary import RopeScaling
from merino_runtime.errors import MerinoError

ROPE_KEYS = {"default": (), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
ORIGINAL = "original_max_position_embeddings"


def rope_words(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """`rope_parameters` of a configuration."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    kept = scaling.model_dump(exclude={"kind", "original_context"})
    return {"rope_type": scaling.kind, "rope_theta": theta, ORIGINAL: scaling.original_context, **kept}


def rope_facts(words: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a geometry. Raises MerinoError for a kind of scaling that is not known."""
    kind = words.get("rope_type", "default")
    if kind not in ROPE_KEYS:
        raise MerinoError(f"rope_scaling has the type {kind!r}, known are {', '.join(ROPE_KEYS)}")
    wanted = ("rope_theta", *ROPE_KEYS[kind], *((ORIGINAL,) if ROPE_KEYS[kind] else ()))
    unknown = {key for key, value in words.items() if value is not None} - {*wanted, "rope_type", "type"}
    missing = [key for key in wanted if words.get(key) is None]
    if unknown or missing:
        said = [f"{key} is {words[key]!r}, which is not known" for key in sorted(unknown)]
        said += [f"{key} is missing" for key in missing]
        raise MerinoError(f"rope_scaling of type {kind!r}: {'; '.join(said)}")
    scaling = {key: words[key] for key in ROPE_KEYS[kind]}
    return {
        "rope_theta": words["rope_theta"],
        "rope_scaling": {"kind": kind, "original_context": words[ORIGINAL], **scaling} if scaling else None,
    }


def plain_theta(words: Mapping[str, Any]) -> float:
    """`rope_theta` where no scaling is known. Raises MerinoError where there is one."""
    facts = rope_facts(words)
    if facts["rope_scaling"]:
        raise MerinoError(f"rope_scaling has the type {words['rope_type']!r}, known is default")
    return float(facts["rope_theta"])
