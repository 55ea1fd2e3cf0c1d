"""What is measured: lengths, names, and what a context allows.

Which processes a disturbed turn is measured again in, on real engines whose states of the machine are given.

Each engine is measured in one real process, whose figures stand for those of its other processes.

Ratios: their baselines, their kind, their intervals, and which pairs of processes count.
"""
import math

import numpy as np
import pytest

from merino_bench.harness.cases import (
    BenchRequest,
    cases_for,
    decode_case,
    parse_depths,
    parse_lengths,
    parse_threads,
    prefill_case,
)
from merino_bench.harness.pairs import paired_ratio, select_processes
from merino_bench.harness.record import add_ratios, empty_record
from merino_bench.harness.turns import Turns, bundle_engine
from merino_runtime.errors import MerinoError


@pytest.mark.parametrize("text, lengths", [
    ("512", (512,)), ("128,512", (128, 512)), ("512, 128,512", (512, 128)), ("0", ()), ("0,4", (4,)),
    ("1-4", (1, 2, 3, 4)), ("64-256+64", (64, 128, 192, 256)), ("128-2048*2", (128, 256, 512, 1024, 2048)),
    ("0-2", (1, 2)), ("5-5", (5,)), ("8,1-10+3", (8, 1, 4, 7, 10)), ("100-250*2", (100, 200))])
def test_lengths_are_lists_and_ranges_as_llama_bench_takes_them(text, lengths):
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize("text", ["", "a", "-1", "1.5", "1,,2", "1;2", "1-", "1-2-3", "4-8+", "4-8/2", "9" * 5000,
                                  "1-" + "9" * 5000])
def test_other_lengths_are_refused_with_what_was_written(text):
    with pytest.raises(MerinoError, match="expected numbers") as refused:
        parse_lengths(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("context, names", [
    (2048, ["pp512", "tg128"]), (1024, ["pp512", "tg128"]), (512, ["pp256", "tg128"]), (64, ["pp32", "tg56"]),
    (9, ["pp4", "tg1"])])
def test_the_usual_lengths_shrink_with_the_context(context, names):
    assert [case.name for case in cases_for(BenchRequest(), [("a", context)])] == names


def test_the_smallest_context_rules_so_that_rows_compare():
    assert [case.name for case in cases_for(BenchRequest(), [("a", 2048), ("b", 256)])] == ["pp128", "tg128"]


def test_what_was_asked_for_is_never_shortened():
    contexts = [("wide", 2048), ("narrow", 64)]
    with pytest.raises(MerinoError) as refused:
        cases_for(BenchRequest((65,), (57,)), contexts)
    message = str(refused.value)
    assert "pp65, tg57" in message and "'narrow'" in message and "-p up to 64 together" in message
    assert "-n up to 56" in message
    assert len(cases_for(BenchRequest((64,), (56,)), contexts)) == 2


@pytest.mark.parametrize("run_request, words", [
    (BenchRequest(repetitions=0), "repetitions is 0"), (BenchRequest((), ()), "nothing is left")])
def test_impossible_requests_are_refused(run_request, words):
    with pytest.raises(MerinoError, match=words):
        cases_for(run_request, [("a", 64)])


def test_depths_keep_their_zero_and_threads_have_none():
    assert parse_depths("0,512") == (0, 512) and parse_threads("1-4") == (1, 2, 3, 4)
    with pytest.raises(MerinoError, match="threads are '0-2', 0 is too small, allowed: 1"):
        parse_threads("0-2")


def test_usual_lengths_shrink_behind_a_depth_and_what_was_asked_for_does_not_fit():
    cases = cases_for(BenchRequest(depths=(0, 48)), [("a", 64)])
    assert [case.name for case in cases] == ["pp8", "tg16", "pp8 @ d48", "tg16 @ d48"]
    with pytest.raises(MerinoError, match="pp32 @ d48, tg20 @ d48 does not fit.*-n up to 16"):
        cases_for(BenchRequest((32,), (20,), depths=(0, 48)), [("a", 64)])


@pytest.fixture
def folder(bundle_dirs):
    return bundle_dirs["portable"]


def engine(folder, name, is_baseline, flags_of_next, calls):
    """Its processes are appended to `calls` by name, and have the flags that `flags_of_next` gives."""
    real = bundle_engine(folder, is_baseline)
    measured = []

    def measure(*arguments):
        if not measured:
            measured.append(real.measure(*arguments))
        calls.append(name)
        return dict(measured[0], flags=flags_of_next())

    return real._replace(measure=measure, identity=dict(real.identity, bundle=name))


def rows_of_turns(turns):
    rows = [engine.row(turns.case, processes) for engine, processes in zip(turns.engines, turns.processes)]
    add_ratios(rows, rows[1:])
    return rows


@pytest.mark.slow
def test_what_was_disturbed_is_measured_again_with_its_partner(folder):
    """The second turn of one side is busy once, the third is busy always."""
    calls, flags = [], [[], ["busy"], [], ["busy"], ["swapping"], ["busy"]]
    own = engine(folder, "ours", False, lambda: flags.pop(0) if flags else [], calls)
    turns = Turns([own, engine(folder, "base", True, list, calls)], decode_case(2), 5, 100.0)
    turns.measure(lambda *_: None)
    a_b, b_a = ["ours", "base"], ["base", "ours"]
    assert calls == [*a_b, *b_a, *a_b, *a_b, *b_a, *a_b, *b_a, *a_b]
    places = [(process["turn"], process["attempt"]) for process in turns.processes[0]]
    assert places == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0), (4, 0)]
    own = rows_of_turns(turns)[0]
    assert own["ratio_turns"] == [4, 5] and own["ratio_flags"] == [] and own["flags"] == []
    assert own["ratio_interval"] is not None


@pytest.mark.slow
def test_a_machine_that_is_always_busy_still_gives_a_number(folder):
    engines = [engine(folder, name, name == "base", lambda: ["busy"], []) for name in ("ours", "base")]
    turns = Turns(engines, decode_case(2), 5, 100.0)
    turns.measure(lambda *_: None)
    assert [len(processes) for processes in turns.processes] == [2 * 3 + 3] * 2  # two turns in vain end the attempts
    own = rows_of_turns(turns)[0]
    assert own["ratio_to_baseline"] > 0 and own["ratio_flags"] == ["busy"] == own["flags"]


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
