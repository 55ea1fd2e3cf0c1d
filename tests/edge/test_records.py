"""Files of records: valid rows come back, every fault of every file is reported; and comparisons of two of them."""

import json

import numpy as np
import pytest
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from sample_records import failed, many, opt, record
from typer import BadParameter

from merino_bench.harness.cases import BenchRequest
from merino_bench.harness.record import SCHEMA
from merino_bench.harness.render import append, as_json, as_json_lines
from merino_bench.harness.run import run_bench
from merino_edge.cli.options import parse_percent
from merino_edge.cli.records import ALLOWED_LOSS
from merino_edge.records.compare import (
    NO_DIFFERENCE,
    NOT_JUDGED,
    UNDECIDED,
    check_not_slower,
    compare,
    independent_ratio,
    row_ratio,
)
from merino_edge.records.reading import read_records
from merino_edge.records.schema import Record
from merino_runtime.errors import MerinoError


def written(tmp_path, text, name="records.json"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_list_and_lines_give_the_same_records_whatever_the_file_is_called(tmp_path):
    listed = read_records([written(tmp_path, as_json(many()), "a.jsonl")])
    lines = read_records([written(tmp_path, as_json_lines(many()) + "\n\n", "b.json")])
    assert listed == lines and len(listed) == len(many())
    assert read_records([tmp_path / "a.jsonl", tmp_path / "b.json"]) == listed + lines


@pytest.mark.slow
@pytest.mark.usefixtures("quick_benchmarks")
def test_what_the_harness_writes_is_read(bundle_dirs, tmp_path):
    rows = run_bench([bundle_dirs["fused"], str(tmp_path / "gone")], BenchRequest((4,), (3,), repetitions=2))
    result = read_records([written(tmp_path, as_json(rows))])
    assert [row.test for row in result if row.failure is None] == ["pp4", "tg3"]
    failed = [row for row in result if row.failure is not None]
    assert len(failed) == 2 and all(row.bundle == "gone" and "gone" in row.failure for row in failed)
    for row in result:
        if row.failure is None:
            assert row.speeds and sum(row.speeds) / len(row.speeds) == pytest.approx(row.tok_s)
            assert row.geometry is not None and row.geometry.context == 64
            assert row.cached == (8 if row.decodes else 0)


@pytest.mark.parametrize("schema", [1, SCHEMA + 1, "two", None])
def test_another_schema_is_one_fault_with_what_to_do_and_no_list_of_keys(tmp_path, schema):
    old = {"schema": schema, "bundle": "ours", "unknown": 1}
    with pytest.raises(MerinoError) as caught:
        read_records([written(tmp_path, json.dumps([record(), old]))])
    (line,) = str(caught.value).splitlines()
    assert line.endswith(f"row 2: schema {schema!r} is not read, only {SCHEMA}: measure again with this version's"
                         " `bench`")  # fmt: skip


def test_all_faults_of_all_files_are_reported_at_once(tmp_path):
    typo = {**record(), "tok_sec": 3.0, "threads": "2"}
    del typo["depth"]
    paths = [
        written(tmp_path, json.dumps([record(), typo, {**typo, "tok_s": -1}]), "a.json"),
        written(tmp_path, json.dumps(record()) + "\n{broken\n", "b.jsonl"),
        written(tmp_path, " \n", "c.json"), written(tmp_path, "[]", "d.json"), tmp_path / "e.json",
        written(tmp_path, json.dumps({**record(), "ms_p50": float("nan")}), "f.json"),
    ]  # fmt: skip
    with pytest.raises(MerinoError) as caught:
        read_records(paths)
    output = str(caught.value)
    for part in (
        "a.json: row 2: ", "a.json: row 3: ", "depth: missing", "tok_sec: unknown key", "threads is ", "tok_s is ",
        "b.jsonl: row 2: ", "c.json: holds no record", "d.json: holds no record", f"cannot read {tmp_path}/e.json",
        "f.json: row 1: not JSON",
    ):  # fmt: skip
        assert part in output, output
    assert output.count("\n") == 7, output


@pytest.mark.parametrize(("changes", "message"), [
    ({"test": "warmup"}, "test"),
    ({"flags": None}, "flags"),
    ({"processes": None, "rounds_ms": None}, "must have rounds_ms, processes"),
    ({"rounds_ms": [[1.0]]}, "processes have 5 repetitions, rounds_ms has 1"),
    ({"rounds_ms": [[1.0]] * 4 + [[]]}, r"rounds_ms\[4\]"),
    ({"rounds_ms": None}, "must have rounds_ms"),
    ({"architecture": {"blocks": []}}, "architecture"),
    ({"ratio_interval": [1.0]}, "ratio_interval"),
])  # fmt: skip
def test_a_contradiction_is_a_fault(tmp_path, changes, message):
    with pytest.raises(MerinoError, match=message):
        read_records([written(tmp_path, json.dumps([{**record(), **changes}]))])


ROWS = [record(), failed(), opt()]
LINES = [as_json_lines([row]) for row in ROWS]


@pytest.fixture(scope="module")
def records_file(tmp_path_factory):
    return tmp_path_factory.mktemp("records") / "records.jsonl"


@given(place=st.integers(0, 2), left=st.floats(0, 1, exclude_max=True), again=st.booleans())
def test_a_line_cut_anywhere_costs_its_row_alone_and_is_one_note(place, left, again, records_file):
    """Cut by a power cut or a full disk: in the end of the file, or behind it what a later run appended."""
    whole = LINES[place].rstrip("\n")
    cut = whole[: 1 + int(left * (len(whole) - 1))]
    before = [line for line in LINES if line != LINES[place]]
    records_file.write_text("".join(before) + cut)
    if again:
        append([ROWS[place]], str(records_file))
    messages = []
    result = read_records([records_file], messages.append)
    assert result == [Record.model_validate_json(line) for line in before + [LINES[place]] * again]
    assert messages == [f"note: {records_file}: row 3: cut off, as by a power cut or a full disk, and left out"]


def test_a_file_with_nothing_but_a_cut_row_holds_no_record(tmp_path):
    with pytest.raises(MerinoError, match=r"not benchmark records: .*: .*a\.jsonl: holds no complete record$"):
        read_records([written(tmp_path, LINES[0][:100], "a.jsonl")])


@given(left=st.floats(0, 1, exclude_max=True))
def test_a_list_cut_anywhere_is_one_line(left, records_file):
    whole = as_json(ROWS).rstrip("\n")
    records_file.write_text(whole[: 1 + int(left * (len(whole) - 1))])
    with pytest.raises(MerinoError) as caught:
        read_records([records_file])
    assert str(caught.value).endswith(
        f": {records_file}: is a JSON list that is cut off before its end: copy it again"
    )
    assert "\n" not in str(caught.value)


def with_numbers(value, number):
    """Parsed JSON with each float, or integer that stands alone, replaced."""
    if isinstance(value, dict):
        return {key: with_numbers(item, number) for key, item in value.items()}
    if isinstance(value, list):
        return [with_numbers(item, number) for item in value]
    return number if isinstance(value, int | float) and not isinstance(value, bool) else value


SPEEDS = st.lists(st.floats(0.01, 1e5), min_size=3, max_size=8)


def rows(*raw):
    return [Record.model_validate(fields) for fields in raw]


def one_pair(a, b):
    (pair,) = compare(rows(a), rows(b)).pairs
    return pair


@examples(60)
@given(step_ms=st.floats(0.01, 1e4), spread=st.floats(0, 0.4), repetitions=st.integers(3, 12))
def test_a_row_never_differs_from_itself(step_ms, spread, repetitions):
    """Where its repetitions lie far apart it could not be told whether it did."""
    row = record(step_ms, spread, repetitions=repetitions, test="tg4")
    assert one_pair(row, row).verdict in ([NO_DIFFERENCE] if spread < 0.01 else [NO_DIFFERENCE, UNDECIDED])


@examples(60)
@given(step_ms=st.floats(0.01, 1e4), spread=st.floats(0, 0.05), repetitions=st.integers(4, 12))
def test_a_slowdown_of_a_fifth_is_found(step_ms, spread, repetitions):
    quick = record(step_ms, spread, seed=1, repetitions=repetitions, test="tg64")
    slow = record(step_ms * 1.25, spread, seed=2, repetitions=repetitions, test="tg64")
    pair = one_pair(quick, slow)
    assert pair.verdict == "slower" and pair.ratio.value == pytest.approx(0.8, rel=0.06)
    assert pair.ratio.low <= 0.8 * 1.06 and pair.ratio.high < 1


@examples(60)
@given(first=SPEEDS, second=SPEEDS)
def test_exchanging_the_sides_gives_the_reciprocals(first, second):
    there, back = independent_ratio(first, second), independent_ratio(second, first)
    assert there.value * back.value == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1) and there.high * back.low == pytest.approx(1)
    assert there.low <= there.value <= there.high


