"""Each setup.cfg names every package and every file that one needs beside its code, and a stranger's merino-edge and
merino-runtime on the package index are taken by no documented command. The real wheels and images: tests/targets."""
import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

import merino_runtime

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


RELEASE = (ROOT / "docs" / "release.md").read_text(encoding="utf-8")
VERSION = merino_runtime.__version__
COMMANDS = re.search(r"in the same folder:\n\n```bash\n(.*?)```", RELEASE, re.DOTALL)[1].splitlines()


def wheel(folder, name, version, *requires):
    stem = f"{name}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    extras = [f"Provides-Extra: {extra}" for extra in ("train", "eval", "onnxruntime", "serve", "templates")]
    fields = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *extras,
              *(f"Requires-Dist: {each}" for each in requires)]  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", "\n".join(fields) + "\n")
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


@pytest.fixture
def chosen(tmp_path):
    """A function: a shell's command with `pip install` -> what pip would install, where an index has the names too."""
    release, index = tmp_path / "release", tmp_path / "index"
    release.mkdir()
    wheel(release, "merino_runtime", VERSION)
    wheel(release, "merino_edge", VERSION, f"merino-runtime=={VERSION}")
    for name in ("merino_runtime", "merino_edge"):
        page = index / name.replace("_", "-")
        page.mkdir(parents=True)
        files = [wheel(page, name, version) for version in (VERSION, "99.0")]
        (page / "index.html").write_text("".join(f'<a href="{each.name}">{each.name}</a>\n' for each in files))

    def run(command):
        report = tmp_path / "report.json"
        pip = f"'{sys.executable}' -m pip install --ignore-installed --dry-run --quiet --report '{report}'"
        environment = {**os.environ, "PIP_INDEX_URL": index.as_uri(), "PIP_CONFIG_FILE": os.devnull}
        script = re.sub(r"(\S*python -m )?\bpip install\b", lambda _: pip, command)
        subprocess.run(["sh", "-ec", script], cwd=release, env=environment, check=True, stdout=subprocess.DEVNULL)
        installed = json.loads(report.read_text())["install"]
        return {each["metadata"]["name"].replace("_", "-"): each["download_info"]["url"] for each in installed}, release

    return run


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_takes_the_releases_own_files(command, chosen):
    names = {"merino-runtime", "merino-edge"} if "merino_edge" in command else {"merino-runtime"}
    urls, release = chosen(command)
    assert set(urls) == names and all(url.startswith(release.as_uri()) for url in urls.values()), urls


@pytest.mark.slow
@pytest.mark.parametrize("path", ["container/Containerfile", "container/home-assistant/Dockerfile"])
def test_an_image_takes_the_file_that_was_copied_into_it(path, chosen):
    """By its last `pip install`. The one before installs requirements.txt by hashes, in which our names are not."""
    lines = re.sub(r"\\\n\s*", "", (ROOT / path).read_text()).splitlines()
    (run,) = [line.removeprefix("RUN ") for line in lines if line.startswith("RUN ")]
    pinned, own = [part.strip() for part in run.split("&&") if "pip install" in part]
    assert "--require-hashes --requirement /tmp/wheels/requirements.txt" in pinned and "--no-deps" in pinned
    urls, release = chosen(own.replace("/tmp/wheels/", "./").replace("${PIP_OPTIONS}", ""))
    assert list(urls) == ["merino-runtime"] and urls["merino-runtime"].startswith(release.as_uri())


@pytest.mark.slow
def test_by_name_a_strangers_package_would_be_taken(chosen):
    """The attack: pip prefers the index's newer version to the file at hand."""
    urls, release = chosen("pip install --find-links . merino_edge")
    assert "/index/" in urls["merino-edge"] and "99.0" in urls["merino-edge"]


TESTS = ROOT / "tests"


SAMPLE = """
import pytest
from few_examples import examples
from hypothesis import given, strategies

def test_by_day(): pass

@pytest.mark.nightly
def test_by_night(): pass

@examples(200)
@given(strategies.integers())
def test_property(number): pass

def test_fixture(nightly): pass
"""


def collected(folder, options):
    """Names of the sample's tests that these options choose."""
    options = ["-c", str(ROOT / "setup.cfg"), "-o", "addopts=", "-p", "conftest", *shlex.split(options), "-q"]
    call = [sys.executable, "-m", "pytest", "--collect-only", *options, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(re.findall(r"::(test_\w+)", done.stdout))


def test_what_leaves_the_daily_run_is_in_the_nightly_one(tmp_path):
    """By the options of the Makefile. What has more examples or cases is in both. Each nightly file is in one part."""
    day, night, _ = re.findall(r"^\t\$\(PYTEST\) (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    assert collected(tmp_path, day) == {"test_by_day", "test_property", "test_fixture"}
    night, _, part = night.partition(" $(if $(PART),")
    assert collected(tmp_path, night) == {"test_by_night", "test_property", "test_fixture"}
    (tmp_path / "test_other.py").write_text(SAMPLE.replace("def test_", "def test_other_"))
    parts = [collected(tmp_path, f"{night} {part.strip(')').replace('$(PART', f'{number}/2')}") for number in (4, 7)]
    assert parts == [
        {"test_other_by_night", "test_other_property", "test_other_fixture"},
        {"test_by_night", "test_property", "test_fixture"},
    ]
