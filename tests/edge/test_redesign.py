"""Measure and design again: on machines that are off in known ways, and on the real one."""

from contextlib import contextmanager, suppress
from functools import cache

import numpy as np
import pytest
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from sample_probe import with_errors

from merino_edge.benchmarking.measuring import (
    AIM,
    ENOUGH,
    MOST_DESIGNS,
    bench_here,
    largest_share,
    measure_design,
    redesign,
)
from merino_edge.cli.design_tables import solver_line
from merino_edge.design.budgets import options_line
from merino_edge.design.design_file import Measured
from merino_edge.design.designer import design
from merino_edge.design.space import Space
from merino_edge.profiles.reading import load_profile
from merino_runtime.errors import MerinoError

pytestmark = pytest.mark.slow

BOARD = load_profile("raspberry-pi-5")
SPACE = Space(widths=(64, 128, 192, 256), depths=(2, 3, 4, 5, 6, 7, 8), ffn_ratios=(1.0, 2.0))
FORMATS = {"vocabs": [2000], "precisions": ["fp32"], "kvs": [None]}


def real(budgets):
    return design(BOARD, budgets, space=SPACE, context=128, prompt=64, **FORMATS)


@cache
def ladder():
    """Optima of the space by rising decode time: what a search can answer, computed once."""
    largest = real({"params_m": 100})
    shares = np.geomspace(0.05, 1, 30)
    results = {}
    for share in shares:
        with suppress(MerinoError):
            design = real({"decode_ms": share * largest.predicted.decode_ms})
            results[design.architecture] = design
    assert len(results) > 20
    return list(results.values())


def find(budgets, _=None):
    fitting = [
        design for design in ladder()
        if all(getattr(design.predicted, name) <= most for name, most in budgets.items())
    ]  # fmt: skip
    if not fitting:
        raise MerinoError("less than the least decoder takes: --decode-ms")
    return max(fitting, key=lambda design: design.entropy)


def machine(decode=1.0, prefill=1.0, memory=1.0):
    """A measurement that is so many times what is predicted."""
    seen = []

    def measure(design):
        seen.append(design)
        message = design.predicted
        return Measured(decode_ms=decode * message.decode_ms, prefill_ms=prefill * message.prefill_ms,
                        memory_mb=memory * message.memory_mb, flags=[], designs=1)  # fmt: skip

    return measure, seen


def requested(decode=1.0, **keys):
    """Budgets, decode time as a share of the largest decoder's."""
    return {"decode_ms": decode * ladder()[-1].predicted.decode_ms, **keys}


@given(st.floats(0.6, 1.6), st.floats(0.6, 1.6), st.floats(0.9, 1.1), st.floats(0.3, 0.9))
@examples(100, by_day=20)
def test_whatever_the_machine_is_off_by_the_design_keeps_its_budgets(decode, prefill, memory, share):
    largest = ladder()[-1].predicted
    budgets = requested(share, prefill_ms=largest.prefill_ms, memory_mb=largest.memory_mb)
    measure, seen = machine(decode, prefill, memory)
    result = redesign(budgets, find, measure)
    assert result.measured.decode_ms == pytest.approx(decode * result.predicted.decode_ms)
    assert result.budget == budgets and result.measured.designs == len(seen) <= MOST_DESIGNS
    assert all(getattr(result.measured, name) <= limit for name, limit in result.budget.items())
    first = largest_share(seen[0].model_copy(update={"budget": budgets, "measured": measure(seen[0])}))
    if ENOUGH <= first <= 1:
        assert result.measured.designs == 1, "what keeps its budgets and uses them is not designed again"


def by_turns(*factors):
    """A machine off by another factor for each design; by the last one from then on."""
    left, seen = list(factors), []

    def measure(design):
        seen.append(design)
        return machine(left.pop(0) if len(left) > 1 else left[0])[0](design)

    return measure, seen


def test_a_budget_is_rescaled_by_predicted_over_measured():
    requests = []

    def spying(budgets, like):
        requests.append(budgets)
        return find(budgets, like)

    redesign(requested(0.5, flops_g=100), spying, machine(decode=1.25)[0])
    first, second = requests[:2]
    assert first == requested(0.5, flops_g=100)
    assert second == {"decode_ms": pytest.approx(AIM / 1.25 * first["decode_ms"]), "flops_g": 100}


