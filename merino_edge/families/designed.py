"""The family whose models are designed here: the search finds its geometries, training builds its models, and
calibration times its layers. Those stages import it from this module; all other code asks the registry.
"""

from merino_edge.families.merino.geometry import (
    Architecture,
    Block,
    block_operators,
    end_operators,
    layer_operators,
    transition_operators,
)

__all__ = [
    "Architecture", "Block", "block_operators", "end_operators", "layer_operators", "transition_operators",
]  # fmt: skip
