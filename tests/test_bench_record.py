"""Figures from known samples, computed by hand, and the forms they are written in."""
import csv
import hashlib
import io
import json
import os

import pytest

from merino_bench.record import (
    RECORD_KEYS,
    add_ratios,
    bytes_per_token,
    failed_record,
    failures,
    identity_of,
    record_of,
)
from merino_bench.render import (
    OUTPUTS,
    as_csv,
    as_json,
    as_json_lines,
    as_markdown,
    check_can_save,
    render,
    save,
)
from merino_bench.workload import decode_case, prefill_case
from merino_runtime.bundle import BackendNeed, Bundle, BundleFile, Golden, KvLayer, Threads
from merino_runtime.errors import MerinoError

IDENTITY = {"bundle": "a|b", "bundle_sha256": "00", "precision": "fp32", "dialect": "fused",
            "weights": "real", "weights_source": "a run", "params": 250000, "bundle_bytes": 3 * 2 ** 20}


def bundle(folder="."):
    return Bundle(
        folder=str(folder), schema=1, name="tiny", family="merino", architecture={}, precision="fp32",
        dialect="fused", weights="trained", weights_source="a run", context=64, vocab=300, eos_id=None,
        kv_layers=(KvLayer(2, 32),), inputs=(), outputs=(), params=250000, flops_per_token=2,
        weight_bytes=900000, decode_weight_bytes=1000000, kv_bytes=64 * 512, isa=(), boards=(),
        backend=BackendNeed("onnxruntime", "1.18", ()), threads=Threads(None, None), golden=Golden((), ()),
        files=(BundleFile("model.onnx", 700, "0" * 64), BundleFile("model.onnx.data", 4000, "0" * 64)))


def measured(**values):
    return dict({
        "engine": "onnxruntime 1.32.0 CPU", "threads": 2, "load_ms": 40.5, "verify_ms": 3.0,
        "peak_rss_mb": 66.25, "prefill_ms": [30.0, 10.0, 20.0], "step_ms": [[], [], []],
        "environment": {"board": "x"}, "flags": ["busy"], "notes": []}, **values)


def test_a_prefill_row():
    row = record_of(IDENTITY, bundle(), prefill_case(60), measured(prefill_ms=[30.0, 20.0, 15.0]), 25.0)
    assert row["test"] == "pp60" and row["samples_ms"] == [30.0, 20.0, 15.0]
    assert row["tok_s"] == pytest.approx(3000)  # the mean of 2000, 3000 and 4000
    assert row["tok_s_sd"] == pytest.approx(1000)
    assert row["ms_p50"] == 20.0 and row["ms_p90"] == pytest.approx(28.0) and row["ttft_ms"] == 20.0
    assert row["bytes_per_token"] == 1000000 and row["ceiling_share"] is None and row["read_gb_s"] == 25.0
    assert row["load_ms"] == 40.5 and row["peak_rss_mb"] == 66.25 and row["threads"] == 2
    assert row["prompt_tokens"] == 60 and row["repetitions"] == 3 and row["flags"] == ["busy"]


def test_a_decode_row_leaves_the_prefill_out():
    steps = [[1.0, 2.0, 1.0], [2.0, 2.0, 2.0]]
    given = measured(step_ms=steps, prefill_ms=[500.0, 700.0])
    row = record_of(IDENTITY, bundle(), decode_case(3), given, 1.0)
    assert row["test"] == "tg3" and row["samples_ms"] == [1.0, 2.0, 1.0, 2.0, 2.0, 2.0]
    assert row["tok_s"] == pytest.approx((750 + 500) / 2)
    assert row["tok_s_sd"] == pytest.approx(250 / 2 ** 0.5)
    assert row["ms_p50"] == 2.0 and row["ttft_ms"] == 600.0 and row["repetitions"] == 2
    # A slot is 512 bytes; the steps find 8, 9 and 10 of them filled.
    assert row["bytes_per_token"] == 1000000 + 9 * 512
    assert row["ceiling_share"] == pytest.approx(1004608 * 625 / 1e9)


def test_kv_bytes_are_those_of_the_mean_step():
    assert bytes_per_token(bundle(), decode_case(1)) == 1000000 + 8 * 512
    assert bytes_per_token(bundle(), decode_case(56)) == 1000000 + round(35.5 * 512)


