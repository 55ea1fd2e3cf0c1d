"""The documents: what they name exists (pages, anchors, files, commands and their options), the pages of boards say
where each command ran, mkdocs builds the site without a warning, and generated pages are current."""
import logging
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import matplotlib
import pytest
from typer.testing import CliRunner

from merino_bench.__main__ import VERBS as BENCH_VERBS
from merino_edge.cli.app import app
from merino_edge.design.budgets import with_board_defaults
from merino_edge.design.recommend import judge
from merino_edge.families.zoo import model
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.formats import formats_of
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile, profile_ids
from merino_runtime.__main__ import VERBS, _parser
from merino_runtime.delivery.verbs import VERBS as DELIVERY_VERBS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "scripts"))

import boards  # noqa: E402
import make  # noqa: E402

PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", *PAGES]
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
def options_of(*verb):
    result = CliRunner(env={"COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}).invoke(app, [*verb, "--help"])
    assert result.exit_code == 0, f"there is no merino-edge {' '.join(verb)}"
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", result.output))


GROUPS = ("job",)  # commands with commands of their own
COMMANDS = {path: list(documented_commands(path.read_text(encoding="utf-8"))) for path in DOCUMENTS}


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if COMMANDS[path]], ids=name)
def test_every_command_of_the_page_exists_with_its_options(path):
    for verb, *words in COMMANDS[path]:
        end = next((index for index, word in enumerate(words) if word in {"|", ">", "&&", "&", ";"}), len(words))
        given = {word.split("=")[0] for word in words[:end] if re.fullmatch(r"--?[a-zA-Z].*", word)}
        known = options_of(verb, words[0]) if verb in GROUPS else options_of(verb)
        assert given <= known, f"merino-edge {verb} has no {given - known}"


# A file that a code span names, `bench/results/README.md`, is no link: the site does not have it.
ROOTS = "bench|device_profiles|docs|examples|fleet|merino_edge|runtime|tests"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_each_file_that_a_code_span_names_exists(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(rf"`((?:{ROOTS})/[\w./-]+)`", text)
    assert [each for each in named if "NAME" not in each and not (ROOT / each).exists()] == []


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


BOARDS = DOCS / "boards" / "index.md"
BOARD_PAGES = [path for path in sorted(BOARDS.parent.glob("*.md")) if path != BOARDS]
APPLICATION = re.compile(r"(?:sudo )?(?:python3 merino\.pyz|\S+/current/merino) (.*)")

of_each_page = pytest.mark.parametrize("page", BOARD_PAGES, ids=lambda page: page.stem)


def marked_commands(page):
    """(mark or None, command) of each command in the page's blocks. A mark holds for the commands below it."""
    for block in re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        mark = None
        for line in block.splitlines():
            if line.startswith("# "):
                mark = line.removeprefix("# ")
            else:
                yield mark, line


def test_each_profile_has_a_page_that_the_list_of_boards_links():
    assert [page.stem for page in BOARD_PAGES] == sorted(profile_ids())
    text = BOARDS.read_text(encoding="utf-8")
    assert [page.name for page in BOARD_PAGES if f"({page.name})" not in text] == []


@pytest.mark.parametrize("board", profile_ids())
def test_the_list_of_boards_and_recommend_agree_on_what_a_board_holds(board):
    """And on the smallest board, where memory binds, on what its own budgets allow."""
    profile = load_profile(board)
    costs = [cost_model(profile, InferenceShape(form, boards.CONTEXT, boards.PROMPT)) for form in formats_of(profile)]
    memory = {"memory_mb": profile.memory.free_mb.value}
    for limits in (memory, with_board_defaults({}, profile)) if board == "raspberry-pi-zero-2w" else (memory,):
        for name in boards.MODELS:
            fitting = {verdict.precision for verdict in judge(model(name), costs, limits).verdicts if verdict.fits}
            assert fitting == boards.speeds_of(profile, name).keys(), (name, limits)


@of_each_page
def test_the_speed_that_a_page_expects_is_that_of_the_list_of_boards(page):
    expected = page.read_text(encoding="utf-8").split("## Expected speed")[1].split("##")[0]
    row = next(line for line in BOARDS.read_text(encoding="utf-8").splitlines() if f"]({page.name})" in line)
    listed = {cell.strip().split()[0] for cell in row.split("|")[4:-2]}
    shown = set(re.findall(r"\b[\d.]+\d\b(?= (?:tokens per second )?for)", expected))
    assert shown and shown <= listed


@of_each_page
def test_each_command_for_the_board_is_one_of_the_application(page):
    results = [match[1] for _, command in marked_commands(page) if (match := APPLICATION.fullmatch(command))]
    parser = _parser([*VERBS, *BENCH_VERBS, *DELIVERY_VERBS])
    parsed = [parser.parse_args(shlex.split(words)) for words in results]
    assert {"board", "install", "generate", "selftest", "status", "bench", "probe"} <= {each.verb for each in parsed}


@of_each_page
def test_the_commands_name_the_pages_own_board(page):
    named = {
        device for _, command in marked_commands(page) for device in re.findall(r"--board ([^\s:]+)", command)
        if not device.endswith(".toml")
    }  # fmt: skip
    assert named == {page.stem}
