"""The paths of docs/paths.md are those of the code: each station exists, and each arrow is an import of one or the
other."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "paths.md").read_text(encoding="utf-8")
STATION = re.compile(r"^(?:  -> )?(\S+\.(?:py|toml))", re.MULTILINE)
PATHS = [STATION.findall(block) for block in re.findall(r"```\n(.*?)```", TEXT, re.DOTALL)]


def module_of(station):
    parts = Path(station.removesuffix("/__init__.py")).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "runtime" else parts)


def imports_of(station):
    result = set()
    for node in ast.walk(ast.parse((ROOT / station).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            result |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return result


def test_there_are_three_paths_through_the_rooms():
    assert len(PATHS) == 3 and min(map(len, PATHS)) >= 9
    rooms = {Path(station).parts[1] for path in PATHS for station in path if station.startswith("merino_edge")}
    assert rooms >= {"cli", "report", "export", "bundles", "design", "records", "prediction", "families", "profiles"}


@pytest.mark.parametrize(
    ("one", "other"), [pair for path in PATHS for pair in zip(path, path[1:], strict=False)], ids=lambda name: name
)
def test_an_arrow_is_an_import(one, other):
    if one.endswith(".toml"):  # data of the room that reads it
        assert (ROOT / one).exists() and Path(one).parts[0] in (ROOT / other).read_text(encoding="utf-8")
        return
    assert module_of(other) in imports_of(one) or module_of(one) in imports_of(other)
