"""The drawing of a front: every model named, nothing covered, one file that loads nothing."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations

import forked
import pytest

from merino_edge.design.pareto import front
from merino_edge.design.space import Space
from merino_edge.profiles.reading import load_profile
from merino_edge.report.front import front_svg, save_front
from merino_edge.report.svg import text_px
from merino_runtime.errors import MerinoError

SPACE = Space(widths=tuple(range(64, 321, 64)), depths=(3, 6, 9), ffn_ratios=(1.0, 2.0))
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module", params=["decode_ms", "memory_mb"])
def pareto(request):
    board = load_profile("raspberry-pi-zero-2w")
    return front(board, {}, request.param, 4, space=SPACE, context=256, prompt=128, vocabs=[2000])


def texts_of(svg, *classes):
    return [each for each in svg.iter(f"{SVG}text") if not classes or each.get("class") in classes]


def span(text):
    """(left, right, baseline) in px."""
    wide, at = text_px(text.text), float(text.get("x"))
    left = at - wide * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")]
    return left, left + wide, float(text.get("y"))


def test_it_names_every_model_and_no_text_covers_another(pareto):
    svg = ElementTree.fromstring(front_svg(pareto))
    names = [name for text in texts_of(svg, "label") for name in text.text.split(", ")]
    assert sorted(names) == sorted(model.name for model in pareto.models)
    spans = [span(text) for text in texts_of(svg, "label", "limit")]
    assert not any(a[0] < b[1] and b[0] < a[1] and abs(a[2] - b[2]) < 13 for a, b in combinations(spans, 2))
    width, height = (float(svg.get(key)) for key in ("width", "height"))
    for left, right, baseline in map(span, texts_of(svg, "label", "limit", "tick", "axis")):
        assert left >= 0 and right <= width and baseline <= height


def test_its_marks_are_the_fronts_points_models_and_default_budget(pareto):
    svg = ElementTree.fromstring(front_svg(pareto))
    tips = [each.text for each in svg.iter(f"{SVG}title")]
    assert sum(tip.startswith("design: ") for tip in tips) == len(pareto.points)
    assert len(next(svg.iter(f"{SVG}polyline")).get("points").split()) == len(pareto.points)
    assert all(any(tip.startswith(f"{model.name}: ") for tip in tips) for model in pareto.models)
    axis = " ".join(text.text for text in texts_of(svg, "axis"))
    unit = "ms" if pareto.against == "decode_ms" else "MB"
    assert f"{unit} (log scale)" in axis and "effective weights, millions" in axis
    (limit,) = texts_of(svg, "limit")
    assert limit.text.startswith("the board's default budget") and limit.text.endswith(unit)
    ticks = [float(text.text.replace(",", "")) for text in texts_of(svg, "tick") if text.get("text-anchor") == "end"]
    assert ticks[0] == 0 and ticks[-1] >= max(each.entropy for each in (*pareto.points, *pareto.models)) / 1e6


def test_it_is_one_file_that_loads_nothing_and_has_its_own_style(pareto):
    text = front_svg(pareto)
    svg = ElementTree.fromstring(text)
    assert svg.tag == f"{SVG}svg" and svg.get("viewBox") == f"0 0 {svg.get('width')} {svg.get('height')}"
    assert re.findall(r"https?:[^\"]*", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"@import|url\(|<script|<image|href|var\(", text)
    style = next(svg.iter(f"{SVG}style")).text
    used = {name for each in svg.iter() for name in (each.get("class") or "").split()} - {"front"}
    assert used - set(re.findall(r"\.([\w-]+)", style)) == set()


def test_a_failed_write_leaves_what_was_there(pareto, tmp_path):
    folder = tmp_path / "front.svg"
    folder.mkdir()  # a folder stands where the file would be
    (folder / "kept").write_text("")
    with pytest.raises(MerinoError, match="cannot write"):
        save_front(pareto, folder)
    assert (folder / "kept").exists()


@pytest.mark.parametrize("name", ["front.png", "front", "front.svg.pdf"])
def test_another_suffix_is_refused_with_what_to_do(pareto, tmp_path, name):
    with pytest.raises(MerinoError, match=r"SVG only.*such as --plot front"):
        save_front(pareto, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("front.svg", 0), ("front.SVG", 0), ("front.png", 1), ("front", 1)])
def test_the_command_draws_an_svg_and_refuses_another_name_before_it_solves(name, code, tmp_path):
    small = ["--device", "raspberry-pi-zero-2w", "--vocab", "300", "--context", "64", "--points", "3"]
    done = forked.run(["pareto", *small, "--plot", name, "-o", "front.json"], cwd=tmp_path, first=forked.SMALL)
    assert done.returncode == code, done.stderr
    if code:
        assert "drawn as SVG only" in done.stderr and done.stdout == "" and list(tmp_path.iterdir()) == []
    else:
        assert ElementTree.parse(tmp_path / name).getroot().tag == f"{SVG}svg"
