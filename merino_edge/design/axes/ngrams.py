"""Axis of tables of hashed n-grams beside the embedding: memory, and one row read per token.

Closed: training has not shown yet that it lowers the loss at equal decode latency (bench/experiments/axes.py).
"""

from collections.abc import Sequence

from merino_edge.design.law import Constant, Constants
from merino_edge.families.designed import Ngrams, ngram_operators
from merino_edge.families.operators import Operator

TABLES: tuple[tuple[Ngrams, ...], ...] = ((),)
CONSTANTS = {
    f"ngrams_{order}": Constant(
        0.0, None, None,
        f"ln loss of a table of hashed n-grams of order {order}: not measured yet. The loss falls linearly in the"
        " logarithm of the rows (arXiv 2501.16975)",
    )
    for order in (2, 3)
}  # fmt: skip


def operators(width: int, tables: Sequence[Ngrams]) -> list[Operator]:
    return list(ngram_operators(width, tables))


def term(tables: Sequence[Ngrams], constants: Constants) -> float:
    return sum(constants[f"ngrams_{table.order}"] for table in tables)
