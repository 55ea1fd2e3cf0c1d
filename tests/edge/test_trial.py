"""A design that is measured until it keeps its budgets: by machines that are off in known ways, and by the real one."""

from contextlib import suppress
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.benchmarking.redesign import AIM, ENOUGH, MOST_DESIGNS, keeping, measured_here, quick, uses
from merino_edge.design.design_file import Measured
from merino_edge.design.designer import design
from merino_edge.design.space import Space
from merino_edge.profiles.profile import load_profile
from merino_runtime.errors import MerinoError

BOARD = load_profile("raspberry-pi-5")
SPACE = Space(widths=(64, 128, 192, 256), depths=(1, 2, 3, 4), ffn_ratios=(1.0, 2.0), blocks=2, vocab=2000)


def real(budgets):
    return design(BOARD, budgets, space=SPACE, context=128, prompt=64)


@cache
def ladder():
    """Optima of the space by rising decode time: what a search can answer, found once."""
    largest = real({"params_m": 100})
    shares = np.geomspace(0.05, 1, 60)
    found = {}
    for share in shares:
        with suppress(MerinoError):
            one = real({"decode_ms": share * largest.predicted.decode_ms})
            found[one.architecture] = one
    return list(found.values())


def find(budgets, _=None):
    fitting = [
        one for one in ladder()
        if all(getattr(one.predicted, name) <= most for name, most in budgets.items())
    ]  # fmt: skip
    if not fitting:
        raise MerinoError("less than the least decoder takes: --decode-ms")
    return max(fitting, key=lambda one: one.entropy)


def machine(decode=1.0, prefill=1.0, memory=1.0):
    """A measurement that is so many times what is predicted."""
    seen = []

    def measure(found):
        seen.append(found)
        told = found.predicted
        return Measured(decode_ms=decode * told.decode_ms, prefill_ms=prefill * told.prefill_ms,
                        memory_mb=memory * told.memory_mb, flags=[], designs=1)  # fmt: skip

    return measure, seen


@given(st.floats(0.6, 1.6), st.floats(0.6, 1.6), st.floats(0.9, 1.1), st.floats(0.3, 0.9))
def test_whatever_the_machine_is_off_by_the_design_keeps_its_budgets(decode, prefill, memory, share):
    largest = ladder()[-1].predicted
    budgets = {"decode_ms": share * largest.decode_ms, "prefill_ms": largest.prefill_ms, "memory_mb": largest.memory_mb}
    measure, seen = machine(decode, prefill, memory)

    def use(one):
        return max(uses(one.model_copy(update={"budget": budgets, "measured": measure(one)})).values())

    found = keeping(budgets, find, measure)
    tried = len(seen)
    assert found.budget == budgets and found.measured.designs == tried <= MOST_DESIGNS
    assert found.measured.decode_ms == pytest.approx(decode * found.predicted.decode_ms)
    assert use(found) <= 1
    if ENOUGH[0] <= use(seen[0]) <= ENOUGH[1]:
        assert tried == 1, "what keeps its budget and uses it is not made again"
    elif any(ENOUGH[0] <= use(one) <= AIM for one in ladder()):
        assert tried == 2 and ENOUGH[0] <= use(found), "a machine that is off by a factor needs one correction"


def by_turns(*factors):
    """A machine off by another factor for each design; by the last one from then on."""
    left, seen = list(factors), []

    def measure(found):
        seen.append(found)
        return machine(left.pop(0) if len(left) > 1 else left[0])[0](found)

    return measure, seen


def half():
    return {"decode_ms": 0.5 * ladder()[-1].predicted.decode_ms}


def test_between_one_that_took_too_much_and_one_that_took_too_little_there_is_another():
    measure, seen = by_turns(1.2, 1.0)
    found = keeping(half(), find, measure)
    sizes = [one.predicted.decode_ms for one in seen]
    assert sizes[1] < sizes[2] < sizes[3] < sizes[0] and found.architecture == seen[-1].architecture
    assert not [one for one in ladder() if sizes[-1] < one.predicted.decode_ms < sizes[0]], "the next one was tried"


def test_of_those_that_kept_the_budget_the_one_of_most_entropy_is_chosen():
    """The first breaks it, the second uses too little of it, all others break it."""
    measure, seen = by_turns(1.2, 0.9, 1.4)
    found = keeping(half(), find, measure)
    assert len(seen) >= 3 and found.architecture == seen[1].architecture
    assert found.measured.designs == len(seen)


def test_a_design_that_comes_again_is_not_measured_again():
    seen = []

    def measure(found):
        seen.append(found.architecture)
        return machine(0.5)[0](found)

    top = ladder()[-1]
    found = keeping({"decode_ms": 1.2 * top.predicted.decode_ms}, find, measure)
    assert seen == [top.architecture] and found.architecture == top.architecture


def test_what_no_design_keeps_is_said_with_what_was_measured():
    with pytest.raises(MerinoError, match=r"none of 1 designs kept .* 12[0-9.]+%"):
        keeping({"decode_ms": 1.02 * ladder()[0].predicted.decode_ms}, find, machine(decode=1.3)[0])


def test_less_than_the_least_decoder_takes_is_refused_before_anything_is_measured():
    measure, seen = machine()
    with pytest.raises(MerinoError, match="decode"):
        keeping({"decode_ms": 0.5 * ladder()[0].predicted.decode_ms}, find, measure)
    assert seen == []


def test_a_budget_just_above_the_least_is_asked_for_as_it_is():
    """Nothing takes 95 % of it."""
    budgets = {"decode_ms": 1.01 * ladder()[0].predicted.decode_ms}
    assert keeping(budgets, find, machine()[0]).measured.designs == 1


def test_a_measurement_of_this_machine():
    measured = measured_here(real({"params_m": 0.5}))
    assert 0 < measured.decode_ms < 1000 and 0 < measured.prefill_ms < 10_000
    assert 30 < measured.memory_mb < 1000


def test_what_a_slow_machine_measured_counts_only_where_there_is_nothing_else():
    slow, fast = {"flags": ["slow"], "peak_rss_mb": 1}, {"flags": ["busy"], "peak_rss_mb": 2}
    assert quick([slow, fast, slow]) == [fast]
    assert quick([slow, slow]) == [slow, slow]
