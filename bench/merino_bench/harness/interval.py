"""The ratio of two speeds that were measured in turn, and its 95 % confidence interval: Student's t on log ratios.

What differs between processes, such as the place of pages in memory, is the same for all repetitions of one. So the
repetitions of a process are one sample, their mean. Two processes that ran in turn are a pair, and the log of the ratio
of a pair is free of the machine's drift. Over n pairs the interval is mean +- t(n - 1) s / sqrt(n) of these logs
(paired t interval; Jain, The Art of Computer Systems Performance Analysis, 1991, ch. 13). numpy only.
"""
import math
from typing import List, NamedTuple, Optional, Sequence

import numpy as np

LEVEL = 0.95
LEAST_PAIRS = 3  # of two pairs the interval would be 12.7 standard errors wide on each side, which says nothing
_T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)  # 1 to 10 degrees of freedom
_Z_975 = 1.959964


class Ratio(NamedTuple):
    """value: the geometric mean of the pairs' ratios. interval: [low, high], None below LEAST_PAIRS pairs."""
    value: float
    interval: Optional[List[float]]


def paired_ratio(speeds: Sequence[float], base_speeds: Sequence[float]) -> Ratio:
    """speeds over base_speeds, one value per process; the i-th of both ran in turn."""
    count = len(speeds)
    assert count == len(base_speeds) and count, (count, len(base_speeds))
    logs = np.log(np.asarray(speeds, float) / np.asarray(base_speeds, float))  # [pairs]
    middle = float(logs.mean())
    if count < LEAST_PAIRS:
        return Ratio(math.exp(middle), None)
    half = student_t(count - 1) * float(logs.std(ddof=1)) / math.sqrt(count)
    return Ratio(math.exp(middle), [math.exp(middle - half), math.exp(middle + half)])


def student_t(freedom: int) -> float:
    """Student's t at 0.975; from eleven degrees of freedom by the Cornish-Fisher expansion, within 0.01 %."""
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    z = _Z_975
    return (z + (z ** 3 + z) / (4 * freedom)
            + (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * freedom ** 2)
            + (3 * z ** 7 + 19 * z ** 5 + 17 * z ** 3 - 15 * z) / (384 * freedom ** 3))
