"""GPTQ (arXiv 2210.17323): the columns of a matrix are quantized one after the other, and the error of each is
compensated in the columns that are not quantized yet, so that the output changes least on inputs of the given Hessian.
Then scales and codes are improved in turns, codes by coordinate descent (CDQuant, arXiv 2406.17542). Figures:
docs/decisions/quantization.md.
"""

import numpy as np

from merino_edge.export.quantize.matrix import QuantizedMatrix, packed, quantize_rows

DAMPING = 0.01  # share of the diagonal's mean that is added to it: a Hessian of few tokens is not of full rank
SWEEPS = 2  # of new scales and coordinate descent
RIDGE = 1e-6  # of the mean diagonal: a group of zeros keeps its scale
ROWS = 256  # that are improved at once: they do not depend on each other
BLOCK = 64  # columns whose changes reach the gradient of the others in one product
Hessians = dict[str, np.ndarray]  # by a matrix's name in the state dict: the mean of x x' [in, in] over its inputs x


def gptq(
    matrix: np.ndarray, hessian: np.ndarray, bits: int, group_size: int, *, both_signs: bool = False
) -> QuantizedMatrix:
    """Quantize a matrix float32 [rows, columns] in groups of `group_size`. `hessian` [columns, columns]: of its input.

    `both_signs`: as in `quantize_groups`.
    """
    weights, damped = np.ascontiguousarray(matrix.T, np.float32), damped_hessian(hessian)
    half = 2 ** (bits - 1)
    limits = (1 - half if both_signs else -half), half - 1
    codes, scales = compensated(weights, damped, bits, group_size, both_signs)
    damped = damped.astype(np.float32)
    for start in range(0, len(matrix), ROWS):
        rows = slice(start, start + ROWS)
        part, own_codes, own_scales = (np.ascontiguousarray(array[:, rows]) for array in (weights, codes, scales))
        for _ in range(SWEEPS):
            own_scales = fitted_scales(part, own_codes, own_scales, damped)
            own_codes = descended(part, own_codes, own_scales, damped, limits)
        codes[:, rows], scales[:, rows] = own_codes, own_scales
    cut = (codes + half).astype(np.uint8).T.reshape(matrix.shape[0], -1, group_size)
    return QuantizedMatrix(packed(cut, bits), np.ascontiguousarray(scales.T), bits, group_size)


def damped_hessian(hessian: np.ndarray) -> np.ndarray:
    """Return the Hessian with DAMPING, float64 [columns, columns]."""
    damped = hessian.astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * (float(np.trace(damped)) / len(damped) or 1.0)
    return damped


def compensated(
    weights: np.ndarray, damped: np.ndarray, bits: int, group_size: int, both_signs: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return GPTQ's codes [columns, rows], from -2^(bits - 1), and scales [groups, rows], of weights [columns, rows]. A
    group's scales minimize the squared error of its weights after the compensation of earlier columns."""
    # U with U' U the inverse: column j changes by U[i, j] / U[i, i] per unit of error in column i
    spread = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    left, half = weights.copy(), 2 ** (bits - 1)  # compensated for all quantized columns
    lowest = 1 - half if both_signs else -half
    codes, scales = np.empty_like(left), np.empty((len(left) // group_size, left.shape[1]), np.float32)
    for index, start in enumerate(range(0, len(left), group_size)):
        end = start + group_size
        values = np.ascontiguousarray(left[start:end].T)[:, None]  # [rows, 1, group_size]
        scale = quantize_rows(values, bits, both_signs)[1][:, 0]
        divisor = np.where(scale == 0, 1, scale)
        errors = np.empty((group_size, left.shape[1]), np.float32)
        for column in range(start, end):
            codes[column] = np.clip(np.rint(left[column] / divisor), lowest, half - 1)
            errors[column - start] = error = (left[column] - codes[column] * scale) / spread[column, column]
            left[column + 1 : end] -= np.outer(spread[column, column + 1 : end], error)
        left[end:] -= spread[start:end, end:].T @ errors
        scales[index] = scale
    return codes, scales


def fitted_scales(weights: np.ndarray, codes: np.ndarray, scales: np.ndarray, damped: np.ndarray) -> np.ndarray:
    """Fit the scales [groups, rows] to these codes, by least squares over all groups of a row at once."""
    groups, rows = scales.shape
    size = len(weights) // groups
    rest = weights - codes * np.repeat(scales, size, 0)  # [columns, rows]
    normal, right = np.empty((rows, groups, groups)), np.empty((rows, groups))
    for group in range(groups):
        here = slice(group * size, (group + 1) * size)
        image = damped[:, here] @ codes[here]  # [columns, rows]
        normal[:, group] = (image * codes).reshape(groups, size, rows).sum(1).T
        right[:, group] = (image * rest).sum(0)
    diagonal = np.einsum("rgg->rg", normal)
    normal[:, range(groups), range(groups)] += RIDGE * diagonal.mean(1, keepdims=True) + np.finfo(np.float32).tiny
    return scales + np.linalg.solve(normal, right[..., None])[..., 0].T.astype(np.float32)


def descended(
    weights: np.ndarray, codes: np.ndarray, scales: np.ndarray, damped: np.ndarray, limits: tuple[int, int]
) -> np.ndarray:
    """Return codes [columns, rows] after one sweep of coordinate descent. Each column in turn gets the codes of least
    error, given those of all other columns. `limits`: the lowest and the highest code."""
    codes, steps = codes.copy(), np.repeat(scales, len(weights) // len(scales), 0)  # [columns, rows]
    divisor = np.where(steps == 0, 1, steps)
    gradient = damped @ (weights - codes * steps)  # of half the error, towards larger codes
    for start in range(0, len(weights), BLOCK):
        end = min(start + BLOCK, len(weights))
        here, changes = gradient[start:end].copy(), np.empty_like(weights[start:end])
        for column in range(start, end):
            best = codes[column] + here[column - start] / damped[column, column] / divisor[column]
            best = np.clip(np.rint(best), *limits)
            changes[column - start] = change = (best - codes[column]) * steps[column]
            here -= np.outer(damped[start:end, column], change)
            codes[column] = best
        gradient -= damped[:, start:end] @ changes
    return codes
