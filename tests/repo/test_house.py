"""Who may import whom, read from the syntax trees: packages and rooms import downward, nothing outside of `families/`
imports a model family, and the arrows of docs/paths.md are imports. What runs on a board is Python 3.6 and imports what
a board has."""
import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from merino_edge.families.registry import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
# From the top: a package imports itself and packages further down.
PACKAGES = {
    "merino_edge": ROOT / "merino_edge",
    "merino_bench": ROOT / "runtime" / "merino_bench",
    "merino_runtime": ROOT / "runtime" / "merino_runtime",
}
# The rooms of each package from the top: a room imports from rooms further down, and from itself.
ROOMS = {
    "merino_edge": [
        "cli", "report", "benchmarking", "jobs", "house", "evaluation", "delivery", "export", "training", "bundles",
        "design", "records", "calibration", "prediction", "families", "profiles", "text", "storage", "embedded",
    ],
    "merino_runtime": [
        "__main__", "commands", "serving", "delivery", "house", "job", "api", "chat", "generation", "backends",
        "bundle", "io",
        "sampling", "errors",
    ],
    "merino_bench": ["harness", "probe", "sensors"],
}
IGNORED = {".venv", "build", "dist", "tests"}


def sources():
    """Every Python file of the repository but tests, by path."""
    result = (path for path in sorted(ROOT.rglob("*.py")) if not set(path.relative_to(ROOT).parts) & IGNORED)
    return [path for path in result if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]


def module_name(path):
    """`merino_edge.design.space` for a file of one of the packages; None for any other."""
    for package, folder in PACKAGES.items():
        if folder in path.parents:
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return None


MODULES = {name: path for path in sources() if (name := module_name(path))}


