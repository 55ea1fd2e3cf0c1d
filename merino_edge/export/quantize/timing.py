"""Quantized matrices whose codes mean nothing, for graphs that are timed only.

Groups are those that quantization takes for normally distributed weights: the largest that divide the row.
"""

from collections.abc import Callable, Mapping

import numpy as np

from merino_edge.bundles.description import GraphFormat
from merino_edge.export.quantize.matrix import QuantizedMatrix
from merino_edge.export.quantize.weights import layout_of, matrix_bits
from merino_edge.families.geometry import Geometry
from merino_edge.families.operators import largest_group

Codes = Callable[[tuple[int, int, int], int], np.ndarray]  # (shape, the lowest byte) -> uint8 codes


def timing_matrices(
    arch: Geometry, weights: Mapping[str, np.ndarray], form: GraphFormat, codes: Codes
) -> dict[str, QuantizedMatrix]:
    """Matrices of the shapes of `weights`, in the order of the graph."""
    matrices = {}
    for name, bits in matrix_bits(arch, form).items():
        shapes = [weights[one].shape for one in name.split("+")]
        matrices[name] = timing_matrix((sum(rows for rows, _ in shapes), shapes[0][1]), bits, form, codes)
    return matrices


def timing_matrix(shape: tuple[int, int], bits: int, form: GraphFormat, codes: Codes) -> QuantizedMatrix:
    """A matrix [rows, columns] with equal scales."""
    (rows, columns), layout = shape, layout_of(form, bits)
    group_size = columns if layout == "rows" else largest_group(columns) or columns
    groups = columns // group_size
    drawn = codes((rows, groups, group_size * bits // 8), 1 if layout == "rows" else 0)
    scales = np.full((rows, groups), 0.02 / 2 ** (bits - 1), np.float32)
    return QuantizedMatrix(drawn, scales, bits, group_size, layout=layout)
