"""Ratios: their baselines, their kind, their intervals, and when there is none."""
import numpy as np
import pytest

from merino_bench.harness.cases import prefill_case
from merino_bench.harness.interval import ratio_interval, student_t, tail_share
from merino_bench.harness.ratios import add_ratios
from merino_bench.harness.record import empty_record


def row(name, rounds_ms=(10.0, 12.0, 11.0), precision="fp32", dialect="fused", params=100, **values):
    """A prefill of 100 ids that took so long each time."""
    record = empty_record({"bundle": name, "precision": precision, "dialect": dialect, "params": params},
                          prefill_case(100))
    speeds = [1000 * 100 / one for one in rounds_ms]
    record.update(rounds_ms=[[one] for one in rounds_ms], repetitions=len(rounds_ms),
                  tok_s=sum(speeds) / len(speeds), **values)
    return record


def test_a_ratio_is_this_row_over_the_baseline():
    ours, base = row("ours", (10.0, 10.0), params=50), row("base", (30.0, 30.0), params=200)
    add_ratios([ours, base], [base], in_turn=[ours, base])
    assert ours["ratio_to_baseline"] == pytest.approx(3.0) and ours["params_ratio"] == 0.25
    assert ours["ratio_interval"] == pytest.approx([3.0, 3.0]) and ours["baseline"] == "base fp32 fused"
    assert base["ratio_to_baseline"] == 1.0 and base["params_ratio"] == 1.0 and ours["notes"] == []


def test_equal_format_and_as_shipped_are_told_apart():
    fp32, int4, peer = row("base"), row("ours", precision="int4"), row("peer", dialect=None)
    portable = row("plain", dialect="portable")
    add_ratios([fp32, int4, peer, portable], [fp32])
    kinds = [one["ratio_kind"] for one in (fp32, int4, peer, portable)]
    assert kinds == ["equal format", "as shipped", "equal format", "as shipped"]
    assert all(one["baseline"] == "base fp32 fused" for one in (fp32, int4, peer, portable))


def test_a_row_is_compared_with_the_baseline_of_its_own_format_or_with_the_first():
    first, second = row("base", (20.0,) * 3), row("base", (40.0,) * 3, precision="int4")
    ours = [row("ours", (10.0,) * 3, precision=name) for name in ("fp32", "int4", "int8")]
    add_ratios([*ours, first, second], [first, second])
    assert [one["ratio_to_baseline"] for one in ours] == pytest.approx([2.0, 4.0, 2.0])
    assert [one["ratio_kind"] for one in ours] == ["equal format", "equal format", "as shipped"]
    assert second["ratio_to_baseline"] == 1.0


@pytest.mark.parametrize("flags, base_flags, reason", [
    (["busy", "throttled"], [], "no ratio: this row is flagged busy, throttled"),
    ([], ["swapping"], "no ratio: the baseline base is flagged swapping"),
    (["failed: gone"], [], "no ratio: this row is flagged failed"),
    ([], ["failed: gone"], "no ratio: the baseline base is flagged failed")])
def test_a_disturbed_row_has_no_ratio_and_says_why(flags, base_flags, reason):
    ours, base = row("ours", flags=flags), row("base", flags=base_flags)
    add_ratios([ours, base], [base], in_turn=[ours, base])
    assert ours["ratio_to_baseline"] is None and ours["ratio_interval"] is None and ours["notes"] == [reason]
    assert ours["params_ratio"] == 1.0  # nothing was timed for it


def test_without_a_baseline_row_there_is_nothing_to_compare():
    ours = row("ours")
    add_ratios([ours], [])
    assert ours["ratio_to_baseline"] is None and ours["baseline"] is None and ours["ratio_kind"] is None


def test_rows_in_turn_are_paired_so_that_a_drift_cancels():
    drift = np.array([1.0, 1.2, 1.5, 2.0, 3.0])  # the machine gets slower all the time
    ours, base = row("ours", 10.0 * drift), row("base", 20.0 * drift)
    apart = row("apart", 10.0 * drift)
    add_ratios([ours, apart, base], [base], in_turn=[ours, base])
    assert ours["ratio_interval"] == pytest.approx([2.0, 2.0])
    low, high = apart["ratio_interval"]
    assert low < 1.3 and high > 3.0


def test_one_repetition_has_no_interval_and_the_draw_is_seeded():
    assert ratio_interval([1.0], [2.0], paired=True) is None
    assert ratio_interval([1.0, 2.0], [2.0], paired=False) is None
    values = [9.0, 10.0, 11.0, 10.5, 9.5]
    assert ratio_interval(values, values[::-1], False) == ratio_interval(values, values[::-1], False)
    low, high = ratio_interval(values, values[::-1], True)
    assert 9 / 11 < low < 1 < high < 11 / 9


@pytest.mark.parametrize("freedom, quantile", [(1, 12.706), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042),
                                               (1000, 1.962)])
def test_student_t_is_that_of_the_tables(freedom, quantile):
    assert student_t(freedom) == pytest.approx(quantile, rel=0.01)


def test_few_values_are_cut_further_out():
    assert tail_share(100000) == pytest.approx(0.025, rel=0.01)
    assert tail_share(5) == pytest.approx(0.00096, rel=0.02) and tail_share(2) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("count, paired, least", [
    (5, False, 0.94), (5, True, 0.91), (10, False, 0.93), (10, True, 0.93)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(count, paired, least):
    """Speeds of one normal distribution, 500 experiments, seeded. A plain percentile interval covers the truth in 84
    (paired) and 87 % of them with five values."""
    random = np.random.RandomState(2)
    covered = 0
    for _ in range(500):
        low, high = ratio_interval(random.normal(100, 3, count), random.normal(100, 3, count), paired)
        covered += low <= 1 <= high
    assert covered / 500 > least
