"""The decoder in transformers' own form; importing it registers it, so that `AutoModelForCausalLM` loads it."""

from transformers import AutoConfig, AutoModelForCausalLM

from merino_edge.families.merino.configuration import MerinoConfig
from merino_edge.families.merino.modeling import MerinoForCausalLM

AutoConfig.register("merino", MerinoConfig, exist_ok=True)
AutoModelForCausalLM.register(MerinoConfig, MerinoForCausalLM, exist_ok=True)

__all__ = ["MerinoConfig", "MerinoForCausalLM"]
