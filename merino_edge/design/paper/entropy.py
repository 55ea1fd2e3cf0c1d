"""Subspace entropy of random matrices.

Known (MeRino, arXiv 2403.07921): the entropy of the randomly initialized decoder measures its expressiveness, and comes
from a lookup table. This project's choices: unit variance, and a formula instead of the table.
"""

import math
from functools import cache


@cache
def linear_entropy(inputs: int, outputs: int, eps: float = 1.0) -> float:
    """E[sum_j log(1 + s_j^2 / eps^2)] in nats over singular values of W [inputs, outputs], W_jk ~ N(0, 1).

    By the Marchenko-Pastur law, in closed form (Verdu and Shamai 1999, eq. 9), which is exact in the limit of large
    matrices. The last term corrects it for a finite size (Bai and Silverstein 2004): for this sum the logarithm of a
    geometric over an arithmetic mean. Sampled matrices agree within 0.1 % (a test).
    """
    small, large = sorted((inputs, outputs))
    ratio, snr = small / large, large / eps**2
    low = math.sqrt(snr * (1 - math.sqrt(ratio)) ** 2 + 1)
    high = math.sqrt(snr * (1 + math.sqrt(ratio)) ** 2 + 1)
    quarter = (high - low) ** 2 / 4
    law = large * (ratio * math.log(1 + snr - quarter) + math.log(1 + snr * ratio - quarter) - quarter / snr)
    return law + math.log(math.sqrt(low * high) / ((low + high) / 2))
