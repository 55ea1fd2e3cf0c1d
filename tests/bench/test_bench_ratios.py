"""Ratios: their baselines, their kind, their intervals, and which pairs of processes count."""
import math

import numpy as np
import pytest

from merino_bench.harness.cases import prefill_case
from merino_bench.harness.pairs import paired_ratio, select_processes
from merino_bench.harness.record import add_ratios, empty_record

BUSY, THROTTLED, NONE = frozenset(["busy"]), frozenset(["throttled"]), frozenset()
LOW = frozenset(["low-power"])


def row(name, rounds_ms=(10.0, 12.0, 11.0), precision="fp32", dialect="fused", params=100, flags_by_turn=(), **values):
    """A prefill of 100 ids that took so long, once in each process."""
    record = empty_record({"bundle": name, "precision": precision, "dialect": dialect, "params": params},
                          prefill_case(100))
    flags = [*flags_by_turn, *[[]] * (len(rounds_ms) - len(flags_by_turn))]
    record.update(rounds_ms=[[ms] for ms in rounds_ms], repetitions=len(rounds_ms),
                  processes=[{"turn": turn, "attempt": 0, "repetitions": 1, "flags": result}
                             for turn, result in enumerate(flags)], **values)
    return record


def test_a_ratio_is_this_row_over_the_baseline():
    own, base = row("ours", (10.0, 10.0, 10.0), params=50), row("base", (30.0, 30.0, 30.0), params=200)
    add_ratios([own, base], [base])
    assert own["ratio_to_baseline"] == pytest.approx(3.0) and own["params_ratio"] == 0.25
    assert own["ratio_interval"] == pytest.approx([3.0, 3.0]) and own["baseline"] == "base fp32 fused"
    assert own["ratio_turns"] == [3, 3] and own["ratio_flags"] == [] and own["notes"] == []
    assert base["ratio_to_baseline"] == 1.0 and base["ratio_interval"] is None and base["params_ratio"] == 1.0


def test_equal_format_and_as_shipped_are_distinguished():
    fp32, int4, peer = row("base"), row("ours", precision="int4"), row("peer", dialect=None)
    portable, cached = row("plain", dialect="portable"), row("ours", kv="int8")
    rows = [fp32, int4, peer, portable, cached]
    add_ratios(rows, [fp32])
    kinds = [record["ratio_kind"] for record in rows]
    assert kinds == ["equal format", "as shipped", "equal format", "as shipped", "as shipped"]
    assert [record["baseline"] for record in rows] == ["base fp32 fused"] * 5
    add_ratios(rows, [cached])
    assert (cached["ratio_kind"], fp32["baseline"]) == ("equal format", "ours fp32 fused int8 cache")


def test_a_row_is_compared_with_the_baseline_of_its_own_format_or_with_the_first():
    first, second = row("base", (20.0,) * 3), row("base", (40.0,) * 3, precision="int4")
    own = [row("ours", (10.0,) * 3, precision=name) for name in ("fp32", "int4", "int8")]
    add_ratios([*own, first, second], [first, second])
    assert [record["ratio_to_baseline"] for record in own] == pytest.approx([2.0, 4.0, 2.0])
    assert [record["ratio_kind"] for record in own] == ["equal format", "equal format", "as shipped"]
    assert second["ratio_to_baseline"] == 1.0


def test_a_disturbed_pair_is_dropped_where_three_remain():
    own = row("ours", (10.0, 99.0, 10.0, 10.0, 10.0), flags_by_turn=[[], ["busy"]])
    base = row("base", (20.0, 20.0, 20.0, 20.0, 70.0), flags_by_turn=[[], [], [], [], ["swapping"]])
    add_ratios([own, base], [base])
    assert own["ratio_to_baseline"] == pytest.approx(2.0) and own["ratio_turns"] == [3, 5]
    assert own["ratio_interval"] == pytest.approx([2.0, 2.0]) and own["ratio_flags"] == []


