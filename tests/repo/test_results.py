"""Records are summaries that name their claim, code, machine and command, each is linked from a page, and a figure in
README or docs stands in the record that its paragraph links to.

Judged are the figures of each paragraph or list item that links a record, and of a table behind such a paragraph. All
figures of a row of a table stand in one row of the record.
"""
import ast
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "docs" / "scripts"), str(ROOT / "bench" / "experiments")]

import make as results  # noqa: E402

RESULTS = ROOT / "bench" / "results"
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\]\((?:\.\./)*bench/results/([\w-]+\.json)\)")
# A number of its own: not in `code`, a link's target, a name (SmolLM2-135M, Q4_1, AVX-512) or a heading's number.
FIGURE = re.compile(r"(?<![\w.,/])(?<!\w-)\d[\d,]*(?:\.\d+)?(?=x?(?![\w/]|[.,]\d|-[a-z]))")


def figures(text):
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|<[^>]+>", " ", text)
    return [figure.rstrip(",") for figure in FIGURE.findall(text)]


@cache
def rows_of(record):
    """The numbers of each row: of each object that holds no further object, and of each list of numbers with it."""
    content = json.loads((RESULTS / record).read_text(encoding="utf-8"))
    return [row for row in numbers_of(content) if row]


def numbers_of(value):
    if isinstance(value, list):
        return list(chain.from_iterable(map(numbers_of, value)))
    if not isinstance(value, dict):
        return []
    own = list(chain.from_iterable(map(numbers_in, value.values())))
    return [own, *chain.from_iterable(map(numbers_of, value.values()))]


def numbers_in(value):
    if isinstance(value, list):
        return list(chain.from_iterable(map(numbers_in, value)))
    if isinstance(value, str):
        return [float(figure.replace(",", "")) for figure in FIGURE.findall(value)]
    return [] if isinstance(value, dict | bool) or value is None else [float(value)]


def stands(figure, numbers):
    """Whether a number is the figure when it is rounded so, or is it in per cent, thousands or millions."""
    half = 0.5 * 10 ** -len(figure.partition(".")[2]) + 1e-9
    shown = float(figure.replace(",", ""))
    return any(abs(abs(number) * factor - shown) <= half for number in numbers for factor in (1, 100, 1e-3, 1e-6))


def blocks(page):
    """(kind, text, records) of each paragraph, list item and table of a page; a table has the records of the paragraph
    before it."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    before = []
    for block in re.split(r"\n\s*\n|\n(?=(?:[*-]|\d+\.) )", text):
        if block.lstrip().startswith("|"):
            yield "table", block, before
        elif not block.lstrip().startswith("#"):
            before = LINK.findall(block)
            yield "prose", block, before


LINKED = [(page, *block) for page in PAGES for block in blocks(page) if block[2]]


def test_many_figures_are_linked():
    assert sum(len(figures(text)) for _, _, text, _ in LINKED) > 300


@pytest.mark.parametrize("page", sorted({page for page, *_ in LINKED}), ids=lambda page: page.stem)
def test_each_linked_figure_stands_in_its_record(page):
    missing = []
    for at, kind, text, records in LINKED:
        if at != page:
            continue
        rows = [row for record in records for row in rows_of(record)]
        if kind == "prose":
            everything = list(chain.from_iterable(rows))
            missing += [(figure, text[:80]) for figure in figures(text) if not stands(figure, everything)]
            continue
        for line in text.splitlines()[2:]:
            found = figures(line)
            if not any(all(stands(figure, row) for figure in found) for row in rows):
                missing.append((found, line[:80]))
    assert missing == []


def test_a_wrong_figure_is_found():
    assert stands("2.85", [2.847]) and stands("97", [0.9671]) and stands("66.6", [66589440.0])
    assert not stands("2.86", [2.847]) and not stands("96", [0.9671]) and figures("SmolLM2-135M: -1.5x `3`") == ["1.5"]


def printed_by_the_demo():
    """The numbers that the recorded run of README's picture printed."""
    events = (DOCS / "pictures" / "demo.cast").read_text(encoding="utf-8").splitlines()[1:]
    return set(SHOWN.findall("".join(json.loads(event)[2] for event in events)))


SHOWN = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_the_demos_output_is_that_of_its_recorded_run(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (block,) = [block for language, block in fenced if not language and "measured on this machine" in block]
    shown = {figure for figure in SHOWN.findall(block) if "." in figure or "," in figure}
    assert len(shown) > 8 and shown <= printed_by_the_demo()


RECORDS = sorted(RESULTS.glob("*.json"))
PACKAGES = "merino_edge", "merino_runtime", "merino_bench"
EXPERIMENTS = sorted((ROOT / "bench" / "experiments").glob("*.py"))

of_each_record = pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)


def git(*words):
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)


@of_each_record
def test_a_record_is_a_summary(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    assert path.name == results.DEMO or max(map(len, lines)) <= 400


@of_each_record
def test_a_record_names_claim_code_date_machine_and_command(path):
    for facts in results.records_of(path.name).values():
        assert all(facts[name] for name in ("claim", "commits", "machine", "command"))
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", facts["date"])
        if git("rev-parse", "--is-shallow-repository").stdout.strip() == "false":
            commits = [commit.removesuffix("-dirty") for commit in facts["commits"]]
            assert [one for one in commits if git("merge-base", "--is-ancestor", one, "HEAD").returncode] == []


@of_each_record
def test_a_record_names_no_path_of_the_machine_that_made_it(path):
    assert not re.search(r'["\s=](?:/root|/home|/tmp)/', path.read_text(encoding="utf-8"))


@of_each_record
def test_some_page_rests_on_a_record(path):
    assert [page for page in PAGES if f"bench/results/{path.name}" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("script", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_imports_what_there_is(script):
    """A record can be measured again. Most scripts run for hours, so no test runs them."""
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES:
            module = importlib.import_module(node.module)
            submodules = {found.name for found in pkgutil.iter_modules(getattr(module, "__path__", ()))}
            assert {alias.name for alias in node.names} <= set(dir(module)) | submodules, node.module