def test_two_runs_are_independent_samples_of_process_means():
    """Coverage of Welch's interval over 2000 simulated pairs of runs. Processes differ by 3 %, repetitions by 1 %."""
    random = np.random.default_rng(5)
    covered = 0
    for _ in range(2000):
        sides = [speed * np.exp(random.normal(0, 0.03, 5) + random.normal(0, 0.01 / 2**0.5, 5)) for speed in (3, 1)]
        result = independent_ratio(*(side.tolist() for side in sides))
        covered += result.low <= 3 <= result.high
    assert 0.935 < covered / 2000 < 0.97


def test_rows_of_one_run_pair_and_rows_of_two_runs_do_not():
    drift = [[10.0], [12.0], [15.0], [20.0], [30.0]]
    own, other = record(test="pp8", rounds_ms=drift), record(test="pp8", rounds_ms=[[2 * ms] for (ms,) in drift])
    first, second = rows({**own, "run": "one"}, {**other, "run": "one"})
    paired, apart = row_ratio(first, second), row_ratio(first, second.model_copy(update={"run": "two"}))
    assert paired.value == pytest.approx(2) and apart.value == pytest.approx(2)
    assert (paired.low, paired.high, paired.turns) == (pytest.approx(2), pytest.approx(2), (5, 5))
    assert apart.low < 1.3 and apart.high > 3 and apart.turns is None