@pytest.mark.parametrize("rows, places, turns, flags", [
    ([{(0, 0): BUSY, (0, 1): NONE, (1, 0): NONE, (2, 0): NONE}], [(0, 1), (1, 0), (2, 0)], 3, []),
    ([{(0, 0): BUSY, (0, 1): BUSY, (0, 2): NONE}], [(0, 2)], 1, []),  # one turn was asked for
    ([{(0, 0): BUSY}], [(0, 0)], 1, ["busy"]),
    ([{(0, 0): THROTTLED, (1, 0): NONE, (2, 0): NONE, (3, 0): NONE}], [(1, 0), (2, 0), (3, 0)], 4, []),
    ([{(0, 0): THROTTLED, (1, 0): NONE, (2, 0): NONE}], [(0, 0), (1, 0), (2, 0)], 3, []),
    ([{(0, 0): LOW, (0, 1): LOW | BUSY, (1, 0): LOW}], [(0, 0), (1, 0)], 2, []),
    ([{(0, 0): LOW}, {(0, 0): NONE}], [(0, 0)], 1, ["low-power"]),
    ([{(0, 0): THROTTLED}, {(0, 0): THROTTLED}], [(0, 0)], 1, []),
    ([{(0, 0): NONE, (0, 1): NONE}, {(0, 1): NONE}], [(0, 1)], 1, []),  # only the second attempt was made by both
    ([{(turn, 0): NONE for turn in range(5)}, {(turn, 0): BUSY if turn < 3 else NONE for turn in range(5)}],
     [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)], 5, ["busy"])])
def test_which_processes_count(rows, places, turns, flags):
    assert select_processes(*rows) == (places, turns, flags)


@pytest.mark.parametrize("flags, base_flags, reason", [
    (["failed: gone"], [], "no ratio: this row failed"), ([], ["failed: gone"], "no ratio: the baseline base failed")])
def test_a_row_that_failed_has_no_ratio_and_says_why(flags, base_flags, reason):
    own, base = row("ours", flags=flags), row("base", flags=base_flags)
    add_ratios([own, base], [base])
    assert own["ratio_to_baseline"] is None and own["ratio_interval"] is None and own["notes"] == [reason]
    assert own["params_ratio"] == 1.0  # nothing was timed for it


def test_without_a_baseline_row_there_is_nothing_to_compare():
    own = row("ours")
    add_ratios([own], [])
    assert own["ratio_to_baseline"] is None and own["baseline"] is None and own["ratio_kind"] is None


def test_an_interval_by_hand():
    """Logs of the ratios: 0, 0.1 and 0.2, so their mean is 0.1 and their deviation 0.1; t(2) is 4.3027."""
    result = paired_ratio([1.0, math.exp(0.1), math.exp(0.2)], [1.0, 1.0, 1.0])
    half = 4.3027 * 0.1 / math.sqrt(3)
    assert result.value == pytest.approx(math.exp(0.1))
    assert result.interval == pytest.approx([math.exp(0.1 - half), math.exp(0.1 + half)])


@pytest.mark.parametrize("count", [1, 2])
def test_below_three_processes_there_is_no_interval(count):
    result = paired_ratio([2.0] * count, [1.0] * count)
    assert result.value == pytest.approx(2.0) and result.interval is None


@pytest.mark.parametrize("repetitions", [5, 10, 20, 50])
@pytest.mark.parametrize("between, within", [(0.03, 0.01), (0.0, 0.03), (0.03, 0.0), (0.01, 0.1)])
def test_the_interval_covers_the_truth_as_often_as_it_says(repetitions, between, within):
    """4000 simulated runs of five processes a side: speeds differ by `between` from process to process and by `within`
    from repetition to repetition, and both sides drift alike. The standard error of a share near 0.95 is 0.0034."""
    random = np.random.RandomState(repetitions)
    covered = 0
    for _ in range(4000):
        drift = np.linspace(1, 1.2, 5)
        sides = []
        for true_speed in (200.0, 100.0):
            processes = true_speed * drift * np.exp(random.normal(0, between, 5))  # [processes]
            rounds = processes[:, None] * np.exp(random.normal(0, within, (5, repetitions // 5)))
            sides.append(rounds.mean(axis=1))
        low, high = paired_ratio(*sides).interval
        covered += low <= 2 <= high
    assert 0.935 < covered / 4000 < 0.965