def test_of_an_interval_the_upper_end_is_rescaled():
    """The search holds it against the limit, so the next design measures AIM of the budget."""
    board, requests, made = with_errors(BOARD, scale=0.1), [], []

    def searching(budgets, _):
        requests.append(budgets)
        made.append(design(board, budgets, space=SPACE, context=128, prompt=64, **FORMATS))
        return made[-1]

    budget = requested(0.5)
    redesign(budget, searching, machine(decode=0.8)[0])
    first, second = made[:2]
    assert first.predicted.decode_ms < first.predicted.decode_ms_interval[1] <= budget["decode_ms"]
    assert requests[1] == {"decode_ms": pytest.approx(
        AIM * budget["decode_ms"] * first.predicted.decode_ms_interval[1] / (0.8 * first.predicted.decode_ms)
    )}  # fmt: skip
    assert 0.9 * budget["decode_ms"] < 0.8 * second.predicted.decode_ms <= AIM * budget["decode_ms"]


def test_after_one_that_took_too_much_and_one_that_took_too_little_the_geometric_mean_is_asked_for():
    measure, seen = by_turns(1.2, 0.5, 1.0)
    result = redesign(requested(0.5), find, measure)
    assert len(seen) == 3 and result.architecture == seen[2].architecture
    limit = requested(0.5)["decode_ms"]
    assert result.searched["decode_ms"] == pytest.approx(limit * (AIM / 1.2) ** 0.5)


def test_the_record_says_which_limits_the_search_and_its_proof_are_for():
    """Its decoder, its bound and its thread counts are those of a search for `searched`, not for `budget`."""
    result = redesign(requested(0.5), find, machine(decode=1.25)[0])
    assert result.budget == requested(0.5) != result.searched
    again = find(result.searched)
    for part in ("architecture", "entropy", "solver", "predicted"):
        assert getattr(result, part) == getattr(again, part), part
    assert result.solver.bound < find(requested(0.5)).solver.bound, "the proof for what was asked is another one"
    assert f"rescaled budgets: {options_line(result.searched)}" in solver_line(result)


def test_a_design_that_keeps_its_budgets_at_once_is_the_best_within_them():
    result = redesign(requested(0.5), find, machine()[0])
    assert result.searched == result.budget == requested(0.5)
    line = solver_line(result)
    assert line.startswith("the best of all") and "rescaled" not in line


def test_of_those_that_kept_the_budget_the_one_of_most_entropy_is_chosen():
    """The first breaks it, the second uses too little of it, the third breaks it."""
    measure, seen = by_turns(1.2, 0.9, 1.4)
    messages = []
    result = redesign(requested(0.5), find, measure, messages.append)
    assert len(seen) == len(messages) == 3 and result.architecture == seen[1].architecture
    assert result.measured.designs == 3 and "of decode_ms" in messages[0]


def test_a_design_that_comes_again_is_not_measured_again():
    measure, seen = machine(0.5)
    result = redesign(requested(1.2), find, measure)
    assert [design.architecture for design in seen] == [ladder()[-1].architecture] == [result.architecture]


def test_what_no_design_keeps_is_said_with_what_each_took():
    with pytest.raises(MerinoError, match=r"none of 1 designs kept .* 12[0-9.]+% of decode_ms"):
        redesign({"decode_ms": 1.02 * ladder()[0].predicted.decode_ms}, find, machine(decode=1.3)[0])


def test_less_than_the_least_decoder_takes_is_refused_before_anything_is_measured():
    measure, seen = machine()
    with pytest.raises(MerinoError, match="decode"):
        redesign({"decode_ms": 0.5 * ladder()[0].predicted.decode_ms}, find, measure)
    assert seen == []


def test_budgets_that_cannot_be_measured_take_one_design():
    measure, seen = machine(decode=2.0)
    assert redesign({"flops_g": 100}, find, measure).measured.designs == len(seen) == 1


@pytest.mark.nightly
def test_a_design_is_measured_as_bench_does():
    messages = []

    @contextmanager
    def progress():
        yield lambda *message: messages.append(message)

    result = real({"params_m": 0.5})
    measured = measure_design(result, bench_here(progress))
    assert 0 < measured.decode_ms < 1000 and 0 < measured.prefill_ms < 10_000
    assert 30 < measured.memory_mb < 1000
    assert any("tg32 @ d96" in what for *_, what in messages) and any("pp64" in what for *_, what in messages)
