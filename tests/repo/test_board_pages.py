"""The pages of boards: one for each profile, each command says where it ran, and those of boards exist."""

import re
import shlex
from pathlib import Path

import pytest

from merino_bench.__main__ import VERBS as BENCH_VERBS
from merino_edge.profiles.reading import load_profile, profile_ids
from merino_runtime.__main__ import VERBS, _parser
from merino_runtime.delivery.verbs import VERBS as DELIVERY_VERBS

ROOT = Path(__file__).resolve().parents[2]
INDEX = ROOT / "docs" / "boards" / "index.md"
PAGES = [path for path in sorted(INDEX.parent.glob("*.md")) if path != INDEX]
APPLICATION = re.compile(r"(?:sudo )?(?:python3 merino\.pyz|\S+/current/merino) (.*)")

of_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def marked_commands(page):
    """(mark or None, command) of each command in the page's blocks. A mark holds for the commands below it."""
    for block in re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        mark = None
        for line in block.splitlines():
            if line.startswith("# "):
                mark = line.removeprefix("# ")
            else:
                yield mark, line


def legend():
    """What the list of boards says that marks may be."""
    section = INDEX.read_text(encoding="utf-8").partition("## What the marks mean")[2]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def test_each_profile_has_a_page_that_the_list_of_boards_links():
    assert [page.stem for page in PAGES] == sorted(profile_ids())
    text = INDEX.read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f"({page.name})" not in text] == []


@of_each_page
def test_each_command_says_where_it_ran(page):
    """In the words of the legend, with CORE the one of the page's board."""
    known = {words.replace("CORE", load_profile(page.stem).cpu.core) for words in legend()}
    assert len(known) >= 4
    for mark, command in marked_commands(page):
        assert mark is not None, f"{page.name}: {command} has no mark"
        parts = re.split("; ", mark.removeprefix("run: "))
        assert all(part.split(" with ")[0] in known for part in parts), f"{page.name}: {mark}"
        assert mark.startswith("run: ") or mark == "not run yet", f"{page.name}: {mark}"


@of_each_page
def test_each_command_for_the_board_is_one_of_the_application(page):
    results = [match[1] for _, command in marked_commands(page) if (match := APPLICATION.fullmatch(command))]
    parser = _parser([*VERBS, *BENCH_VERBS, *DELIVERY_VERBS])
    parsed = [parser.parse_args(shlex.split(words)) for words in results]
    assert {"board", "install", "generate", "selftest", "status", "bench", "probe"} <= {each.verb for each in parsed}


@of_each_page
def test_the_commands_name_the_pages_own_board(page):
    named = {
        device for _, command in marked_commands(page) for device in re.findall(r"--device (\S+)", command)
        if not device.endswith(".toml")
    }  # fmt: skip
    assert named == {page.stem}
