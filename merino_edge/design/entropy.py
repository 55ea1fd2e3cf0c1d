"""Subspace entropy of random matrices, and the score that the search maximises.

Known (MeRino, arXiv 2403.07921): the entropy of the randomly initialised decoder measures what it can express, is read
from a lookup table, is weighted between attention and FFN and multiplied by an effectiveness that depends on depth over
width. Recalled, not confirmed: the formula of a layer, the weights 0.6 and 0.4, beta 1/16. Ours: eps 1, unit variance,
the reading `inverse` of the effectiveness, and the preference for own weights in a tie.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
from pydantic import ConfigDict

from merino_runtime.errors import MerinoError

TABLE_FILE = "entropy_table.json"
TABLE_WIDTHS = tuple(range(32, 1025, 32))
TABLE_RATIOS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
TABLE_SAMPLES = 8  # at widths of 512 and more

Gamma = Literal["off", "literal", "inverse"]


@dataclass(frozen=True)
class Scoring:
    """Parameters of the score, each with its mark. Raises MerinoError for a value outside what is allowed.

    Attributes:
        attention_weight: a1 (recalled).
        ffn_weight: a2 (recalled).
        eps: noise scale in `log(1 + s^2 / eps^2)` (ours).
        gamma: how depth over width lowers a block's worth: `literal` is beta * L / E (does nothing at these sizes),
            `inverse` is L / (beta_w * E) with beta_w the limit's reciprocal (ours), `off` is 0.
        beta: 1/16 (known).
        shared_discount: relative worth that each repeated use of shared weights loses. Entropy counts each use in full
            (recalled); this only decides ties, so that weights are shared where a budget asks for it (ours).
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # it stands in design.json

    attention_weight: float = 0.6
    ffn_weight: float = 0.4
    eps: float = 1.0
    gamma: Gamma = "inverse"
    beta: float = 1 / 16
    shared_discount: float = 1e-4

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("--a1", self.attention_weight, 0, 1000), ("--a2", self.ffn_weight, 0, 1000),
            ("--eps", self.eps, 1e-3, 1e3), ("--beta", self.beta, 1e-6, 1e6),
        ):  # fmt: skip
            if not low <= value <= high:
                raise MerinoError(f"{name} {value:g} is not allowed: choose {low:g} to {high:g}")
        if self.attention_weight + self.ffn_weight == 0:
            raise MerinoError("--a1 0 and --a2 0 make every score 0: give one of them a weight")


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

    The law alone is exact for large matrices. The last term is what a real matrix of finite size lacks (Bai and
    Silverstein 2004): for this sum the logarithm of a geometric over an arithmetic mean.
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


def effectiveness_loss(width: int, depth: int, scoring: Scoring) -> float:
    """gamma in [0, 1]: the share of a block's entropy that its depth makes hard to train."""
    if scoring.gamma == "off":
        return 0.0
    if scoring.gamma == "literal":
        return min(1.0, scoring.beta * depth / width)
    return min(1.0, depth / (scoring.beta * width))


def block_score(width: int, ffn_width: int, depth: int, shared: bool, scoring: Scoring) -> float:
    """(1 - gamma) L (a1 H_MHA + a2 H_FFN), in weighted nats."""
    attention_entropy = 4 * linear_entropy(width, width, scoring.eps)
    ffn_entropy = 2 * linear_entropy(width, ffn_width, scoring.eps)
    layer = scoring.attention_weight * attention_entropy + scoring.ffn_weight * ffn_entropy
    uses = depth - (scoring.shared_discount * (depth - 1) if shared else 0.0)
    return (1 - effectiveness_loss(width, depth, scoring)) * uses * layer


def make_table() -> str:
    """The text of the shipped table; `python -m merino_edge.design.entropy > entropy_table.json` remakes it."""
    sides = {(width, round(width * ratio)) for width in TABLE_WIDTHS for ratio in TABLE_RATIOS}
    rows = [[small, large, round(sampled_entropy(small, large), 4)] for small, large in sorted(sides)]
    head = '{"eps": 1, "seed": 0, "entropies": [\n'
    return head + ",\n".join(json.dumps(row) for row in rows) + "\n]}\n"


if __name__ == "__main__":
    print(make_table(), end="")
