"""Each setup.cfg names every package and every file that one needs beside its code: what it leaves out no wheel has."""

import fnmatch
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The folders of each distribution's packages, and packages from elsewhere.
PROJECTS = {
    ".": ({"merino_edge": "merino_edge"}, {"merino_edge.device_profiles"}),
    "release/merino-runtime": (
        {"merino_runtime": "runtime/merino_runtime", "merino_bench": "runtime/merino_bench"}, set()
    ),
}  # fmt: skip
MADE = {"merino.pyz"}  # at run time


def config(project):
    result = ConfigParser()
    result.read(ROOT / project / "setup.cfg")
    return result


def package_of(folder, name, path):
    return ".".join([name, *path.relative_to(ROOT / folder).parts])


@pytest.mark.parametrize("project", PROJECTS)
def test_every_package_is_named(project):
    folders, more = PROJECTS[project]
    results = {
        package_of(folder, name, path.parent)
        for name, folder in folders.items() for path in (ROOT / folder).rglob("__init__.py")
    }  # fmt: skip
    assert results & {"merino_edge.families.gguf", "merino_runtime.serving"}
    assert set(config(project)["options"]["packages"].split()) == results | more


@pytest.mark.parametrize("project", PROJECTS)
def test_every_file_of_data_is_named(project):
    patterns = {
        package: [each.strip() for each in given.split(",")]
        for package, given in config(project)["options.package_data"].items()
    }
    packages = config(project)["options"]["packages"].split()
    for name, folder in PROJECTS[project][0].items():
        assert (ROOT / project / name).resolve() == ROOT / folder
        for path in (ROOT / folder).rglob("*"):
            if path.is_dir() or path.suffix in (".py", ".pyc") or path.name in MADE:
                continue
            owner = path.parent
            while package_of(folder, name, owner) not in packages:
                owner = owner.parent
            inner = path.relative_to(owner).as_posix()
            given = patterns.get(package_of(folder, name, owner), [])
            assert any(fnmatch.fnmatch(inner, pattern) for pattern in given), f"{path} is in no wheel"