@pytest.mark.parametrize("repetitions", [1, 2])
def test_fewer_than_three_processes_are_not_judged(repetitions):
    pair = one_pair(record(10, repetitions=repetitions), record(20, repetitions=repetitions))
    assert pair.verdict == NOT_JUDGED and "-r 5" in pair.reason and pair.ratio.value == pytest.approx(0.5, rel=0.02)


def test_an_interval_that_reaches_far_on_both_sides_of_one_is_undecided():
    wide = record(test="pp8", rounds_ms=[[10.0], [30.0], [90.0]])
    other = record(test="pp8", rounds_ms=[[12.0], [30.0], [80.0]])
    result = compare(rows(wide), rows(other))
    assert result.pairs[0].verdict == UNDECIDED
    with pytest.raises(MerinoError, match="undecided whether slower by more than 5 %: ours fp32 pp8"):
        check_not_slower(result, 0.05)


def test_a_smaller_loss_passes_only_where_the_interval_rules_out_the_larger():
    quick, slow = ([[ms] for ms in step] for step in ((10.0, 10.0, 10.0), (10.3, 10.4, 10.5)))
    result = compare(rows(record(test="pp8", rounds_ms=quick)), rows(record(test="pp8", rounds_ms=slow)))
    assert result.pairs[0].verdict == "slower"
    check_not_slower(result, 0.1)
    with pytest.raises(MerinoError, match="slower by more than 3 %"):
        check_not_slower(result, 0.03)
    with pytest.raises(MerinoError, match="undecided whether slower by more than 5 %"):
        check_not_slower(result, 0.05)


def test_throttling_of_both_sides_is_a_condition_and_of_one_side_a_disturbance():
    both = one_pair(record(10, flags=["throttled"]), record(20, flags=["throttled"]))
    assert both.verdict == "slower" and not both.reason
    pair = one_pair(record(10), record(20, flags=["throttled"]))
    assert pair.verdict == NOT_JUDGED and pair.reason == "B: throttled"


@pytest.mark.parametrize("flag", ["busy", "swapping"])
def test_a_disturbed_row_is_shown_and_not_judged(flag):
    pair = one_pair(record(10), record(50, flags=[flag]))
    assert pair.verdict == NOT_JUDGED and pair.reason == f"B: {flag}" and pair.ratio.value < 0.3


def test_a_row_that_failed_in_b_is_shown_and_fails_the_check():
    result = compare(rows(record(10), opt()), rows(failed(precision="fp32", depth=0), opt()))
    assert [pair.verdict for pair in result.pairs] == [NO_DIFFERENCE, NOT_JUDGED]
    assert result.pairs[1].reason == "B: failed: out of memory" and not result.only_a and not result.only_b
    with pytest.raises(MerinoError, match="measured in A, not in B: ours fp32 tg32"):
        check_not_slower(result, 0.5)


