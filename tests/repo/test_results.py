"""Records are summaries that name their claim, code, machine and command, and each is linked from a page."""

import ast
import importlib
import importlib.util
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "bench" / "results").glob("*.json"))
PACKAGES = "merino_edge", "merino_runtime", "merino_bench"
EXPERIMENTS = sorted((ROOT / "bench" / "experiments").glob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
sys.path.insert(0, str(ROOT / "docs" / "scripts"))

import results  # noqa: E402 - a script beside the pages

of_each_record = pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)


def git(*words):
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)


@of_each_record
def test_a_record_is_a_summary(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    assert path.name == results.DEMO or max(map(len, lines)) <= 400


@of_each_record
def test_a_record_names_claim_code_date_machine_and_command(path):
    facts = results.facts_of(path.name)
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


def test_no_page_names_the_commit_of_a_measurement():
    """The record does."""
    named = re.compile(r"\b(?:measured|predicted|counted)\s+(?:at|by)\s+[0-9a-f]{7}\b|\bno record\b")
    own = [page for page in PAGES if page.parent.name != "reference"]  # docstrings and messages
    assert [page.name for page in own if named.search(page.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("script", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_imports_what_there_is(script):
    """A record can be measured again. Most scripts run for hours, so no test runs them."""
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES:
            module = importlib.import_module(node.module)
            submodules = {found.name for found in pkgutil.iter_modules(getattr(module, "__path__", ()))}
            assert {alias.name for alias in node.names} <= set(dir(module)) | submodules, node.module


@pytest.mark.parametrize("older", [[], ["0000000"]])
def test_an_experiment_writes_the_commit_that_measured_and_keeps_the_older_ones(older, tmp_path):
    spec = importlib.util.spec_from_file_location("write_record", ROOT / "bench" / "experiments" / "write_record.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path / "record.json"
    module.write_record(path, {"commits": older, "rows": [{"ms": 1}]}, "claim", "command")
    module.write_record(path, json.loads(path.read_text()), "claim", "command")  # goes on at the same commit
    kept = json.loads(path.read_text())
    *before, last = kept["commits"]
    here = git("rev-parse", "--short=7", "HEAD").stdout.strip()
    assert last.removesuffix("-dirty") == here and before == older and kept["rows"] == [{"ms": 1}]


def test_a_record_has_one_line_for_each_row():
    spec = importlib.util.spec_from_file_location("write_record", ROOT / "bench" / "experiments" / "write_record.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    content = {"rows": [{"name": "n" * 60, "interval": [index, 2.5]} for index in range(5)], "one": {"a": [1, 2]}}
    text = module.layout(content)
    assert json.loads(text) == content and len(text.splitlines()) == 2 + 2 + 5 + 1
