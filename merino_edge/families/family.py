"""The definition of a model family: each is one file beside this one, with a `FAMILY` that the registry lists.

Importing a family loads neither torch nor transformers: its classes there are loaded when a model is built or read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any

from merino_edge.families.geometry import Geometry

TRANSFORMERS = "transformers"
LOADER = "modeling_merino"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family.

    Attributes:
        name: `family` in bundle.json, `model_type` in config.json.
        geometry: its pydantic model, which also lists the operators and writes the graph.
        config_name, model_name: the classes in transformers' form.
        supported: keys of config.json that must have this value, or one of a tuple: the graph builder has no other
            variant.
        keys: further keys of config.json that are read.
        module: the one that has these classes. If it is not transformers, a checkpoint gets a file LOADER beside the
            weights, for `from_pretrained(folder, trust_remote_code=True)` without importing merino_edge.
    """

    name: str
    geometry: type[Geometry]
    config_name: str
    model_name: str
    supported: Mapping[str, Any]
    keys: frozenset[str]
    module: str = TRANSFORMERS

    def config_of(self, geometry: Geometry, **keys: Any) -> Any:
        """transformers' configuration of a geometry; `keys` are passed on. Loads torch."""
        return self._class(self.config_name)(**{**geometry.words(), **keys})

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
