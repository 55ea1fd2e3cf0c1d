"""GPTQ (arXiv 2210.17323): the columns of a matrix are quantised one after the other, and the error of each is
compensated in the columns that are not quantised yet, so that the output changes least on inputs of the given Hessian.
"""

import numpy as np

from merino_edge.export.quantisation.groups import Quantized, packed, quantize_rows

DAMPING = 0.01  # share of the diagonal's mean that is added to it: a Hessian of few tokens is not of full rank
Hessians = dict[str, np.ndarray]  # by a matrix's name in the state dict: the mean of x x' [in, in] over its inputs x


def gptq(
    matrix: np.ndarray, hessian: np.ndarray, bits: int, group_size: int, *, both_signs: bool = False
) -> Quantized:
    """Quantise a matrix float32 [rows, columns] in groups of `group_size`. `hessian` [columns, columns]: of its input.

    A group's scales minimise the squared error of its weights after the compensation of earlier columns. `both_signs`:
    as in `quantize_groups`.
    """
    spread = spreading(hessian)
    left = np.ascontiguousarray(matrix.T, np.float32)  # [columns, rows], compensated for all quantised columns
    half = 2 ** (bits - 1)
    lowest = 1 - half if both_signs else -half
    codes = np.empty(left.shape, np.uint8)
    scales = np.empty((len(left) // group_size, left.shape[1]), np.float32)
    for index, start in enumerate(range(0, len(left), group_size)):
        end = start + group_size
        values = np.ascontiguousarray(left[start:end].T)[:, None]  # [rows, 1, group_size]
        scale = quantize_rows(values, bits, both_signs)[1][:, 0]
        divisor = np.where(scale == 0, 1, scale)
        errors = np.empty((group_size, left.shape[1]), np.float32)
        for column in range(start, end):
            code = np.clip(np.rint(left[column] / divisor), lowest, half - 1)
            codes[column] = code + half
            errors[column - start] = error = (left[column] - code * scale) / spread[column, column]
            left[column + 1 : end] -= np.outer(spread[column, column + 1 : end], error)
        left[end:] -= spread[start:end, end:].T @ errors
        scales[index] = scale
    cut = codes.T.reshape(matrix.shape[0], -1, group_size)
    return Quantized(packed(cut, bits), np.ascontiguousarray(scales.T), bits, group_size)


def spreading(hessian: np.ndarray) -> np.ndarray:
    """The upper triangle U with U' U the inverse of the damped Hessian, float32 [columns, columns].

    Column j changes by U[i, j] / U[i, i] per unit of error in column i.
    """
    damped = hessian.astype(np.float64)
    mean = float(np.trace(damped)) / len(damped) or 1.0
    damped[np.diag_indices_from(damped)] += DAMPING * mean
    return np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
