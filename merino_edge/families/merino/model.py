"""The decoder in transformers' form. Importing this module registers it for `AutoModelForCausalLM`."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from merino_edge.families.merino.configuration import MerinoConfig
from merino_edge.families.merino.geometry import Architecture
from merino_edge.families.merino.modeling import MerinoForCausalLM

MODEL = MerinoForCausalLM
SUPPORTED: Mapping[str, Any] = {}  # MerinoConfig itself refuses what cannot be

AutoConfig.register(MerinoConfig.model_type, MerinoConfig, exist_ok=True)
AutoModelForCausalLM.register(MerinoConfig, MerinoForCausalLM, exist_ok=True)


def config_of(geometry: Architecture, **keys: Any) -> MerinoConfig:
    return MerinoConfig.from_architecture(geometry, **keys)


def geometry_of(config: MerinoConfig) -> Architecture:
    return config.architecture
