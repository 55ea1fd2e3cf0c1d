"""Size of a bundle's folder, a little more than the export will write: weights, graph, tokenizer, application."""

from collections.abc import Iterable

from merino_edge.families.operators import Operator
from merino_runtime.board import MB as BYTES_PER_MB

# What the folder holds beside the weights, measured on exports of 11 to 291 operators and rounded up.
OPERATOR_FILE_BYTES = 1200  # graph and bundle.json: 370 to 860 in dialect fused, up to 1200 in portable
MATRIX_FILE_BYTES = 4096  # external data begins at whole pages
ENTRY_FILE_BYTES = 72  # tokenizer.json, per entry of the vocabulary
FIXED_FILE_BYTES = 365_000  # merino.pyz and the rest of bundle.json
FIXED_FILE_MB = FIXED_FILE_BYTES / BYTES_PER_MB


def added_file_mb(operators: Iterable[Operator], precision: str) -> float:
    """MB (2^20 bytes) that these operators add to the folder. Adds up over operators."""
    total = 0.0
    for op in operators:
        total += OPERATOR_FILE_BYTES
        if op.own:
            total += op.stored_bytes(precision) + (MATRIX_FILE_BYTES if op.matrix else 0)
        if op.kind == "embed":
            total += ENTRY_FILE_BYTES * op.matrix / op.columns
    return total / BYTES_PER_MB


def file_mb(operators: Iterable[Operator], precision: str) -> float:
    """MB (2^20 bytes) of the whole folder."""
    return added_file_mb(operators, precision) + FIXED_FILE_MB
