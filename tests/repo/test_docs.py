"""The documents: every page of decisions is listed, and what README, docs/ and the code point to exists."""

import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_each_relative_link_exists(path):
    assert [link for link, target in relative_links(path) if not target.exists()] == []


def test_each_document_that_the_code_names_exists():
    named = [
        (name(path), page) for path in CODE
        for page in re.findall(r"\bdocs/[\w/.-]+\.md\b", path.read_text(encoding="utf-8"))
    ]
    assert named
    assert [pair for pair in named if not (ROOT / pair[1]).exists()] == []
