"""The drawing of a front: every model named, one file that loads nothing."""

import re
import xml.etree.ElementTree as ElementTree

import forked
import pytest

from merino_edge.design.pareto import front
from merino_edge.design.space import Space
from merino_edge.profiles.reading import load_profile
from merino_edge.report.front import check_plot, front_svg
from merino_edge.report.tables import number
from merino_runtime.errors import MerinoError

SPACE = Space(widths=tuple(range(64, 321, 64)), depths=(3, 6, 9), ffn_ratios=(1.0, 2.0))
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module", params=["decode_ms", "memory_mb"])
def pareto(request):
    board = load_profile("raspberry-pi-zero-2w")
    return front(board, {}, request.param, 4, space=SPACE, context=256, prompt=128, vocabs=[2000])


def test_it_names_every_model_the_axes_and_the_default_budget(pareto):
    texts = [text.text for text in ElementTree.fromstring(front_svg(pareto)).iter(f"{SVG}text")]
    for model in pareto.models:
        assert texts.count(model.name) == 1
    unit = "ms" if pareto.against == "decode_ms" else "MB"
    (limit,) = [text for text in texts if text.startswith("the board's default budget")]
    assert limit.endswith(f"{number(pareto.default_limit)} {unit}")
    assert any(text.endswith(f"{unit} (log scale)") for text in texts)
    assert "effective weights, millions" in texts


def test_it_is_one_file_that_loads_nothing_and_the_same_each_time(pareto):
    text = front_svg(pareto)
    svg = ElementTree.fromstring(text)
    assert svg.tag == f"{SVG}svg" and (svg.get("width"), svg.get("height")) == ("800px", "600px")
    assert text == front_svg(pareto) and "<dc:date" not in text
    assert not re.search(r"@import|url\((?!#)|<script|<image|href=\"(?!#)|var\(", text)


@pytest.mark.parametrize("name", ["front.png", "front", "front.svg.pdf"])
def test_another_suffix_is_refused_with_what_to_do(tmp_path, name):
    with pytest.raises(MerinoError, match=r"SVG only.*such as --plot front"):
        check_plot(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("front.svg", 0), ("front.SVG", 0), ("front.png", 1), ("front", 1)])
def test_the_command_draws_an_svg_and_refuses_another_name_before_it_solves(name, code, tmp_path):
    small = ["--device", "raspberry-pi-zero-2w", "--vocab", "300", "--context", "64"]
    done = forked.run(["pareto", *small, "--plot", name, "-o", "front.json"], cwd=tmp_path, first=forked.SMALL)
    assert done.returncode == code, done.stderr
    if code:
        assert "drawn as SVG only" in done.stderr and done.stdout == "" and list(tmp_path.iterdir()) == []
    else:
        assert ElementTree.parse(tmp_path / name).getroot().tag == f"{SVG}svg"
