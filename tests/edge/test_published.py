"""Published speeds of boards: every row has a source and a setting, the prediction covers each, no model is both fitted
to and judged, and the pages say what the record says."""

import json
import math
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from merino_edge.families.operators import params
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.intervals import DEFAULT_CONFIDENCE, factors
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.coefficients import LatencyError
from merino_edge.profiles.reading import load_profile, profile_ids

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench" / "experiments"))

import published  # noqa: E402 - a script beside the packages
from published import GEOMETRIES, Board, geometry, halves, read_boards  # noqa: E402

BOARDS = read_boards()
SOURCE = {"url": "https://example.org", "date": "2026-01", "engine": "e", "version": "1", "setting": "s"}
ROW = {"source": "a", "model": "qwen2.5-0.5b", "format": "Q4_0", "threads": 4, "phase": "decode", "tok_s": 9.8}


@pytest.fixture(scope="module")
def compared():
    return published.compare(BOARDS)


@pytest.fixture(scope="module")
def record():
    return json.loads((ROOT / "bench" / "results" / "published.json").read_text())


def test_every_board_has_a_file_and_most_have_eight_rows_of_known_setting():
    assert [board.board for board in BOARDS] == profile_ids()
    usable = {board.board: sum(row.use != "left out" for row in board.rows) for board in BOARDS}
    assert sum(usable.values()) >= 40
    assert {name for name, count in usable.items() if count < 8} == {"raspberry-pi-zero-2w", "jetson-orin-nano"}
    assert all(source.url.startswith("https://") or source.url == "not recorded"
               for board in BOARDS for source in board.sources.values())  # fmt: skip


@pytest.mark.parametrize(
    ("row", "sources", "named"),
    [
        ({"threads": None}, {}, "left out"),
        ({"model": "gemma-4-e2b"}, {}, "left out"),
        ({"format": "Q9"}, {}, "left out"),
        ({"use": "left out"}, {}, "says why"),
        ({"source": "b"}, {}, "'a', 'b'"),
        ({}, {"b": SOURCE}, "'b'"),
        ({"tok_s": 0}, {}, "greater than 0"),
        ({"speed": 1}, {}, "speed"),
        ({}, {"a": {"url": "https://example.org"}}, "setting"),
    ],
)
def test_a_bad_row_is_named(row, sources, named):
    content = {"schema": 1, "board": "b", "rows": [ROW | row], "sources": {"a": SOURCE} | sources}
    with pytest.raises(ValidationError, match=named):
        Board.model_validate(content)


def test_geometries_have_the_parameters_of_the_released_checkpoints():
    assert {name: params(geometry(name).operators) for name in GEOMETRIES} == {
        name: known["params"] for name, known in GEOMETRIES.items()
    }


def test_the_halves_share_no_model_and_a_row_that_set_the_profile_judges_nothing():
    fit, judge = halves(BOARDS)
    assert not fit & judge
    for board in BOARDS:
        used = [row for row in board.rows if row.use != "left out"]
        assert {(board.board, row.backend, row.model) for row in used} <= fit | judge
        assert {(board.board, row.backend, row.model) for row in used if row.use == "fitted"} <= fit


def test_the_prediction_covers_each_row_that_is_not_left_out(compared):
    assert len(compared) == sum(row.use != "left out" for board in BOARDS for row in board.rows)
    assert all(math.isfinite(one.predicted) and one.predicted > 0 for one in compared)


def test_the_record_and_the_page_show_what_the_model_says(compared, record):
    page = (ROOT / "docs" / "predictions.md").read_text()
    assert published.with_table(page, published.summaries(compared)) == page
    for one, row in zip(compared, record["rows"], strict=True):
        *facts, predicted, judges = published.record_row(one)
        assert row == [*facts, pytest.approx(predicted, rel=0.01, abs=0.006), judges]


@pytest.mark.parametrize("page", ["README.md", "docs/limits.md", "docs/predictions.md"])
def test_pages_claim_no_more_than_the_judging_rows_show(page, compared):
    judging = [one.error for one in compared
               if one.judges and (one.row.backend, one.row.phase) == ("cpu", "decode")]  # fmt: skip
    beyond = sum(abs(math.expm1(error)) > published.CLOSE for error in judging)
    words = " ".join((ROOT / page).read_text().split())
    assert beyond == 2
    assert f"confirmed by {len(judging)} published measurements of other engines within 25 %, except for two" in words


@pytest.mark.parametrize(("board", "rows"), [
    ("raspberry-pi-4", "raspberry-pi-4"), ("raspberry-pi-5", "raspberry-pi-5"), ("jetson-nano", "all"),
    ("raspberry-pi-zero-2w", "all"), ("jetson-orin-nano", None),
])  # fmt: skip
def test_a_boards_interval_of_decode_is_that_of_the_judging_rows(board, rows, record):
    profile = load_profile(board).with_backend("onnxruntime")
    found = record["decode_on_cpus"][rows] if rows else None
    expected = found and LatencyError(
        center=found["center"], scale=found["scale"], degrees_of_freedom=found["rows"] - 1, of="published",
        decoders=found["rows"],
    )  # fmt: skip
    assert profile.performance.onnxruntime.decode_error == expected
    costs = cost_model(profile, InferenceShape("int4", 512, 256))
    assert costs.decode_factors == (expected and factors(expected, DEFAULT_CONFIDENCE))
    assert costs.prefill_factors is None
    assert ("other engines" in costs.on.why_no_interval()) == bool(rows)
