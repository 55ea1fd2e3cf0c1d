"""The geometry of Granite 4.0 without experts and without Mamba layers: Granite's, with a packed gate."""

from dataclasses import replace

from merino_edge.families.multiplied import MultipliedGeometry
from merino_edge.families.pre_norm import Layer, Linear


class GraniteHybridArchitecture(MultipliedGeometry):
    """A decoder of the Granite 4.0 kind, of attention layers only."""

    def layer_of(self, layer: int) -> Layer:
        at = f"model.layers.{layer}.shared_mlp"
        up, down = Linear((f"{at}.input_linear.weight",)), Linear((f"{at}.output_linear.weight",))
        return replace(super().layer_of(layer), up=up, down=down)
