"""The documents: every page of decisions is listed, and what README, docs/ and the code point to exists: pages, files,
commands and their options."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from merino_edge.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
DECISIONS = ROOT / "docs" / "decisions"
INDEX = DECISIONS / "README.md"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [path for path in sorted(DECISIONS.rglob("*.md")) if path != INDEX]
CODE = [
    path
    for folder in ("merino_edge", "runtime", "bench", "tests", "device_profiles")
    for suffix in ("*.py", "*.md", "*.toml", "*.sh") for path in sorted((ROOT / folder).rglob(suffix))
]


def relative_links(path):
    """(as written, the file it means) of each link and image of a Markdown file that stays in the repository."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)|\ssrc=\"([^\"]+)\"", text):
        target = (link[0] or link[1]).partition("#")[0]
        if target and not re.match(r"[a-z]+:", target):
            yield target, (path.parent / target).resolve()


def name(path):
    return str(path.relative_to(ROOT))


def test_the_decisions_are_linked_from_the_first_page():
    assert ("docs/decisions/README.md", INDEX) in relative_links(DOCUMENTS[0])


def test_each_page_of_decisions_is_linked_from_the_index():
    assert sorted(map(name, {target for _, target in relative_links(INDEX)})) == sorted(map(name, PAGES))


OTHERS = [
    ROOT / each
    for each in (
        "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "fleet/README.md", "bench/results/README.md",
        "runtime/kernels/README.md",
    )
]  # fmt: skip


def slugs(path):
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower())).strip("-") for title in titles}


@pytest.mark.parametrize("path", [DOCUMENTS[0], *OTHERS], ids=name)
def test_each_anchor_that_a_page_outside_the_site_links_exists(path):
    """Those of the site's pages are judged as it is built."""
    links = re.findall(r"\]\(([^)\s#:]+\.md)#([^)\s]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if link[1] not in slugs(path.parent / link[0])] == []


@pytest.mark.parametrize("path", [*DOCUMENTS, *OTHERS], ids=name)
def test_each_relative_link_exists(path):
    assert [link for link, target in relative_links(path) if not target.exists()] == []


def test_each_document_that_the_code_names_exists():
    named = [
        (name(path), page) for path in CODE
        for page in re.findall(r"\bdocs/[\w/.-]+\.md\b", path.read_text(encoding="utf-8"))
    ]
    assert named
    assert [pair for pair in named if not (ROOT / pair[1]).exists()] == []


def documented_commands(text):
    """The words behind `merino-edge` of each line of a bash block, continued lines joined, comments off, and of each
    code span in a line."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith("merino-edge"):
                yield shlex.split(line, comments=True)[1:]
    spans = re.findall(r"`merino-edge ([a-z][^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    yield from (shlex.split(span) for span in spans)


@cache
def options_of(verb):
    result = CliRunner(env={"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}).invoke(app, [verb, "--help"])
    assert result.exit_code == 0, f"there is no merino-edge {verb}"
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", result.output))


COMMANDS = {path: list(documented_commands(path.read_text(encoding="utf-8"))) for path in DOCUMENTS}


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if COMMANDS[path]], ids=name)
def test_every_command_of_the_page_exists_with_its_options(path):
    for verb, *words in COMMANDS[path]:
        end = next((index for index, word in enumerate(words) if word in {"|", ">", "&&", "&", ";"}), len(words))
        given = {word.split("=")[0] for word in words[:end] if re.fullmatch(r"--?[a-zA-Z].*", word)}
        assert given <= options_of(verb), f"merino-edge {verb} has no {given - options_of(verb)}"


def test_readme_and_the_page_of_each_board_show_commands():
    shown = {name(path) for path in DOCUMENTS if COMMANDS[path]}
    boards = {name(path) for path in DOCUMENTS if path.parent.name == "boards"}
    assert {"README.md", "docs/start.md", *boards} <= shown


# A file that a code span names, `bench/results/README.md`, is no link: the site does not have it.
ROOTS = "bench|device_profiles|docs|examples|fleet|merino_edge|runtime|tests"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_each_file_that_a_code_span_names_exists(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(rf"`((?:{ROOTS})/[\w./-]+)`", text)
    assert [each for each in named if "NAME" not in each and not (ROOT / each).exists()] == []


def test_the_table_of_rooms_names_each_of_the_workstation():
    text = (ROOT / "docs" / "paths.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in (ROOT / "merino_edge").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `merino_edge/(\w+)/` \|", text, re.MULTILINE)) == rooms
