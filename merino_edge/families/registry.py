"""The model families. Adding one is a file beside this one and its name in FAMILIES.

Imports neither torch nor transformers: `Family` loads those when a model is built or read.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from merino_edge.families import designed, gemma, gemma3n, gpt, lfm2, llama, opt, per_layer, qwen3_5
from merino_edge.families.family import Family
from merino_edge.families.geometry import Geometry
from merino_edge.storage.faults import fault_list
from merino_runtime.errors import MerinoError

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        designed.FAMILY, opt.FAMILY, *llama.FAMILIES, *per_layer.FAMILIES, *gemma.FAMILIES, gemma3n.FAMILY,
        *gpt.FAMILIES, lfm2.FAMILY, qwen3_5.FAMILY,
    )
}  # fmt: skip


def family_of(geometry: Geometry) -> Family:
    """Return the family that a geometry belongs to, by its class."""
    return next(family for family in FAMILIES.values() if type(geometry) is family.geometry)


def read_geometry(name: str, architecture: Mapping[str, Any]) -> Geometry:
    """Return the geometry in bundle.json's `family` and `architecture`.

    Raise MerinoError for an unknown family, with those known, and for an architecture that is none of the family's.
    """
    if name not in FAMILIES:
        raise MerinoError(f"family {name!r} is not known: known are {', '.join(FAMILIES)}")
    try:
        return FAMILIES[name].geometry.model_validate(architecture)
    except ValidationError as error:
        raise MerinoError(
            f"the architecture is none of family {name}: {fault_list(error)}. Correct it, or export again"
        ) from error
