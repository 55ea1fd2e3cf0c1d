"""The model families. Adding one is a folder beside this file and a line in FAMILIES.

Imports neither torch nor transformers: those are loaded by `Family.torch_side`, when a model is built or read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

from pydantic import ValidationError

from merino_edge.families.geometry import Geometry
from merino_edge.families.graph_ops import Walk
from merino_edge.families.llama.geometry import LlamaArchitecture
from merino_edge.families.llama.walk import walk_llama
from merino_edge.families.merino.geometry import Architecture
from merino_edge.families.merino.walk import walk_merino
from merino_edge.families.opt.geometry import OptArchitecture
from merino_edge.families.opt.walk import walk_opt
from merino_edge.storage.faults import fault_list
from merino_runtime.errors import MerinoError


class Loader(NamedTuple):
    """A file beside the weights, for `from_pretrained(folder, trust_remote_code=True)` without an import of ours.

    `classes`: those that it defines, by transformers' auto class.
    """

    module: str
    classes: Mapping[str, str]
    source: str


class TorchSide(Protocol):
    """What a family's `model` module defines. Importing it loads torch."""

    MODEL: Any  # the class, a transformers PreTrainedModel
    SUPPORTED: Mapping[str, Any]  # keys of config.json that must have this value: the walk has no other variant
    KEYS: frozenset[str]  # further keys of config.json that are read
    LOADER: Loader | None  # None where transformers itself has the family

    def config_of(self, geometry: Any, **keys: Any) -> Any:
        """transformers' configuration of a geometry; `keys` are passed on."""

    def geometry_of(self, config: Any) -> Geometry:
        """The geometry of such a configuration. Raises MerinoError or ValidationError for one that cannot be."""


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        name: `family` in bundle.json, `model_type` in config.json.
        geometry: its pydantic model, which also lists the operators.
        walk: writes the graph of a geometry, with weights named as in the state dict of the torch model.
        model_module: see `TorchSide`.
    """

    name: str
    geometry: type[Geometry]
    walk: Walk
    model_module: str

    def torch_side(self) -> TorchSide:
        return cast(TorchSide, import_module(self.model_module))


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("merino", Architecture, walk_merino, "merino_edge.families.merino.model"),
        Family("llama", LlamaArchitecture, walk_llama, "merino_edge.families.llama.model"),
        Family("opt", OptArchitecture, walk_opt, "merino_edge.families.opt.model"),
    )
}


def family_of(geometry: Geometry) -> Family:
    """The family that a geometry belongs to, by its class."""
    return next(family for family in FAMILIES.values() if isinstance(geometry, family.geometry))


def read_geometry(name: str, architecture: Mapping[str, Any]) -> Geometry:
    """The geometry in bundle.json's `family` and `architecture`.

    Raises MerinoError for an unknown family, with those known, and for an architecture that is none of the family's.
    """
    if name not in FAMILIES:
        raise MerinoError(f"family {name!r} is not known: known are {', '.join(FAMILIES)}")
    try:
        return FAMILIES[name].geometry.model_validate(architecture)
    except ValidationError as error:
        raise MerinoError(f"the architecture is none of family {name}: {fault_list(error)}") from error
