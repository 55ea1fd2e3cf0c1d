"""The confidence interval of a ratio of two speeds: a seeded bootstrap over repetitions (Efron 1979), numpy only.

With five repetitions a plain percentile interval is too narrow, since resampling makes the spread smaller by
sqrt((n - 1) / n) and knows no Student's t. The expanded percentile interval (Hesterberg, What Teachers Should
Know About the Bootstrap, 2015) takes percentiles further out, by as much as the t interval is wider. On normal
samples it then covers the truth in 93 (paired) to 97 % of experiments with five repetitions, where the plain one
does in 84 to 87 %. With three pairs no resampling exceeds 75 %: ask for five or more.
"""
import math
from typing import List, Optional, Sequence

import numpy as np

LEVEL = 0.95
DRAWS = 10000
_T_975 = (12.706, 4.303, 3.182, 2.776)  # Student's t at 0.975, for 1 to 4 degrees of freedom
_Z_975 = 1.959964
_DRAWN_AT_ONCE = 10 ** 6  # numbers: 8 MB


def ratio_interval(speeds: Sequence[float], base_speeds: Sequence[float], paired: bool,
                   seed: int = 0) -> Optional[List[float]]:
    """[low, high] of mean(speeds) / mean(base_speeds), 95 %; None where one of them has a single value.

    paired: the two were measured in turn, so repetition i of both is drawn together and a drift of the machine
    cancels. The counts must be equal then.
    """
    count, base_count = len(speeds), len(base_speeds)
    if min(count, base_count) < 2:
        return None
    assert not paired or count == base_count, (count, base_count)
    above, below = np.asarray(speeds, float), np.asarray(base_speeds, float)
    random = np.random.RandomState(seed)
    ratios: List[np.ndarray] = []
    done = 0
    while done < DRAWS:
        size = min(DRAWS - done, max(1, _DRAWN_AT_ONCE // max(count, base_count)))
        drawn = random.randint(0, count, (size, count))
        base_drawn = drawn if paired else random.randint(0, base_count, (size, base_count))
        ratios.append(above[drawn].mean(axis=1) / below[base_drawn].mean(axis=1))  # [size]
        done += size
    tail = 100 * tail_share(min(count, base_count))
    low, high = np.percentile(np.concatenate(ratios), [tail, 100 - tail])
    return [float(low), float(high)]


def tail_share(count: int) -> float:
    """Share of draws beyond each end of the expanded percentile interval, for `count` values; 0.025 in the limit."""
    return 0.5 * math.erfc(student_t(count - 1) * math.sqrt(count / (count - 1)) / math.sqrt(2))


def student_t(freedom: int) -> float:
    """Student's t at 0.975; from five degrees of freedom by the Cornish-Fisher expansion, within 1 %."""
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    z = _Z_975
    return (z + (z ** 3 + z) / (4 * freedom)
            + (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * freedom ** 2))
