"""The decoder in transformers' form. Importing this module registers it for `AutoModelForCausalLM`."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from merino_edge.families.merino.configuration import MerinoConfig
from merino_edge.families.merino.geometry import Architecture
from merino_edge.families.merino.modeling import MerinoForCausalLM
from merino_edge.families.registry import Loader

MODEL = MerinoForCausalLM
SUPPORTED: Mapping[str, Any] = {}  # MerinoConfig itself refuses what cannot be
KEYS = frozenset({
    "blocks", "vocab_size", "head_size", "max_position_embeddings", "rope_theta", "rms_norm_eps", "hidden_size",
    "num_hidden_layers", "num_attention_heads", "tie_word_embeddings", "rope_parameters",
})  # fmt: skip
LOADER = Loader(
    "modeling_merino",
    {"AutoConfig": "MerinoConfig", "AutoModelForCausalLM": "MerinoForCausalLM"},
    '''"""For transformers: `AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)` runs this file.

It needs the package merino_edge. After `import merino_edge.families.hugging_face` trust_remote_code is not needed.
"""

from merino_edge.families.merino.configuration import MerinoConfig
from merino_edge.families.merino.modeling import MerinoForCausalLM

__all__ = ["MerinoConfig", "MerinoForCausalLM"]
''',
)

AutoConfig.register(MerinoConfig.model_type, MerinoConfig, exist_ok=True)
AutoModelForCausalLM.register(MerinoConfig, MerinoForCausalLM, exist_ok=True)


def config_of(geometry: Architecture, **keys: Any) -> MerinoConfig:
    return MerinoConfig.from_architecture(geometry, **keys)


def geometry_of(config: MerinoConfig) -> Architecture:
    return config.architecture
