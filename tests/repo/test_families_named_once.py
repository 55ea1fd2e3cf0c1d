"""Nothing outside `families/` knows a model family: no import of a family's file, no comparison with its name.

Tests may: they build models of a family. All may import the designed family: search, training and calibration are about
it.
"""

import ast
from pathlib import Path

import pytest

from merino_edge.families.registry import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "merino_edge" / "families"
FILES = sorted(path.stem for path in HOME.glob("*.py") if "\nFAMILY = " in path.read_text(encoding="utf-8"))
PRIVATE = {*FILES, "designed_torch"} - {"designed"}
PACKAGES = (ROOT / "merino_edge", ROOT / "runtime" / "merino_runtime", ROOT / "runtime" / "merino_bench")
EXPERIMENTS = ROOT / "bench" / "experiments"
# "merino" is also what the board's program is called: on its command line, in the versions of a record, in its cache.
PROGRAM = {
    "runtime/merino_runtime/__main__.py", "runtime/merino_runtime/bundle/verified.py",
    "runtime/merino_bench/sensors/environment.py", "runtime/merino_bench/start.py",
    "runtime/merino_runtime/backends/engine_file.py",
    "runtime/merino_runtime/delivery/releases.py", "runtime/merino_runtime/delivery/service.py",
}  # fmt: skip

# "gpt2" is also the id of a model of the zoo, and a word of GGUF files; "merino" also a score, and the domain
# of this project's operators.
OTHER_NAMES = {
    ("merino_edge/design/pareto.py", "gpt2"), ("merino_edge/benchmarking/engine_models.py", "gpt2"),
    ("merino_edge/design/paper/score.py", "merino"), ("merino_edge/cli/design.py", "merino"),
    ("merino_edge/export/dialects/graph.py", "merino"),
}  # fmt: skip


def outside(folders):
    return [path for folder in folders for path in sorted(folder.rglob("*.py")) if HOME not in path.parents]


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def strings(tree):
    return (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def of_a_family(name):
    """Whether a full name is that of a published family's file, or of something in it."""
    parts = name.split(".")
    return parts[:2] == ["merino_edge", "families"] and len(parts) > 2 and parts[2] in PRIVATE


@pytest.fixture(scope="module")
def trees():
    """Syntax trees by path: packages and experiments without `families/`."""
    paths = outside((*PACKAGES, EXPERIMENTS))
    assert len(paths) > 100
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def test_each_file_is_listed_in_the_registry():
    assert len(FILES) == len(FAMILIES) >= 2
    assert {family.geometry.__module__.split(".")[2] for family in FAMILIES.values()} == set(FILES)


def test_nothing_imports_a_familys_file(trees):
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, tree in trees.items() for name in (*imports(tree), *strings(tree)) if of_a_family(name.split(":")[0])
    ]  # fmt: skip
    assert wrong == []


def test_nothing_holds_a_familys_name(trees):
    """Experiments are left out: "opt" is a section of their tables."""
    results = {
        (str(path.relative_to(ROOT)), text)
        for path, tree in trees.items() if EXPERIMENTS not in path.parents
        for text in strings(tree) if text in FAMILIES
    }  # fmt: skip
    assert {each for each in results if each[0] not in PROGRAM} == OTHER_NAMES
