"""The site: mkdocs builds it without a warning, llms.txt names each page, and made pages are current."""

import json
import logging
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "scripts"))
PAGES = sorted(path for path in DOCS.rglob("*.md"))

import make  # noqa: E402
import record_terminal  # noqa: E402
import terminal  # noqa: E402


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site's folder. A dead link, a missing anchor or a page outside the navigation ends the build."""
    build = pytest.importorskip("mkdocs.commands.build", reason="mkdocs is in the extra `dev`")
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    warnings = []

    class Kept(logging.Handler):
        def emit(self, record):
            warnings.append(record.getMessage())

    handler = Kept(logging.WARNING)
    logger = logging.getLogger("mkdocs")
    logger.addHandler(handler)
    try:
        build.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=False))
    finally:
        logger.removeHandler(handler)
    assert warnings == []
    return folder


def test_the_site_is_built_without_a_warning_and_can_be_searched(site):
    built = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    named = {re.sub(r"(^|/)README$", r"\1index", page.relative_to(DOCS).with_suffix("").as_posix()) for page in PAGES}
    assert {f"{name}.html" for name in named} <= built
    assert "Raspberry Pi Zero 2 W" in (site / "search" / "search_index.json").read_text(encoding="utf-8")


def test_no_page_of_the_site_fetches_from_elsewhere(site):
    """It is read offline: scripts, styles and pictures are its own."""
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        tags = re.findall(r"<(?:script|img|link rel=\"stylesheet\")[^>]*>", text)
        assert not [tag for tag in tags if re.search(r"(?:src|href)=\"(?:https?:)?//", tag)], path.name
        assert tags or path.name == "report-x86-2cores.html", "the report has neither script nor style sheet"


def test_a_figure_in_a_table_stays_beside_its_unit(site):
    cells = [cell for path in site.rglob("*.html") for cell in re.findall("<td[^>]*>([^<]*%)</td>", path.read_text())]
    assert len(cells) > 50 and not [cell for cell in cells if re.search(r"\d %$", cell)]


def test_a_block_is_no_wider_than_its_page():
    """112 characters are seen at once where a window has 1,250 pixels."""
    blocks = {page: re.findall(r"^```\w*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
              for page in PAGES}  # fmt: skip
    wide = [(page.name, line) for page in PAGES for block in blocks[page] for line in block.splitlines()
            if len(line) > 112]  # fmt: skip
    assert wide == [] and sum(map(len, blocks.values())) > 60


def test_each_page_has_one_line_in_llms_txt():
    text = (DOCS / "llms.txt").read_text(encoding="utf-8")
    lines = re.findall(r"^- \[[^\]]+\]\(([^)]+)\): .{20,}$", text, re.MULTILINE)
    assert sorted(lines) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


@pytest.mark.parametrize("name", make.MADE)
def test_what_is_made_from_the_code_is_as_the_code_says(name):
    path = DOCS / name
    kept = path.read_text(encoding="utf-8")
    drawn_by = re.search(r"Matplotlib v([\d.]+)", kept)
    if drawn_by and drawn_by[1] != matplotlib.__version__:
        pytest.skip(f"drawn by matplotlib {drawn_by[1]}, here is {matplotlib.__version__}")
    assert make.MADE[name](path) == kept, "remake it: python docs/scripts/make.py"


def test_decisions_stay_few():
    pages = list((DOCS / "decisions").glob("*.md"))
    assert len(pages) <= 12  # the list of them included
    assert [page.name for page in pages if len(page.read_text(encoding="utf-8").splitlines()) > 80] == []


def test_a_recorded_run_becomes_a_picture_with_its_lines_in_their_order():
    printed = ["a <b> & c", " 1.5x", "last"]
    events = record_terminal.output_of(["printf", "\\n".join(printed) + "\\n"])
    header = {"command": "printf"}
    cast = "".join(f"{json.dumps(line)}\n" for line in [header, *([second, "o", text] for second, text in events)])
    shown = ElementTree.fromstring(terminal.drawn(cast)).iter("{http://www.w3.org/2000/svg}text")
    assert ["".join(each.itertext()) for each in shown] == ["$ printf", *printed]


def test_pictures_are_small():
    assert all(path.stat().st_size < 1e6 for path in (DOCS / "pictures").iterdir())
