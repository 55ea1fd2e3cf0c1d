"""setup.cfg names every package and every file that one needs beside its code: what it leaves out no wheel has."""

import fnmatch
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "merino_edge": "merino_edge", "merino_runtime": "runtime/merino_runtime", "merino_bench": "bench/merino_bench",
}  # fmt: skip
MADE = {"merino.pyz"}  # at run time


def config():
    found = ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


def package_of(folder, name, path):
    return ".".join([name, *path.relative_to(ROOT / folder).parts])


def test_every_package_is_named():
    found = {
        package_of(folder, name, path.parent)
        for name, folder in FOLDERS.items() for path in (ROOT / folder).rglob("__init__.py")
    }  # fmt: skip
    assert "merino_edge.families.gguf" in found
    assert set(config()["options"]["packages"].split()) == found | {"merino_edge.device_profiles"}


def test_every_file_of_data_is_named():
    patterns = {
        package: [each.strip() for each in given.split(",")]
        for package, given in config()["options.package_data"].items()
    }
    packages = config()["options"]["packages"].split()
    for name, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_dir() or path.suffix in (".py", ".pyc") or path.name in MADE:
                continue
            owner = path.parent
            while package_of(folder, name, owner) not in packages:
                owner = owner.parent
            inner = path.relative_to(owner).as_posix()
            given = patterns.get(package_of(folder, name, owner), [])
            assert any(fnmatch.fnmatch(inner, pattern) for pattern in given), f"{path} is in no wheel"
