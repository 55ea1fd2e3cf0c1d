"""Records name the code that made them, and a page that quotes one that is older than the code it judges says so."""

import ast
import importlib
import importlib.util
import json
import pkgutil
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
# Whose change makes a record old, by the words of bench/results/README.md.
AREAS = {
    "runtime": ("runtime/merino_runtime",), "export": ("merino_edge/export", "merino_edge/families"),
    "design": ("merino_edge/design",), "prediction": ("merino_edge/prediction",), "profiles": ("device_profiles",),
    "calibration": ("merino_edge/calibration", "bench/merino_bench/probe"), "training": ("merino_edge/training",),
    "delivery": ("merino_edge/delivery", "runtime/merino_runtime/delivery"),
}  # fmt: skip
PACKAGES = "merino_edge", "merino_runtime", "merino_bench"
EXPERIMENTS = sorted((ROOT / "bench" / "experiments").glob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def table():
    """{record's file: areas} of bench/results/README.md, and {file: commit} where its row states one."""
    areas, added = {}, {}
    for row in re.findall(r"^\| (`.*) \|$", (RESULTS / "README.md").read_text(), re.MULTILINE):
        files, judges, *rest = row.split(" | ")
        for name in re.findall(r"`([^`]+)`", files):
            areas[name] = judges.split(", ")
            if stated := re.search(r"(?:added by|measured at) `(\w+)`", " ".join(rest)):
                added[name] = stated[1]
    return areas, added


JUDGED, ADDED = table()


def commit_of(name):
    """The oldest code in a record."""
    if name in ADDED:  # a picture, or a list of rows, which has no room for it
        return ADDED[name]
    data = json.loads((RESULTS / name).read_text())
    return data.get("added_by_commit") or data["commits"][0].removesuffix("-dirty")


def git(*words):
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)


@pytest.fixture(scope="module", autouse=True)
def history():
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("this checkout has no whole history")


@cache
def newer(commit, areas):
    """Commits that changed these areas since."""
    folders = [folder for area in areas for folder in AREAS[area]]
    done = git("log", "--format=%h", f"{commit}..HEAD", "--", *folders)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def quotes():
    """(page, paragraph, record's file) of each mention of a record in README and docs."""
    for page in PAGES:
        for paragraph in re.split(r"\n\s*\n", page.read_text(encoding="utf-8")):
            for name in sorted(set(re.findall(r"bench/results/([\w.-]+\.(?:json|png|svg))", paragraph))):
                yield page, paragraph, name


def test_each_record_stands_in_the_table_with_areas_that_there_are():
    assert sorted(JUDGED) == sorted(path.name for path in RESULTS.iterdir() if path.name != "README.md")
    assert {area for areas in JUDGED.values() for area in areas} <= set(AREAS)
    assert [folder for folders in AREAS.values() for folder in folders if not (ROOT / folder).is_dir()] == []


@pytest.mark.parametrize("name", sorted(JUDGED))
def test_a_record_names_the_code_that_made_it_and_some_page_rests_on_it(name):
    assert re.fullmatch(r"[0-9a-f]{7,40}", commit_of(name))
    assert any(name == quoted for _, _, quoted in quotes())


def test_no_record_names_a_path_of_the_machine_that_made_it():
    """`command` is a row's own line: files in it stand without their folders."""
    named = re.compile(r'["\s=](?:/root|/home|/tmp)/')
    assert [path.name for path in RESULTS.glob("*.json") if named.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("script", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_imports_what_there_is(script):
    """A record can be measured again. Most scripts run for hours, so no test runs them."""
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES:
            module = importlib.import_module(node.module)
            submodules = {each.name for each in pkgutil.iter_modules(getattr(module, "__path__", ()))}
            assert {each.name for each in node.names} <= set(dir(module)) | submodules, node.module


def test_the_commits_that_pages_name_are_there():
    results = [re.findall(r"\bat ([0-9a-f]{7})\b", page.read_text(encoding="utf-8")) for page in PAGES]
    named = sorted({commit for each in results for commit in each})
    assert named and [commit for commit in named if git("merge-base", "--is-ancestor", commit, "HEAD").returncode] == []


@pytest.mark.parametrize("older", [[], ["0000000"]])
def test_an_experiment_writes_the_commit_that_measured_and_keeps_the_older_ones(older, tmp_path):
    spec = importlib.util.spec_from_file_location("write_record", ROOT / "bench" / "experiments" / "write_record.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path / "record.json"
    module.write_record(path, {"commits": older, "rows": [1]})
    module.write_record(path, json.loads(path.read_text()))  # goes on at the same commit
    kept = json.loads(path.read_text())
    *before, last = kept["commits"]
    here = git("rev-parse", "--short=7", "HEAD").stdout.strip()
    assert last.removesuffix("-dirty") == here and before == older and kept["rows"] == [1]


def test_a_page_that_quotes_an_old_record_says_at_which_commit_it_was_measured():
    silent = []
    for page, paragraph, name in quotes():
        if name not in JUDGED:
            continue  # test_docs judges links; a command may write a new one
        commit = commit_of(name)
        changed = newer(commit, tuple(JUDGED[name]))
        if changed and f"at {commit}" not in paragraph.replace("\n", " "):
            silent.append(f"{page.relative_to(ROOT)}, {name}, {len(changed)} commits: say 'measured at {commit}'")
    assert silent == []
