"""The model families. Adding one is a folder beside this file and a line in FAMILIES.

Imports neither torch nor transformers: those are loaded by `Family.torch_side`, when a model is built or read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from pydantic import ValidationError

from merino_edge.families.biased import BiasedGeometry, walk_biased
from merino_edge.families.gated import GatedGeometry, walk_gated
from merino_edge.families.gemma3_text.geometry import Gemma3Architecture, gemma3_layout
from merino_edge.families.geometry import Geometry
from merino_edge.families.gpt2.geometry import Gpt2Architecture, gpt2_layout
from merino_edge.families.gpt_neo.geometry import GptNeoArchitecture
from merino_edge.families.gpt_neox.geometry import GptNeoxArchitecture, gpt_neox_layout, key_order
from merino_edge.families.granite.geometry import GraniteArchitecture
from merino_edge.families.granitemoehybrid.geometry import GraniteHybridArchitecture
from merino_edge.families.graph_ops import Walk
from merino_edge.families.llama.geometry import LlamaArchitecture
from merino_edge.families.merino.geometry import Architecture
from merino_edge.families.merino.walk import walk_merino
from merino_edge.families.opt.geometry import OptArchitecture
from merino_edge.families.opt.walk import walk_opt
from merino_edge.families.pre_norm import Decoder
from merino_edge.families.qwen2.geometry import Qwen2Architecture
from merino_edge.families.qwen3.geometry import Qwen3Architecture
from merino_edge.families.weight_layout import KeyOrder, Layout, LayoutOf, alike
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
        layout: how a weight of that state dict lies in the graph.
        key_order: which channel of torch's keys the graph has at each place of a head; None where both are alike.
        model_module: see `TorchSide`.
    """

    name: str
    geometry: type[Geometry]
    walk: Walk
    layout: LayoutOf
    model_module: str
    key_order: KeyOrder = lambda _: None

    def torch_side(self) -> TorchSide:
        return cast(TorchSide, import_module(self.model_module))


def family(
    name: str, geometry: type[Geometry], walk: Walk, layout: LayoutOf = alike, key_order: KeyOrder = lambda _: None
) -> Family:
    """A family whose folder has its name."""
    return Family(name, geometry, walk, layout, f"merino_edge.families.{name}.model", key_order)


FAMILIES: Mapping[str, Family] = {
    each.name: each
    for each in (
        family("merino", Architecture, walk_merino),
        family("opt", OptArchitecture, walk_opt),
        family("llama", LlamaArchitecture, walk_gated),
        family("qwen2", Qwen2Architecture, walk_gated),
        family("qwen3", Qwen3Architecture, walk_gated),
        family("granite", GraniteArchitecture, walk_gated),
        family("granitemoehybrid", GraniteHybridArchitecture, walk_gated),
        family("gemma3_text", Gemma3Architecture, walk_gated, gemma3_layout),
        family("gpt2", Gpt2Architecture, walk_biased, gpt2_layout),
        family("gpt_neo", GptNeoArchitecture, walk_biased),
        family("gpt_neox", GptNeoxArchitecture, walk_biased, gpt_neox_layout, key_order),
    )
}


def family_of(geometry: Geometry) -> Family:
    """The family that a geometry belongs to, by its class."""
    return next(family for family in FAMILIES.values() if isinstance(geometry, family.geometry))


def layout_of(geometry: Geometry) -> Callable[[str], Layout | None]:
    """How a weight of its torch model's state dict lies in the graph, by its name."""
    return partial(family_of(geometry).layout, geometry)


def key_order_of(geometry: Geometry) -> np.ndarray | None:
    """Which channel of torch's keys the graph has at each place of a head; None where both are alike."""
    return family_of(geometry).key_order(geometry)


def decoder_of(geometry: Geometry) -> Decoder | None:
    """The names and roles of its weights, where its family has the walk of most published ones; else None."""
    return geometry.decoder() if isinstance(geometry, GatedGeometry | BiasedGeometry) else None


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
