"""Pairs of processes that ran side by side: which of them count, and the ratio of two speeds with its 95 % interval.

Each turn of a case measures all rows, each in a fresh process. A disturbed process, and the one it is compared with,
are measured again as a further attempt of the same turn. So a turn and an attempt (a place) name processes that ran
side by side.

The repetitions of one process share its place in memory, so they are one sample, their mean. The log of the ratio of a
pair is free of the machine's drift. Over n pairs the interval is mean +- t(n - 1) s / sqrt(n) of these logs (paired t
interval; Jain, The Art of Computer Systems Performance Analysis, 1991, ch. 13). numpy only.
"""

import math
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

LEVEL = 0.95
LEAST_PAIRS = 3  # of two pairs the interval would be 12.7 standard errors wide on each side, which is of no use
# Student's t at 0.975 by the number of pairs. The benchmark makes at most five; of more the interval is a little wide.
T_975 = {3: 4.3027, 4: 3.1824, 5: 2.7764}
STEADY = ("throttled", "low-power")  # states that a machine can be in all the time
Place = Tuple[int, int]  # (turn, attempt)
Flags = Mapping[Place, FrozenSet[str]]  # of each process of a row


class Ratio(NamedTuple):
    """value: the geometric mean of the pairs' ratios. interval: [low, high], None below LEAST_PAIRS pairs."""
    value: float
    interval: Optional[List[float]]


def paired_ratio(speeds: Sequence[float], base_speeds: Sequence[float]) -> Ratio:
    """Return the ratio of speeds to base_speeds, one value per process; the i-th processes of both ran in turn."""
    count = len(speeds)
    assert count == len(base_speeds) and count, (count, len(base_speeds))
    logs = np.log(np.asarray(speeds, float) / np.asarray(base_speeds, float))  # [pairs]
    middle = float(logs.mean())
    if count < LEAST_PAIRS:
        return Ratio(math.exp(middle), None)
    half = T_975[min(count, max(T_975))] * float(logs.std(ddof=1)) / math.sqrt(count)
    return Ratio(math.exp(middle), [math.exp(middle - half), math.exp(middle + half)])


class Selection(NamedTuple):
    """places: the processes that count, at most one per turn, in order. turns: the number that was measured. flags:
    what disturbed the places; empty if enough undisturbed turns remained, so that the others were dropped."""
    places: List[Place]
    turns: int
    flags: List[str]


def select_processes(*rows: Flags) -> Selection:
    """Select the processes that count for one row, or for a comparison of several rows.

    Only undisturbed places count if there are three turns of them, or as many as were measured. If a board is throttled
    or in a low power mode on all sides of a comparison, this counts as a disturbance only while enough places are
    without it. If even then too few remain, all turns count and `flags` lists what disturbed them.
    """
    common = sorted(set(rows[0]).intersection(*rows[1:]))
    turns = len({turn for turn, _ in common})
    for disturbing in (any_flags, unequal_flags):
        clean = _first_of_each_turn(place for place in common if not disturbing(rows, place))
        if len(clean) >= min(LEAST_PAIRS, turns):
            return Selection(clean, turns, [])
    least = _first_of_each_turn(sorted(common, key=lambda place: (place[0], len(any_flags(rows, place)), place[1])))
    return Selection(least, turns, sorted(set().union(*(unequal_flags(rows, place) for place in least))))


def any_flags(rows: Sequence[Flags], place: Place) -> FrozenSet[str]:
    return frozenset().union(*(row[place] for row in rows))


def unequal_flags(rows: Sequence[Flags], place: Place) -> FrozenSet[str]:
    """Return all flags, without the flags of STEADY that every row has."""
    return any_flags(rows, place) - frozenset(flag for flag in STEADY if all(flag in row[place] for row in rows))


def flags_by_place(processes: Iterable[Mapping[str, Any]]) -> Dict[Place, FrozenSet[str]]:
    """Return the flags of a record's processes."""
    return {(process["turn"], process["attempt"]): frozenset(process["flags"]) for process in processes}


def rounds_by_place(processes: Iterable[Mapping[str, Any]], per_round: Sequence[Any]) -> Dict[Place, List[Any]]:
    """Group entries, of which there is one per repetition, by their process."""
    rounds, begin = {}, 0
    for process in processes:
        rounds[process["turn"], process["attempt"]] = list(per_round[begin:begin + process["repetitions"]])
        begin += process["repetitions"]
    return rounds


def _first_of_each_turn(places: Iterable[Place]) -> List[Place]:
    first: Dict[int, Place] = {}
    for place in places:
        first.setdefault(place[0], place)
    return [first[turn] for turn in sorted(first)]
