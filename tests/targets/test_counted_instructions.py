"""Instructions per token on an emulated board's core, held against the record of them."""

import json
from pathlib import Path

import pytest
from counted_instructions import count, why_not

from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source

RECORD = json.loads((Path(__file__).parents[2] / "bench" / "results" / "instructions-arm64.json").read_text())
ROWS = {(row["model"], row["precision"], row["core"], row["cpu"]): row for row in RECORD["rows"]}
SMALL = {  # 1.8 M weights
    "blocks": [
        {"width": 128, "ffn_ratio": 1.5, "depth": 2, "shared": True},
        {"width": 192, "ffn_ratio": 1.5, "depth": 1, "shared": False},
        {"width": 256, "ffn_ratio": 1.0, "depth": 1, "shared": False},
        {"width": 256, "ffn_ratio": 1.0, "depth": 2, "shared": True},
    ],
    "vocab": 4096, "head_size": 32, "context": 512, "width_change": "projection",
}  # fmt: skip
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
