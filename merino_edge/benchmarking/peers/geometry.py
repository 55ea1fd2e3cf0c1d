"""A bundle's geometry for other engines: the bytes that they read per token, and the GPT-2 of equal size for llama.cpp.

Counts are sums over the geometry's operators, so they hold for every family.
"""

from collections.abc import Sequence

from merino_edge.families.geometry import Geometry, UniformGeometry
from merino_edge.families.operators import Operator

BITS = {  # per weight, the scales included; llama.cpp's blocks of 32 have a float16 scale
    "fp32": 32.0, "F32": 32.0, "int8": 8.0, "Q8_0": 8.5, "Q4_0": 4.5,
}  # fmt: skip


def matrix_elements(operators: Sequence[Operator]) -> int:
    """Of all matrices that a decode step reads, without the table: shared ones at each use."""
    return sum(op.matrix for op in operators if op.kind == "linear")


def table_elements(operators: Sequence[Operator]) -> int:
    """Of the table that the head reads."""
    return sum(op.matrix for op in operators if op.kind == "head")


def shares_layers(operators: Sequence[Operator]) -> bool:
    """Whether some matrices are used repeatedly."""
    return any(op.kind == "linear" and not op.own for op in operators)


def decode_weight_bytes(operators: Sequence[Operator], precision: str, table: str) -> int:
    """Bytes of matrices that one decode step reads; vectors are below a thousandth and left out."""
    return round(matrix_elements(operators) * BITS[precision] / 8 + table_elements(operators) * BITS[table] / 8)


def stored_params(operators: Sequence[Operator]) -> int:
    """Matrices and table, without vectors; for models without shared layers."""
    return matrix_elements(operators) + table_elements(operators)


def as_gpt2(geometry: Geometry) -> tuple[UniformGeometry, list[str]]:
    """The GPT-2 with the same layers, and in what it differs. Raises ValueError where there is none."""
    layers, operators = geometry.layer_shapes, geometry.operators
    if len(set(layers)) != 1:
        raise ValueError("llama.cpp's gpt2 has layers of one width and one FFN width, this model's differ")
    if shares_layers(operators):
        raise ValueError("llama.cpp's gpt2 has no layers with shared weights, this model has")
    width, ffn_width, heads = layers[0]
    made = UniformGeometry(
        layers=len(layers), width=width, heads=heads, kv_heads=heads, head_size=width // heads, ffn_width=ffn_width,
        vocab=geometry.vocab, context=geometry.context, gated=False, norm="layer", final_norm=True,
        query_key_norm=False, biases=("qkv", "out", "ffn"), positions="learned", position_offset=0, tied=True,
        embed_width=width,
    )  # fmt: skip
    projected = 0 if geometry.embed_width == width else 2 * width * geometry.embed_width
    if matrix_elements(operators) - projected != matrix_elements(made.operators):
        raise ValueError("llama.cpp's gpt2 has an FFN of two matrices and as many heads of keys as of queries only")
    notes = [f"gpt2 of {made.shape()}, vocabulary {made.vocab}"]
    if projected:
        more = stored_params(made.operators) - stored_params(operators)
        notes.append(
            f"its table is {width} wide, the bundle's {geometry.embed_width} with a projection before and behind:"
            f" {more:,} more weights are read per token ({4 * more / 1e6:.1f} MB in float32)"
        )
    return made, notes
