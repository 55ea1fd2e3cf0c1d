"""Instructions per token on an emulated board's core, held against the record of them."""

import json
import sys
from pathlib import Path

import pytest
from counted_instructions import count, why_not

from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH / "experiments"))

from instructions import SMALL  # noqa: E402 - a script beside the packages

RESULTS = BENCH / "results"
RECORD = json.loads((RESULTS / "instructions-arm64.json").read_text())
STEPS = json.loads((RESULTS / "decode-on-boards.json").read_text())["rows"]
ROWS = {(row["model"], row["precision"], row["core"], row["cpu"]): row for row in RECORD["rows"]}
FORMATS = [("fp32", None), ("int8", "no-dotprod"), ("int4", "no-dotprod")]


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
@pytest.mark.parametrize(("precision", "core"), FORMATS)
def test_a_token_takes_as_many_instructions_as_recorded(precision, core, tmp_path):
    """Within a tenth per weight: more is another path through ONNX Runtime, or another graph."""
    row = ROWS["design-2m", precision, core, "cortex-a72"]
    (tmp_path / "design.json").write_text(json.dumps(SMALL))
    request = ExportRequest(precision=precision, core=core)
    bundle = export(load_source(str(tmp_path / "design.json")), tmp_path / "bundle", request).bundle
    counted = count("cortex-a72", Path(bundle.folder), row["prompt"])
    assert counted.decode == pytest.approx(row["decode"], rel=0.1)
    assert counted.prefill == pytest.approx(row["prefill"], rel=0.1)


@pytest.mark.parametrize("model", ["design-2m", "design-35m"])
def test_int8_without_dotprod_takes_about_as_many_instructions_as_float32_and_a_quarter_of_its_bytes(model):
    floats, ints = (ROWS[model, *form, "cortex-a72"] for form in (("fp32", None), ("int8", "no-dotprod")))
    assert ints["decode"] < 1.25 * floats["decode"]
    assert ints["decode_weight_bytes"] < 0.27 * floats["decode_weight_bytes"]
    in_blocks = ROWS[model, "int8", "dotprod", "cortex-a72"]
    assert in_blocks["decode"] > 3 * ints["decode"]  # what the other kind of core's graph costs here


@pytest.mark.parametrize("depth", [64, 1024])
@pytest.mark.parametrize("model", ["smollm2-135m", "design-35m"])
def test_int4_with_an_int8_cache_is_predicted_at_least_as_fast_as_llama_cpp_on_boards_without_dotprod(model, depth):
    rows = [row for row in STEPS if (row["model"], row["depth"]) == (model, depth) and row.get("dialect") != "portable"]
    for board in ("raspberry-pi-zero-2w", "jetson-nano", "raspberry-pi-4"):
        times = {
            row["kv"]: predicted for row in rows for predicted in row["predicted"] if predicted["board"] == board
        }
        for bound in ("max_ms", "sum_ms"):
            assert times["int8"][bound] <= min(times["f16"][bound], times["q8_0"][bound])
    ours = next(row for row in rows if (row["kv"], row["cpu"]) == ("fp32", "cortex-a53"))
    assert ours["matmul4"] < 0.4 * next(row for row in rows if row["kv"] == "f16")["q4_0"]
