"""The table of published board speeds is what the model says today, and decode is as near as it claims."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench" / "experiments"))

import published  # noqa: E402 - a script beside the packages

PAGE = ROOT / "docs" / "predictions.md"
FAR: set[str] = set()  # with the reason that the page gives


def test_the_page_shows_what_the_model_says():
    text = PAGE.read_text()
    assert published.with_table(text) == text


def test_decode_on_boards_is_within_the_factor_on_all_but_those_named():
    judged = [row for row in published.ROWS if row.what == "decode"]
    ratios = {row: published.predicted_tok_s(row) / row.tok_s for row in judged}
    far = {row.board for row, ratio in ratios.items() if not 1 / row.factor <= ratio <= row.factor}
    assert far == FAR and len({row.board for row in judged}) == 5
