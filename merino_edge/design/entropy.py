"""Subspace entropy of random matrices: by sampling, by the Marchenko-Pastur law, and from a shipped table.

Known (MeRino, arXiv 2403.07921): the entropy of the randomly initialized decoder measures its expressiveness, and comes
from a lookup table. This project's choice: unit variance. `score` turns the entropy into a score.
"""

import json
import math
from functools import cache
from importlib.resources import files

import numpy as np

TABLE_FILE = "entropy_table.json"
TABLE_WIDTHS = tuple(range(32, 1025, 32))
TABLE_RATIOS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
TABLE_SAMPLES = 8  # at widths of 512 and more


def sampled_entropy(inputs: int, outputs: int, *, eps: float = 1.0, seed: int = 0) -> float:
    """E[sum_j log(1 + s_j^2 / eps^2)] in nats over singular values of W [inputs, outputs], W_jk ~ N(0, 1).

    Computed as log det(I + W W^T / eps^2), the same sum without an SVD. A log determinant varies by about 1 whatever
    the size, so a small matrix is drawn more often: the mean is good to about 0.05 % at each.
    """
    small, large = sorted((inputs, outputs))
    samples = TABLE_SAMPLES * max(1, 512 // small) ** 2
    rng = np.random.default_rng([seed, small, large])
    total = 0.0
    for _ in range(samples):
        weight = rng.standard_normal((small, large))
        factor = np.linalg.cholesky(np.eye(small) + weight @ weight.T / eps**2)
        total += 2 * float(np.log(np.diag(factor)).sum())
    return total / samples


def limit_entropy(inputs: int, outputs: int, *, eps: float = 1.0) -> float:
    """The same by the Marchenko-Pastur law, in closed form (Verdu and Shamai 1999, eq. 9).

    The law is exact in the limit of large matrices. The last term corrects it for a finite size (Bai and Silverstein
    2004): for this sum the logarithm of a geometric over an arithmetic mean.
    """
    small, large = sorted((inputs, outputs))
    ratio, snr = small / large, large / eps**2
    low = math.sqrt(snr * (1 - math.sqrt(ratio)) ** 2 + 1)
    high = math.sqrt(snr * (1 + math.sqrt(ratio)) ** 2 + 1)
    quarter = (high - low) ** 2 / 4
    law = large * (ratio * math.log(1 + snr - quarter) + math.log(1 + snr * ratio - quarter) - quarter / snr)
    return law + math.log(math.sqrt(low * high) / ((low + high) / 2))


@cache
def table() -> dict[tuple[int, int], float]:
    """The shipped table: (small, large) side -> sampled entropy at eps 1."""
    text = (files("merino_edge.design") / TABLE_FILE).read_text()
    return {(small, large): value for small, large, value in json.loads(text)["entropies"]}


@cache
def linear_entropy(inputs: int, outputs: int, eps: float = 1.0) -> float:
    """Entropy of a linear layer in nats: from the table, outside it by the law."""
    sides = min(inputs, outputs), max(inputs, outputs)
    if eps == 1.0 and sides in table():
        return table()[sides]
    return limit_entropy(inputs, outputs, eps=eps)


def make_table() -> str:
    """The text of the shipped table; `python -m merino_edge.design.entropy > entropy_table.json` remakes it."""
    sides = {(width, round(width * ratio)) for width in TABLE_WIDTHS for ratio in TABLE_RATIOS}
    rows = [[small, large, round(sampled_entropy(small, large), 4)] for small, large in sorted(sides)]
    head = '{"eps": 1, "seed": 0, "entropies": [\n'
    return head + ",\n".join(json.dumps(row) for row in rows) + "\n]}\n"


if __name__ == "__main__":
    print(make_table(), end="")
