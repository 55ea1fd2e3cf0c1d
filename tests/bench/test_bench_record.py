"""Figures from known samples, computed by hand, and the forms they are written in.

Records on disks that are full or cannot be written: an error with the reason, and nothing lost that was there.

The table of `bench` on terminals: no line is wider, nothing is left out; a pipe gets one table.
"""
import re

import pytest

from merino_bench.harness.cases import decode_case, prefill_case
from merino_bench.harness.record import (
    RECORD_KEYS,
    add_ratios,
    failed_record,
    failures,
    flops_per_token,
    record_of,
)
from merino_bench.harness.render import as_json, as_markdown, check_can_save
from merino_runtime.bundle import BackendNeed, Bundle, BundleFile, Golden, KvLayer, Threads
from merino_runtime.errors import MerinoError

IDENTITY = {"bundle": "a|b", "bundle_sha256": "00", "precision": "fp32", "dialect": "fused",
            "weights": "real", "weights_source": "a run", "params": 250000, "bundle_bytes": 3 * 2 ** 20}


def bundle(folder="."):
    return Bundle(
        folder=str(folder), schema=1, name="tiny", family="merino",
        architecture={"of": "a family that the bench does not know"}, precision="fp32",
        dialect="fused", weights="trained", weights_source="a run", context=64, vocab=300, stop_ids=(),
        kv_layers=(KvLayer(2, 32),), inputs=(), outputs=(), params=250000, flops_per_token=500000,
        head_flops=2 * 300 * 64, weight_bytes=900000, decode_weight_bytes=1000000, kv_bytes=64 * 512, boards=(),
        backends=(BackendNeed("onnxruntime", "1.18", ()),), threads=Threads(None, None),
        golden=Golden((), ()), chat=None,
        files=(BundleFile("model.onnx", 700, "0" * 64), BundleFile("model.onnx.data", 4000, "0" * 64)))


def process(turn=0, attempt=0, **values):
    """What a worker process answers."""
    prefill_ms = values.get("prefill_ms", [30.0, 10.0, 20.0])
    return dict({
        "engine": "onnxruntime 1.32.0 CPU", "threads": 2, "prefill_threads": 4, "load_ms": 40.5, "verify_ms": 3.0,
        "peak_rss_mb": 66.25, "tokenize_ms": None, "prefill_ms": prefill_ms, "step_ms": [[] for _ in prefill_ms],
        "prefill_phases_s": [], "decode_phases_s": [],
        "environment": {"board": "x", "after": {}, "others_cpu_share": 0.01, "waiting_share": None},
        "flags": [], "notes": [], "turn": turn, "attempt": attempt}, **values)


def measured(**values):
    """The processes of a row: one."""
    if "step_ms" in values:
        values.setdefault("prefill_ms", [5.0] * len(values["step_ms"]))
    return [process(**values)]


def test_a_prefill_row():
    given = measured(prefill_ms=[30.0, 20.0, 15.0], flags=["busy"], tokenize_ms=0.5)
    row = record_of(IDENTITY, bundle(), prefill_case(60), given, 25.0, command="merino bench .")
    assert row["test"] == "pp60"
    assert row["processes"] == [{"turn": 0, "attempt": 0, "repetitions": 3, "flags": ["busy"]}]
    assert row["schema"] == 3 and row["command"] == "merino bench ." and row["depth"] == 0
    assert re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ$", row["date"])
    assert row["rounds_ms"] == [[30.0], [20.0], [15.0]] and row["tpot_ms"] is None
    assert row["tok_s"] == pytest.approx(3000)  # the mean of 2000, 3000 and 4000
    assert row["tok_s_sd"] == pytest.approx(1000)
    assert row["ms_p50"] == 20.0 and row["ms_p90"] == pytest.approx(28.0) and row["prefill_ms"] == 20.0
    assert row["tokenize_ms"] == 0.5 and row["ttft_ms"] == 20.5  # what a user waits for
    assert row["bytes_per_token"] == 1000000 and row["mbu"] is None and row["read_gb_s"] == 25.0
    assert row["load_ms"] == 40.5 and row["peak_rss_mb"] == 66.25 and row["threads"] == 2
    assert row["prefill_threads"] == 4
    assert row["prompt_tokens"] == 60 and row["repetitions"] == 3 and row["flags"] == ["busy"]