def test_one_repetition_has_no_deviation_and_no_bandwidth_no_share():
    given = measured(step_ms=[[4.0, 4.0]], prefill_ms=[9.0])
    row = record_of(IDENTITY, bundle(), decode_case(2), given, None)
    assert row["tok_s"] == 250.0 and row["tok_s_sd"] is None and row["ceiling_share"] is None


def test_identity_comes_from_the_folder(tmp_path):
    (tmp_path / "bundle.json").write_bytes(b"{}" + b" " * 98)
    identity = identity_of(str(tmp_path), bundle(tmp_path))
    assert identity["bundle_bytes"] == 4800 and identity["weights"] == "real" and identity["bundle"] == "tiny"
    assert identity["bundle_sha256"] == hashlib.sha256(b"{}" + b" " * 98).hexdigest()
    random = identity_of(str(tmp_path), bundle(tmp_path)._replace(weights="random"))
    assert random["weights"] == "random"
    assert identity_of("some/where/", None) == {"bundle": "where"}


def rows():
    fast = record_of(IDENTITY, bundle(), prefill_case(60), measured(prefill_ms=[20.0]), 25.0)
    slow = record_of(dict(IDENTITY, params=1000000), bundle(), prefill_case(60),
                     measured(prefill_ms=[60.0]), 25.0)
    failed = failed_record({"bundle": "gone"}, prefill_case(60), "no such\nbundle | here")
    return [fast, failed, slow]


def test_ratios_are_this_row_over_the_baseline_at_the_same_test():
    fast, failed, slow = rows()
    other = record_of(IDENTITY, bundle(), prefill_case(30), measured(), 25.0)
    add_ratios([fast, failed, slow, other], [slow])
    assert fast["ratio_to_baseline"] == pytest.approx(3.0) and fast["params_ratio"] == 0.25
    assert slow["ratio_to_baseline"] == 1.0 and slow["params_ratio"] == 1.0
    for row in (failed, other):
        assert row["ratio_to_baseline"] is None and row["params_ratio"] is None


def test_a_failed_row_has_every_key_and_its_reason():
    failed = rows()[1]
    assert set(failed) == set(RECORD_KEYS) and failed["flags"] == ["failed: no such\nbundle | here"]
    known = {"schema", "bundle", "test", "prompt_tokens", "timed", "flags", "notes"}
    assert all(failed[key] is None for key in set(RECORD_KEYS) - known)
    assert failures(rows()) == ["gone pp60 failed: no such\nbundle | here"]


def test_json_forms_give_the_records_back():
    records = rows()
    assert json.loads(as_json(records)) == records and as_json(records).count("\n") == 3
    assert [json.loads(line) for line in as_json_lines(records).splitlines()] == records
    assert json.loads(as_json([])) == [] and as_json_lines([]) == ""


def test_csv_has_the_flat_fields():
    table = list(csv.DictReader(io.StringIO(as_csv(rows()))))
    assert set(table[0]) == set(RECORD_KEYS) - {"samples_ms", "environment"}
    assert table[0]["tok_s"] == "3000.0" and table[0]["flags"] == "busy" and table[1]["tok_s"] == ""
    assert table[1]["flags"] == "failed: no such\nbundle | here"


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
    assert "vs baseline" in as_markdown(records) and "3.00x" in as_markdown(records)
    assert "0.0012x" in as_markdown([dict(records[0], ratio_to_baseline=0.00123)])


def test_markdown_shows_the_deviation_where_there_is_one():
    row = record_of(IDENTITY, bundle(), prefill_case(60), measured(prefill_ms=[30.0, 20.0, 15.0]), 25.0)
    assert "3000.0 ± 1000.0" in as_markdown([row]) and "±" not in as_markdown(rows())


def test_an_unknown_form_is_refused():
    with pytest.raises(MerinoError, match="'xml', allowed: md, json, jsonl, csv"):
        render([], "xml")
    assert all(render(rows(), output).endswith("\n") for output in OUTPUTS)


def test_a_figure_that_is_no_number_is_never_written():
    row = dict(rows()[0], tok_s=float("nan"))
    with pytest.raises(ValueError):
        as_json([row])


def test_saving_replaces_the_file_whole(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    save(rows(), str(path))
    assert json.loads(path.read_text()) == rows()
    assert os.listdir(str(tmp_path)) == ["result.json"]


def test_where_nothing_can_be_saved_it_says_so_before(tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "result.json"):
        with pytest.raises(MerinoError, match="cannot save to"):
            check_can_save(str(path))
