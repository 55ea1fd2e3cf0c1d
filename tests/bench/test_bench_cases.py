"""What is measured: lengths, names, and what a context allows.

Which processes a disturbed turn is measured again in, on real engines whose states of the machine are given.

Each engine is measured in one real process, whose figures stand for those of its other processes.
"""
import pytest

from merino_bench.harness.cases import (
    BenchRequest,
    cases_for,
    decode_case,
    parse_depths,
    parse_lengths,
    parse_threads,
)
from merino_bench.harness.record import add_ratios
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


pytestmark = pytest.mark.slow


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


def test_a_machine_that_is_always_busy_still_gives_a_number(folder):
    engines = [engine(folder, name, name == "base", lambda: ["busy"], []) for name in ("ours", "base")]
    turns = Turns(engines, decode_case(2), 5, 100.0)
    turns.measure(lambda *_: None)
    assert [len(processes) for processes in turns.processes] == [2 * 3 + 3] * 2  # two turns in vain end the attempts
    own = rows_of_turns(turns)[0]
    assert own["ratio_to_baseline"] > 0 and own["ratio_flags"] == ["busy"] == own["flags"]