def test_a_decode_row_leaves_the_prefill_out():
    steps = [[1.0, 2.0, 1.0], [2.0, 2.0, 2.0]]
    given = measured(step_ms=steps, prefill_ms=[500.0, 700.0])
    row = record_of(IDENTITY, bundle(), decode_case(3), given, 1.0)
    assert row["test"] == "tg3"
    assert row["tok_s"] == pytest.approx((750 + 500) / 2)
    assert row["tok_s_sd"] == pytest.approx(250 / 2 ** 0.5)
    assert row["ms_p50"] == 2.0 and row["prefill_ms"] == 600.0 and row["ttft_ms"] is None and row["repetitions"] == 2
    assert row["rounds_ms"] == steps and row["tpot_ms"] == row["ms_mean"] == pytest.approx(10 / 6)
    assert row["ms_sd"] == pytest.approx(0.516398)
    # A slot is 512 bytes; the steps find 8, 9 and 10 of them filled.
    assert row["bytes_per_token"] == 1000000 + 9 * 512
    assert row["mbu"] == pytest.approx(1004608 * 625 / 1e9)


def test_flops_grow_with_the_cache_and_a_prefill_has_one_head():
    """Two heads of 32: a cached entry costs 2 x 64 multiply-adds; the LM head 300 x 64, as bundle.json says."""
    assert flops_per_token(bundle(), decode_case(1)) == 500000 + 256 * 8
    assert flops_per_token(bundle(), decode_case(3, depth=40)) == 500000 + 256 * 41
    head = 2 * 300 * 64
    assert flops_per_token(bundle(), prefill_case(1)) == 500000
    assert flops_per_token(bundle(), prefill_case(5, depth=10)) == 500000 - head + head // 5 + 256 * 12


@pytest.mark.parametrize("case, key, joules", [
    (prefill_case(60), "prefill_j", 9.0 / (60 * 2)), (decode_case(3), "decode_j", 18.0 / (3 * 2))])
def test_joules_are_per_token_of_all_repetitions(case, key, joules):
    energy = {"prefill_j": 9.0, "decode_j": 18.0}
    given = measured(step_ms=[[1.0] * 3] * 2)
    assert record_of(IDENTITY, bundle(), case, given, None, energy)["j_per_token"] == pytest.approx(joules)
    uncovered = dict(energy, **{key: None})
    assert record_of(IDENTITY, bundle(), case, given, None, uncovered)["j_per_token"] is None


def rows():
    fast = record_of(IDENTITY, bundle(), prefill_case(60), measured(prefill_ms=[20.0]), 25.0)
    slow = record_of(dict(IDENTITY, params=1000000, bundle="opt"), bundle(), prefill_case(60),
                     measured(prefill_ms=[60.0]), 25.0)
    failed = failed_record({"bundle": "gone"}, prefill_case(60), "no such\nbundle | here")
    return [fast, failed, slow]


def test_a_failed_row_has_every_key_and_its_reason():
    failed = rows()[1]
    assert set(failed) == set(RECORD_KEYS) and failed["flags"] == ["failed: no such\nbundle | here"]
    known = {"schema", "bundle", "test", "prompt_tokens", "depth", "timed", "date", "flags", "notes"}
    assert all(failed[key] is None for key in set(RECORD_KEYS) - known)
    assert failures(rows()) == ["gone pp60 failed: no such\nbundle | here"]


def test_markdown_is_aligned_and_its_cells_are_escaped():
    records = rows()
    lines = as_markdown(records).splitlines()
    table, rest = lines[:5], lines[5:]
    assert len({len(line) for line in table}) == 1 and all(line.startswith("| ") for line in table)
    columns = [len(line.replace("\\|", "").split("|")) for line in table]
    assert len(set(columns)) == 1 and "a\\|b" in table[2] and "3000.0" in table[2]
    assert set(table[1]) == set("|:- ")
    assert rest == ["", "gone pp60 failed: no such", "bundle | here"]
    assert "vs baseline" not in table[0]
    add_ratios(records, [records[2]])
    table = as_markdown(records)
    assert "vs baseline" in table and "| 3.00x " in table and "| equal format |" in table
    assert "0.0012x" in as_markdown([dict(records[0], ratio_to_baseline=0.00123)])


