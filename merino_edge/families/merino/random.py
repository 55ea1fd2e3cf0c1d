"""A decoder with random weights from a bundle's description: what a comparison of engines runs in transformers."""

from collections.abc import Mapping
from typing import Any

from merino_edge.families.merino.architecture import Architecture
from merino_edge.families.merino.model import MerinoConfig, MerinoForCausalLM


def random_decoder(architecture: Mapping[str, Any]) -> MerinoForCausalLM:
    """`architecture` as bundle.json has it. The caller seeds torch."""
    return MerinoForCausalLM(MerinoConfig.from_architecture(Architecture.model_validate(architecture)))
