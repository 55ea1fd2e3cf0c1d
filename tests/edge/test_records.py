"""Files of records as the workstation reads them: valid rows come back, every fault of every file is reported."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_records import failed, many, opt, record

from merino_bench.harness.cases import BenchRequest
from merino_bench.harness.record import SCHEMA
from merino_bench.harness.render import append, as_json, as_json_lines
from merino_bench.harness.run import run_bench
from merino_edge.families.zoo import model
from merino_edge.records.compare import compare
from merino_edge.records.reading import read_records
from merino_edge.records.schema import Record
from merino_edge.report.page import page
from merino_edge.report.summary import summarize
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


def test_properties_of_a_decode_row():
    row = Record.model_validate(record(repetitions=3, test="tg64"))
    assert len(row.rounds) == 3 and {len(samples_ms) for samples_ms in row.rounds} == {64}
    assert sum(row.speeds) / 3 == pytest.approx(row.tok_s) and row.tokens == 64 and row.cached == 8
    assert row.engine_name == "onnxruntime CPU"


def test_geometry_and_cache_of_a_deep_row():
    deep = Record.model_validate(opt(depth=512))
    assert deep.test == "tg32 @ d512" and deep.cached == 512 and deep.tokens == 32
    assert deep.geometry == model("opt-350m").geometry


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
        "a.json: row 2, 3: missing: depth", "a.json: row 2, 3: unknown keys, remove them: tok_sec",
        "a.json: row 2, 3: threads is ", "a.json: row 3: tok_s is ", "b.jsonl: row 2: ", "c.json: holds no record",
        "d.json: holds no record", f"cannot read {tmp_path}/e.json", "f.json: row 1: ms_p50 is ",
    ):  # fmt: skip
        assert part in output, output
    assert output.count("\n") == 9, output


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


def test_a_file_of_whole_lines_and_one_whose_end_of_line_is_missing_have_no_note(records_file):
    for text in ("".join(LINES), "".join(LINES).rstrip("\n")):
        records_file.write_text(text)
        assert len(read_records([records_file], lambda text: pytest.fail(text))) == 3


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


@pytest.mark.parametrize("number", [1e308, -1e308, 10**400, 5e-324, 1e-15, 1e18])
def test_a_number_of_absurd_size_is_a_fault_and_never_a_crash(tmp_path, number):
    """Wherever it stands: a ratio or a sum of such is not finite."""
    energy = {"source": "a", "rail": "b", "interval_s": 0.5, "samples": 9, "idle_w": 1.0, "prefill_j": 1.0,
              "decode_j": 2.0, "prefill_net_j": 1.0, "decode_net_j": 1.0}  # fmt: skip
    base = [record(energy=energy, repetitions=3), opt(repetitions=3)]
    path = tmp_path / "records.json"
    refused = 0
    for key, value in base[0].items():
        if isinstance(value, dict | list) or (isinstance(value, int | float) and key != "schema"):
            path.write_text(json.dumps([{**base[0], key: with_numbers(value, number)}, base[1]]))
            try:
                rows = read_records([path])
                page(summarize(rows))
                compare(rows, rows)
            except MerinoError:
                refused += 1
    assert refused or number in (1e-15, 1e18)


def with_numbers(value, number):
    """Parsed JSON with each float, or integer that stands alone, replaced."""
    if isinstance(value, dict):
        return {key: with_numbers(item, number) for key, item in value.items()}
    if isinstance(value, list):
        return [with_numbers(item, number) for item in value]
    return number if isinstance(value, int | float) and not isinstance(value, bool) else value


def test_a_failed_row_needs_no_measurements():
    row = Record.model_validate(failed())
    assert row.failure == "out of memory" and row.rounds == () and row.speeds == ()