@pytest.mark.parametrize("ratio, cell, explained", [
    ({"ratio_interval": [2.914, 3.1], "ratio_turns": [5, 5]}, "3.00x [2.91, 3.10] |", "over pairs of processes"),
    ({"ratio_interval": [2.914, 3.1], "ratio_turns": [3, 5]}, "3.00x [2.91, 3.10] (3 of 5 pairs) |", "95 % interval"),
    ({"ratio_interval": [2.9, 3.1], "ratio_turns": [5, 5], "ratio_flags": ["busy"]},
     "3.00x [2.90, 3.10] (disturbed: busy) |", "fewer than 3 pairs were undisturbed"),
    ({"ratio_interval": None, "ratio_turns": [2, 2]}, "3.00x (no interval) |", "measure with -r 5"),
    ({"ratio_interval": None, "ratio_turns": None}, "3.00x |", None)])  # the baseline itself
def test_a_ratio_is_shown_with_its_interval_and_its_marks(ratio, cell, explained):
    row = dict(rows()[0], ratio_to_baseline=3.0, baseline="base fp32", ratio_kind="equal format", params_ratio=None)
    table, _, below = as_markdown([dict(row, **ratio)]).partition("\n\n")
    assert cell in re.sub(" +", " ", table) and (explained in below if explained else not below)


def test_disturbed_processes_are_dropped_where_three_others_remain():
    processes = [process(turn, prefill_ms=[20.0]) for turn in range(4)]
    processes.insert(1, process(0, 1, prefill_ms=[90.0], flags=["busy"]))
    processes.append(process(4, prefill_ms=[80.0], flags=["busy"], peak_rss_mb=99.0, tokenize_ms=9.0))
    row = record_of(IDENTITY, bundle(), prefill_case(60), processes)
    assert row["repetitions"] == 4 and row["tok_s"] == pytest.approx(3000) and row["flags"] == []
    assert row["peak_rss_mb"] == 66.25 and row["ttft_ms"] is None
    assert row["rounds_ms"] == [[20.0], [90.0], [20.0], [20.0], [20.0], [80.0]]  # nothing is left out
    assert [(entry["turn"], entry["attempt"], entry["flags"]) for entry in row["processes"]] == [
        (0, 0, []), (0, 1, ["busy"]), (1, 0, []), (2, 0, []), (3, 0, []), (4, 0, ["busy"])]
    disturbed = [dict(entry, flags=["busy"]) for entry in processes[:4]] + processes[4:]
    row = record_of(IDENTITY, bundle(), prefill_case(60), disturbed)
    assert row["repetitions"] == 5 and row["flags"] == ["busy"]  # one per turn: two undisturbed are too few


def test_a_figure_that_is_no_number_is_never_written():
    row = dict(rows()[0], tok_s=float("nan"))
    with pytest.raises(ValueError):
        as_json([row])


@pytest.mark.parametrize("content", [
    '[{"test": "tg128"},\n {"test": "tg256"},\n {"test": "pp8"}]\n', "dear diary\n", '{\n "test": "tg128"\n}\n',
    "\x7fELF"])
def test_records_are_appended_to_json_lines_alone(tmp_path, content):
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(MerinoError, match=r"results\.jsonl holds no JSON lines"):
        check_can_save(str(path))
    assert path.read_text() == content


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_gets_tables_that_fit_and_every_figure(width):
    """What is alike in all rows is below. In 40 columns the keys and one figure are wider than the terminal."""
    records = rows()
    add_ratios(records, [records[2]])
    whole, narrow = as_markdown(records), as_markdown(records, width)
    for text in ("3000.0", "3.00x", "20.0", "66", "onnxruntime 1.32.0 CPU", "fp32 fused", "failed"):
        assert text in narrow, text
    lines = narrow.splitlines()
    titles = [cell.strip() for line in lines if line.startswith("| bundle") for cell in line.split("|")]
    below = narrow.replace("\n", " ").partition("all rows: ")[2]
    for title in whole.splitlines()[0].split("|"):
        assert title.strip() in titles or f"{title.strip()} " in below
    assert width == 40 or max(len(line) for line in lines) <= width
    assert as_markdown(records, 1000) == whole
