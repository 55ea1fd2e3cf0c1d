"""The definition of a model family: each is one file beside this one, with a `FAMILY` that the registry lists.

Importing a family loads neither torch nor transformers: its classes there are loaded when a model is built or read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any, NamedTuple

from merino_edge.families.geometry import Geometry
from merino_edge.families.graph_ops import GraphBuilder
from merino_edge.families.weights import KeyOrder, LayoutOf


class Loader(NamedTuple):
    """A file beside the weights, for `from_pretrained(folder, trust_remote_code=True)` without importing merino_edge.

    `classes`: those that it defines, by transformers' auto class.
    """

    module: str
    classes: Mapping[str, str]
    source: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family.

    Attributes:
        name: `family` in bundle.json, `model_type` in config.json.
        geometry: its pydantic model, which also lists the operators.
        build_graph: writes the graph of a geometry, with weights named as in the state dict of the torch model.
        config_name, model_name: the classes in transformers' form, which `module` has.
        supported: keys of config.json that must have this value: the graph builder has no other variant.
        keys: further keys of config.json that are read.
        config_words: arguments of the configuration of a geometry.
        geometry_of: the geometry of such a configuration. Raise MerinoError or ValidationError for one that cannot be.
        layout: how a weight of the state dict lies in the graph.
        key_order: which channel of torch's keys the graph has at each place of a head; None if both are alike.
        loader: None if transformers itself has the family.
    """

    name: str
    geometry: type[Geometry]
    build_graph: GraphBuilder
    config_name: str
    model_name: str
    supported: Mapping[str, Any]
    keys: frozenset[str]
    config_words: Callable[[Any], dict[str, Any]]
    geometry_of: Callable[[Any], Geometry]
    module: str = "transformers"
    layout: LayoutOf = lambda *_: None
    key_order: KeyOrder = lambda _: None
    loader: Loader | None = None

    def config_of(self, geometry: Geometry, **keys: Any) -> Any:
        """transformers' configuration of a geometry; `keys` are passed on. Loads torch."""
        return self._class(self.config_name)(**{**self.config_words(geometry), **keys})

    def model_class(self) -> Any:
        """Return a transformers PreTrainedModel, registered for `AutoModelForCausalLM`. Loads torch."""
        return self._class(self.model_name)

    def declared_keys(self) -> frozenset[str]:
        """Return the keys of config.json that transformers' configuration class reads by name. Loads transformers."""
        parameters = signature(self._class(self.config_name).__init__).parameters.values()
        named = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
        return frozenset(named - {"self"})

    def _class(self, name: str) -> Any:
        return getattr(import_module(self.module), name)