def imported(path):
    """Full names of what a file imports, wherever in it: modules, and the names taken from them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name):
    """Modules of ours that a module imports: the longest that exists, so `from a.b import c` may be a.b.c or a.b."""
    result = set()
    for full in imported(MODULES[name]):
        while full and full not in MODULES:
            full = full.rpartition(".")[0]
        result |= {full} - {"", name}
    return result


GRAPH = {name: own_imports(name) for name in MODULES}


def room_of(module):
    """(package, room) of a module; room None for what lies beside the rooms (`__main__`, a package itself)."""
    package, _, inner = module.partition(".")
    room = inner.split(".")[0]
    return package, room if room in ROOMS.get(package, ()) else None


def upward():
    """(room, room further up) of each import between two rooms of a package that runs against their order."""
    for name, targets in GRAPH.items():
        for target in targets:
            (package, here), (other, there) = room_of(name), room_of(target)
            if package == other and here and there:
                order = ROOMS[package]
                if order.index(there) < order.index(here):
                    yield f"{name} -> {target}"


def test_there_is_something_to_judge():
    assert {name.split(".")[0] for name in MODULES} == set(PACKAGES)
    assert "merino_edge.families.operators" in GRAPH["merino_edge.families.designed"]


def test_a_package_imports_only_itself_and_packages_further_down():
    order = list(PACKAGES)
    wrong = [
        (name, target) for name, targets in GRAPH.items() for target in targets
        if order.index(target.split(".")[0]) < order.index(name.split(".")[0])
    ]  # fmt: skip
    assert wrong == []


def test_nothing_imports_the_tests_or_the_experiments():
    wrong = [
        (str(path.relative_to(ROOT)), full)
        for path in sources() for full in imported(path)
        if full.split(".")[0] in {"tests", "conftest", "experiments", "bench", "runtime"}
        or full.split(".")[0] == "probe_graphs" and path.parent.name != "probe_graphs"
    ]
    assert wrong == []


def test_a_room_imports_only_from_rooms_further_down():
    assert sorted(set(upward())) == []


def is_program(node):
    """A function `main`, or what runs under `if __name__ == "__main__"`."""
    if isinstance(node, ast.If):
        return "__main__" in ast.dump(node.test)
    return isinstance(node, ast.FunctionDef) and node.name == "main"


def prints(tree):
    """Lines that call print outside a program of its own."""
    own = {inner for node in ast.walk(tree) if is_program(node) for inner in ast.walk(node)}
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node not in own)
    return [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]


def test_nothing_below_the_command_line_prints_or_draws_on_a_terminal():
    """What it has to say goes up by a callback."""
    below = {name: path for name, path in MODULES.items() if room_of(name)[0] == "merino_edge"}
    below = {name: path for name, path in below.items() if room_of(name)[1] != "cli"}
    assert len(below) > 60
    lines = {(name, line) for name, path in below.items() for line in prints(ast.parse(path.read_text("utf-8")))}
    assert lines == set()
    tops = {(name, full.split(".")[0]) for name, path in below.items() for full in imported(path)}
    assert {name for name, top in tops if top in ("rich", "typer")} == set()


def test_consoles_are_made_by_one_module():
    """Another one would take text from files for markup: docs/decisions/house.md"""
    makers = {
        name for name, path in MODULES.items() for full in imported(path)
        if full.split(".")[0] == "rich" and full.split(".")[-1] in ("Console", "console", "get_console", "print")
    }  # fmt: skip
    assert makers == {"merino_edge.cli.terminal"}


WRITERS = {"merino_runtime.io.outputs", "merino_runtime.io.scratch"}
# These fill a scratch or temporary folder that their caller gives them; what is in it takes its place as a whole.
FILLERS = {
    "merino_edge.bundles.description", "merino_edge.export.dialects.graph",
    "merino_edge.export.dialects.float_activations",  # replaces a bundle's graph while it is proved
    "merino_edge.export.export",  # the bundle that `--precision auto` chose
    "merino_edge.benchmarking.engines",
    "merino_edge.evaluation.tasks", "merino_edge.families.hugging_face",
    "merino_edge.families.mapped",  # fills nameless files
    "merino_edge.training.train", "merino_edge.training.shards",
    "merino_edge.training.loop",  # moves a saved state to its place
    "merino_edge.training.distill",  # appends records to a cache; its size says how many are whole
    "merino_bench.probe.graphs", "merino_bench.probe.timing", "merino_bench.probe.gpu",
    "merino_runtime.delivery.archive",
    "merino_runtime.bundle.fit",  # fills an anonymous file in memory
    "merino_runtime.delivery.agent",  # runs where nothing of ours is yet, and fills its own cache there
}  # fmt: skip
WRITES = {
    "write_text", "write_bytes", "mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryFile", "rename", "renames",
    "copyfile", "copytree", "move", "save_pretrained", "save_model", "savez", "tofile",
}  # fmt: skip


def is_write(call):
    """A call that makes, fills or renames a file: `open` with a mode for writing, `os.replace`, or one of WRITES."""
    named = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if named in ("open", "fdopen"):
        modes = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        texts = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
        return any(re.fullmatch(r"[rbt]*[wax+][wax+bt]*", text) for text in texts)
    if named == "replace":  # `text.replace` has two arguments as well; the paths' has one
        return (isinstance(call.func, ast.Attribute) and len(call.args) == 1 and not call.keywords) or (
            ast.unparse(call.func) == "os.replace"
        )
    return named in WRITES and isinstance(call.func, ast.Attribute)


def test_outputs_are_written_by_one_module():
    """docs/decisions/house.md"""
    results = {
        name for name, path in MODULES.items()
        if any(isinstance(node, ast.Call) and is_write(node) for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    }
    assert results - FILLERS - WRITERS == set()
    assert results >= WRITERS and results >= FILLERS, "a module that writes nothing any more is not listed"


@pytest.mark.parametrize("package", ["merino_edge", "merino_runtime"])
def test_a_package_holds_its_rooms_and_nothing_else(package):
    results = {path.name.removesuffix(".py") for path in PACKAGES[package].iterdir() if path.name != "__pycache__"}
    assert results == {*ROOMS[package], "__init__", "__main__"}


def cycles():
    """Groups of modules that import each other, imports inside functions included."""

    def reachable(start):
        result, waiting = set(), [start]
        while waiting:
            for target in GRAPH[waiting.pop()] - result:
                result.add(target)
                waiting.append(target)
        return result

    reach = {name: reachable(name) for name in GRAPH}
    groups = {
        tuple(sorted(other for other in reach[name] if name in reach[other])) for name in GRAPH if name in reach[name]
    }
    return sorted(groups)


def test_no_modules_import_each_other():
    assert cycles() == []


BLOCKED = """
import importlib, pkgutil, sys
BLOCKED = {"torch", "onnx", "transformers", "merino_edge", "scipy", "pydantic", "typer", "rich"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
for package in ("merino_runtime", "merino_bench"):
    module = importlib.import_module(package)
    for info in pkgutil.walk_packages(module.__path__, package + "."):
        importlib.import_module(info.name)
        print(info.name)
assert not BLOCKED & set(sys.modules), BLOCKED & set(sys.modules)
"""


def test_the_board_side_needs_nothing_of_the_workstation():
    roots = os.pathsep.join(str(PACKAGES[name].parent) for name in ("merino_runtime", "merino_bench"))
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], env={**os.environ, "PYTHONPATH": roots}, capture_output=True, text=True,
        check=False, cwd=ROOT.parent,
    )
    assert done.returncode == 0, done.stderr
    board_side = {name for name in MODULES if not name.startswith("merino_edge")} - {"merino_runtime", "merino_bench"}
    assert set(done.stdout.split()) == board_side


FAMILY_FILES = {
    name for name, path in MODULES.items()
    if name.startswith("merino_edge.families.")
    and re.search("^FAMIL(Y|IES) = ", path.read_text(encoding="utf-8"), re.MULTILINE)
}  # fmt: skip
# Tests may import them: they build models of a family. All may import the designed family, which the search is about.
PRIVATE = FAMILY_FILES - {"merino_edge.families.designed"} | {"merino_edge.families.designed_torch"}
EXPERIMENTS = ROOT / "bench" / "experiments"
OUTSIDE = [
    path for path in sources()
    if ROOT / "merino_edge" / "families" not in path.parents and (module_name(path) or EXPERIMENTS in path.parents)
]  # fmt: skip


def strings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_each_family_file_is_listed_in_the_registry():
    assert {family.geometry.__module__ for family in FAMILIES.values()} == FAMILY_FILES
    assert len(FAMILIES) == len({family.geometry for family in FAMILIES.values()}) >= len(FAMILY_FILES) >= 2


def test_nothing_imports_a_familys_file():
    """Neither by a statement nor by a name in a string."""
    assert len(OUTSIDE) > 100
    wrong = [
        (str(path.relative_to(ROOT)), name) for path in OUTSIDE for name in (*imported(path), *strings(path))
        if any(f"{name.split(':')[0]}.".startswith(f"{private}.") for private in PRIVATE)
    ]  # fmt: skip
    assert wrong == []


TEXT = (ROOT / "docs" / "paths.md").read_text(encoding="utf-8")
STATION = re.compile(r"^(?:  -> )?(\S+\.(?:py|toml))", re.MULTILINE)
PATHS = [STATION.findall(block) for block in re.findall(r"```\n(.*?)```", TEXT, re.DOTALL)]


@pytest.mark.parametrize(
    ("one", "other"), [pair for path in PATHS for pair in zip(path, path[1:], strict=False)], ids=lambda name: name
)
def test_an_arrow_is_an_import(one, other):
    if one.endswith(".toml"):  # data of the room that reads it
        assert (ROOT / one).exists() and Path(one).parts[0] in (ROOT / other).read_text(encoding="utf-8")
        return
    above, below = module_name(ROOT / one), module_name(ROOT / other)
    assert below in GRAPH[above] or above in GRAPH[below]


ALLOWED = {
    "runtime/merino_runtime": {"merino_runtime", "numpy", "onnxruntime", "tensorrt", "tokenizers", "llguidance"},
    "runtime/merino_bench": {"merino_bench", "merino_runtime", "numpy", "psutil", "jtop",
                           "onnxruntime", "tokenizers"},
}
# Imported where they are needed: a board has one backend, and perhaps no text.
LAZY = {"onnxruntime", "tensorrt", "tokenizers", "jtop", "llguidance"}
NEWER_MODULES = {"dataclasses", "contextvars", "tomllib", "graphlib", "zoneinfo", "importlib.resources",
                 "importlib.metadata", "asyncio.runners"}
NEWER_TYPING = {"Protocol", "Final", "Literal", "TypedDict", "Annotated", "TypeAlias", "Self",
                "runtime_checkable",
                "final", "ParamSpec", "Concatenate", "Never", "override", "NoReturn", "ForwardRef"}
NEWER_ATTRIBUTES = {"removeprefix", "removesuffix", "perf_counter_ns", "time_ns", "monotonic_ns",
                    "process_time_ns",
                    "fmean", "quantiles", "cached_property", "isascii", "fromisoformat", "default_rng"}
NEWER_KEYWORDS = {"capture_output", "missing_ok", "dirs_exist_ok", "text"}
TAKE_NEWER_KEYWORDS = {"run", "Popen", "check_output", "unlink", "copytree"}
FILES = [path for folder in ALLOWED for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 6))


def folder_of(path):
    return next(folder for folder in ALLOWED if (ROOT / folder) in path.parents)


def imports(node):
    """Full dotted names, `from a import b` as a."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def annotations(tree):
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if getattr(node, field, None) is not None:
                yield getattr(node, field)


def test_there_is_something_to_read():
    assert {"generate.py", "onnx.py", "__main__.py"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
class TestBoardFile:
    def test_it_parses_as_python_3_6(self, path):
        tree_of(path)  # raises SyntaxError

    def test_it_imports_what_a_board_has(self, path):
        for node in ast.walk(tree_of(path)):
            assert not getattr(node, "level", 0), "relative import"
            for name in imports(node):
                top = name.split(".")[0]
                assert top in ALLOWED[folder_of(path)] or top in sys.stdlib_module_names, name
                assert name not in NEWER_MODULES, name
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
                assert node.module != "__future__" or "annotations" not in names
                assert node.module != "typing" or not names & NEWER_TYPING, names & NEWER_TYPING

    def test_backends_and_tokenizers_are_imported_when_needed(self, path):
        for node in tree_of(path).body:
            assert not {name.split(".")[0] for name in imports(node)} & LAZY

    def test_it_uses_no_later_library(self, path):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute):
                assert node.attr not in NEWER_ATTRIBUTES, (node.attr, node.lineno)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                keywords = {keyword.arg for keyword in node.keywords}
                late = keywords & NEWER_KEYWORDS
                assert not late or node.func.attr not in TAKE_NEWER_KEYWORDS, (late, node.lineno)

    def test_its_annotations_are_those_of_3_6(self, path):
        for annotation in annotations(tree_of(path)):
            for node in ast.walk(annotation):
                builtin = isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name)
                assert not (builtin and node.value.id in ("list", "dict", "tuple", "set", "type"))
                assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)), node.lineno
