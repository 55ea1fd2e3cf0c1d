"""Which processes of a row, or of two rows that took turns, count: the undisturbed ones, where enough of them remain.

Each turn of a case measures all rows, each in a fresh process. A disturbed process, and the one it is compared with,
are measured again as a further attempt of the same turn. So a turn and an attempt (a place) name processes that ran
side by side.
"""
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Sequence, Tuple

from merino_bench.harness.interval import LEAST_PAIRS

STEADY = ("throttled", "low-power")  # states that a machine can be in all the time

Place = Tuple[int, int]  # (turn, attempt)
Flags = Mapping[Place, FrozenSet[str]]  # of each process of a row


class Chosen(NamedTuple):
    """places: at most one per turn, in order. turns: that were measured. flags: what disturbed the places; empty where
    enough undisturbed turns remained, so that the others were dropped."""
    places: List[Place]
    turns: int
    flags: List[str]


def chosen(*rows: Flags) -> Chosen:
    """The places that count for one row, or for a comparison of several.

    Undisturbed places count alone where there are three turns of them (or as many as were measured). A board that is
    throttled, or in a low power mode, on all sides of a comparison is in a state of its own: that is no disturbance
    where too few places are without it. Where even then too few remain, all turns count and `flags` says what disturbed
    them.
    """
    common = sorted(set(rows[0]).intersection(*rows[1:]))
    turns = len({turn for turn, _ in common})
    for disturbing in (any_flags, unequal_flags):
        clean = _first_of_each_turn(place for place in common if not disturbing(rows, place))
        if len(clean) >= min(LEAST_PAIRS, turns):
            return Chosen(clean, turns, [])
    least = _first_of_each_turn(sorted(common, key=lambda place: (place[0], len(any_flags(rows, place)), place[1])))
    return Chosen(least, turns, sorted(set().union(*(unequal_flags(rows, place) for place in least))))


def any_flags(rows: Sequence[Flags], place: Place) -> FrozenSet[str]:
    return frozenset().union(*(row[place] for row in rows))


def unequal_flags(rows: Sequence[Flags], place: Place) -> FrozenSet[str]:
    """All flags, without those of STEADY that every row has."""
    return any_flags(rows, place) - frozenset(flag for flag in STEADY if all(flag in row[place] for row in rows))


def flags_by_place(processes: Iterable[Mapping[str, Any]]) -> Dict[Place, FrozenSet[str]]:
    """processes: of a record."""
    return {(one["turn"], one["attempt"]): frozenset(one["flags"]) for one in processes}


def rounds_by_place(processes: Iterable[Mapping[str, Any]], per_round: Sequence[Any]) -> Dict[Place, List[Any]]:
    """What is listed per repetition, by the process that it is of."""
    found, begin = {}, 0
    for one in processes:
        found[one["turn"], one["attempt"]] = list(per_round[begin:begin + one["repetitions"]])
        begin += one["repetitions"]
    return found


def _first_of_each_turn(places: Iterable[Place]) -> List[Place]:
    found: Dict[int, Place] = {}
    for place in places:
        found.setdefault(place[0], place)
    return [found[turn] for turn in sorted(found)]