@pytest.mark.parametrize("changes", [
    {"threads": 1}, {"precision": "int8"}, {"kv": "int8"}, {"engine": "llama.cpp 3"}, {"dialect": "portable"},
    {"depth": 512}, {"test": "tg16"}, {"test": "pp32", "prefill_threads": 1},
])  # fmt: skip
def test_unequal_conditions_never_pair(changes):
    before = record(test="pp32") if "prefill_threads" in changes else record()
    with pytest.raises(MerinoError, match="no row in common"):
        compare(rows(before), rows(record(**changes)))
    result = compare(rows(before, opt()), rows(record(**changes), opt()))
    assert [pair.bundle for pair in result.pairs] == ["opt-350m"] and len(result.only_a) == len(result.only_b) == 1


def test_a_row_pairs_by_the_threads_of_what_it_times_alone():
    """Prefill and decode have their own number, and a bundle's choice of one may change without the other."""
    for test, other in (("tg32", {"prefill_threads": 1}), ("pp32", {"threads": 1})):
        (pair,) = compare(rows(record(test=test)), rows(record(test=test, **other))).pairs
        assert pair.threads == 2


def test_another_engine_version_pairs_with_a_note_and_another_name_does_not():
    result = compare(rows(record(10)), rows(record(10, engine="onnxruntime 1.30.0 CPU")))
    assert result.pairs[0].verdict == NO_DIFFERENCE
    assert result.notes == ("A and B differ in engine: onnxruntime 1.32.0 CPU / onnxruntime 1.30.0 CPU",)
    with pytest.raises(MerinoError, match="no row in common"):
        compare(rows(record()), rows(record(bundle="renamed")))


@pytest.mark.parametrize(
    ("text", "share"), [("5%", 0.05), (" 2.5 % ", 0.025), ("0%", 0.0), ("99.9%", 0.999), ("5", 0.05)]
)
def test_percent(text, share):
    assert parse_percent("--fail-if-slower", text, ALLOWED_LOSS) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "0.05", "-5%", "5%%", "five%", "100%", "1e400%", "nan%", "5 percent"])
def test_what_is_no_percent(text):
    with pytest.raises(BadParameter, match="choose 0% to below 100%"):
        parse_percent("--fail-if-slower", text, ALLOWED_LOSS)


@pytest.fixture
def files(tmp_path):
    results = {}
    for name, step_ms, flags in (("before", 10, []), ("after", 13, []), ("busy", 13, ["busy"])):
        results[name] = str(tmp_path / f"{name}.json")
        (tmp_path / f"{name}.json").write_text(json.dumps([record(step_ms, flags=flags), opt()]))
    return results


def test_the_command_says_what_it_finds_and_its_exit_code_tells(files, here):
    code, out, _ = here("compare", files["before"], files["after"])
    assert code == 0 and "slower" in out and NO_DIFFERENCE in out
    code, out, err = here("compare", files["before"], files["after"], "--fail-if-slower", "20%")
    assert code == 1 and "slower" in out and "slower by more than 20 %: ours fp32 tg32 by 2" in err
    assert here("compare", files["before"], files["after"], "--fail-if-slower", "40%")[0] == 0
    assert here("compare", files["after"], files["before"], "--fail-if-slower", "5%")[0] == 0
    code, _, err = here("compare", files["before"], files["after"], "--fail-if-slower", "0.2")
    assert code == 2 and "such as 5%" in " ".join(err.replace("│", " ").split())


def test_where_nothing_can_be_judged_the_check_fails(files, here, tmp_path):
    only = tmp_path / "only.json"
    only.write_text(json.dumps([record(13, flags=["busy"])]))
    assert here("compare", files["before"], str(only))[0] == 0
    code, _, err = here("compare", files["before"], str(only), "--fail-if-slower", "5%")
    assert code == 1 and "not judged: ours fp32 tg32 (B: busy). Measure again" in err


def test_json_has_ratio_interval_and_verdict(files, here):
    code, out, _ = here("compare", files["before"], files["after"], "--json")
    data = json.loads(out)
    own = next(pair for pair in data["pairs"] if pair["bundle"] == "ours")
    assert code == 0 and own["verdict"] == "slower" and data["schema"] == 2
    assert own["ratio"]["low"] < own["ratio"]["value"] < own["ratio"]["high"] < 1
