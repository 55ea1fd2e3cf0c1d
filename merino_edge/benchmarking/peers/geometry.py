"""The geometry of a bundle as other engines see it, and the bytes that they read of it per token.

Takes bundle.json's `family` and `architecture` as they are; knows no engine.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

BITS = {  # per weight, the scales included; llama.cpp's blocks of 32 have a float16 scale
    "fp32": 32.0, "F32": 32.0, "int8": 8.0, "Q8_0": 8.5, "Q4_0": 4.5,
}  # fmt: skip


class Layer(NamedTuple):
    width: int
    ffn_width: int
    heads: int


class Geometry(NamedTuple):
    """Layers in order of use. `embed_width` is that of the tied table; `shared` where weights are used repeatedly."""

    family: str
    layers: tuple[Layer, ...]
    embed_width: int
    vocab: int
    context: int
    shared: bool

    @property
    def matrix_elements(self) -> int:
        """Of all matrices that a decode step reads but the table: shared ones at each use."""
        widths = [self.embed_width, *(layer.width for layer in self.layers), self.embed_width]
        changes = sum(a * b for a, b in zip(widths, widths[1:], strict=False) if a != b)
        return changes + sum(4 * one.width**2 + 2 * one.width * one.ffn_width for one in self.layers)

    @property
    def table_elements(self) -> int:
        return self.vocab * self.embed_width


def geometry_of(family: str, architecture: Mapping[str, Any]) -> Geometry:
    if family == "opt":
        layer = Layer(architecture["width"], architecture["ffn_width"], architecture["heads"])
        layers = (layer,) * architecture["layers"]
        embed_width, shared = architecture["embed_width"], False
    else:
        blocks, head = architecture["blocks"], architecture["head_size"]
        layers = tuple(
            Layer(block["width"], round(block["width"] * block["ffn_ratio"]), block["width"] // head)
            for block in blocks for _ in range(block["depth"])
        )  # fmt: skip
        embed_width = blocks[0]["width"]
        shared = any(block["shared"] and block["depth"] > 1 for block in blocks)
    return Geometry(family, layers, embed_width, architecture["vocab"], architecture["context"], shared)


def as_gpt2(geometry: Geometry) -> tuple[Geometry, list[str]]:
    """The gpt2 model of equal geometry, and what differs. Raises ValueError where there is none."""
    if len(set(geometry.layers)) != 1:
        raise ValueError("llama.cpp's gpt2 has layers of one width and one FFN width, this model's differ")
    if geometry.shared:
        raise ValueError("llama.cpp's gpt2 has no layers with shared weights, this model has")
    width = geometry.layers[0].width
    made = geometry._replace(embed_width=width)
    notes = [f"gpt2 of {len(made.layers)} layers of {width}, FFN {made.layers[0].ffn_width}, vocabulary {made.vocab}"]
    if geometry.embed_width != width:
        more = made.matrix_elements + made.table_elements - geometry.matrix_elements - geometry.table_elements
        notes.append(
            f"its table is {width} wide, the bundle's {geometry.embed_width} with a projection before and behind:"
            f" {more:,} more weights are read per token ({4 * more / 1e6:.1f} MB in float32)"
        )
    return made, notes


def decode_weight_bytes(geometry: Geometry, precision: str, table: str) -> int:
    """Bytes of matrices that one decode step reads; vectors are below a thousandth and left out."""
    return round(geometry.matrix_elements * BITS[precision] / 8 + geometry.table_elements * BITS[table] / 8)


def stored_params(geometry: Geometry) -> int:
    """Matrices and table, without vectors; for models without shared layers."""
    return geometry.matrix_elements + geometry.table_elements
