"""Which processes a disturbed turn is measured again in, on real engines whose states of the machine are given.

Each engine is measured in one real process, whose figures stand for those of its other processes.
"""
import pytest

from merino_bench.harness.cases import decode_case
from merino_bench.harness.record import add_ratios
from merino_bench.harness.turns import Turns, bundle_engine

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(bundle_dirs):
    return bundle_dirs["portable"]


def engine(folder, name, is_baseline, flags_of_next, calls):
    """Its processes are appended to `calls` by name, and have the flags that `flags_of_next` gives."""
    real = bundle_engine(folder, is_baseline, 0)
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
