"""What runs on a board is Python 3.6 and imports what a board has: read from the syntax tree, nothing is
run."""
import ast
import pathlib
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.version_info < (3, 10), reason="reads old syntax with a new parser")

ROOT = pathlib.Path(__file__).parents[2]
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
