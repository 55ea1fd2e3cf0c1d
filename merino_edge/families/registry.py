"""The model families. Adding one is a file beside this one and its name in FAMILIES.

Imports neither torch nor transformers: `Family` loads those when a model is built or read.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from pydantic import ValidationError

from merino_edge.families import (
    bloom,
    designed,
    gemma,
    gemma3n,
    gpt2,
    gpt_neo,
    gpt_neox,
    granite,
    hunyuan,
    lfm2,
    llama,
    opt,
    per_layer,
    phi,
    phi3,
    qwen3_5,
    stablelm,
)
from merino_edge.families.biased import BiasedGeometry, build_biased
from merino_edge.families.family import Family
from merino_edge.families.gated import GatedGeometry, build_gated
from merino_edge.families.geometry import Geometry
from merino_edge.families.pre_norm import Decoder
from merino_edge.families.weights import Layout
from merino_edge.storage.faults import fault_list
from merino_runtime.errors import MerinoError

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        designed.FAMILY, opt.FAMILY, *llama.FAMILIES, *per_layer.FAMILIES, *granite.FAMILIES, *gemma.FAMILIES,
        gemma3n.FAMILY, phi3.FAMILY, stablelm.FAMILY, hunyuan.FAMILY, gpt2.FAMILY, gpt_neo.FAMILY, gpt_neox.FAMILY,
        phi.FAMILY, bloom.FAMILY, lfm2.FAMILY, qwen3_5.FAMILY,
    )
}  # fmt: skip


def family_of(geometry: Geometry) -> Family:
    """Return the family that a geometry belongs to, by its class."""
    return next(family for family in FAMILIES.values() if type(geometry) is family.geometry)


def layout_of(geometry: Geometry) -> Callable[[str], Layout | None]:
    """Return how a weight of its torch model's state dict lies in the graph, by its name."""
    return partial(family_of(geometry).layout, geometry)


def key_order_of(geometry: Geometry) -> np.ndarray | None:
    """Return which channel of torch's keys the graph has at each place of a head; None if both are alike."""
    return family_of(geometry).key_order(geometry)


def decoder_of(geometry: Geometry) -> Decoder | None:
    """Return the names and roles of its weights, if its family has the graph builder of most published ones; else None.
    """
    shared = family_of(geometry).build_graph in (build_gated, build_biased)
    return geometry.decoder() if shared and isinstance(geometry, GatedGeometry | BiasedGeometry) else None


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
