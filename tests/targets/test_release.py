"""A release: one version, licenses of all that is shipped, and (by night) the built files: equal twice, signed, and
installed without a checkout. docs/release.md
"""

import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

import merino_edge
import merino_runtime

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "release"))
import sbom  # noqa: E402
import version as release_version  # noqa: E402

LICENSES = (ROOT / "LICENSES.md").read_text(encoding="utf-8")
ROWS = sbom.ROW.findall(LICENSES)
VERIFY = re.search(r"In that folder:\n\n```bash\n(.*?)```", (ROOT / "docs" / "release.md").read_text(), re.DOTALL)[1]
# The demo with the embedded model in place of OPT-350M, and few steps: it reads the same out of the packages.
DEMO = """
import sys
from pathlib import Path
from merino_edge.cli import demo
assert str(Path(demo.__file__)).startswith(sys.prefix), demo.__file__
demo.REQUEST = demo.REQUEST._replace(prompts=(8,), steps=(4,), repetitions=2)
demo.baseline_bundle = lambda *_: "embedded"
demo.run_demo(Path("out"))
"""


def settings(folder):
    config = ConfigParser()
    config.read(ROOT / folder / "setup.cfg")
    return config


def run(*call, cwd=None, **variables):
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}
    words = [str(word) for word in call]
    done = subprocess.run(words, cwd=cwd, env={**kept, **variables}, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_one_version():
    version = merino_runtime.__version__
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1] == version
    assert merino_edge.__version__ == version and release_version.versions(ROOT) == [version] * 4
    assert f"merino-runtime=={version}" in settings(".")["options"]["install_requires"].split()
    assert settings("release/merino-runtime")["metadata"]["version"] == "attr: merino_runtime.__version__"


def test_one_command_sets_it_and_changes_nothing_else(tmp_path):
    files = sorted({name for name, _ in release_version.PLACES})
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    release_version.set_version(tmp_path, "19.28.37")
    assert release_version.versions(tmp_path) == ["19.28.37"] * 4
    for name in files:
        changed = (tmp_path / name).read_text().replace("19.28.37", merino_runtime.__version__)
        assert changed == (ROOT / name).read_text(), name


def test_each_file_that_is_shipped_beside_the_source_has_one_license():
    """By the patterns that put it into a wheel; a built wheel is judged by the bill of materials."""
    folders = {"merino_edge.device_profiles": ROOT / "device_profiles"}
    shipped = set()
    for project in (".", "release/merino-runtime"):
        for package, patterns in settings(project)["options.package_data"].items():
            inside = package.replace(".", "/")
            folder = folders.get(package, ROOT / (project if project != "." else "") / inside)
            for pattern in patterns.split(","):
                files = [path for path in folder.glob(pattern.strip()) if path.name != "merino.pyz"]
                assert files or "probes" in pattern, f"{package}: nothing is {pattern}"
                shipped |= {f"{inside}/{path.relative_to(folder).as_posix()}" for path in files}
    native = "merino_runtime/bundle/native/kernels-aarch64.so"
    assert {native, sbom.MODEL, "merino_bench/probe/graphs.tar.xz"} <= shipped
    named = {name: [row for row in ROWS if sbom.matches(name, row[0])] for name in shipped}
    assert {name: len(rows) for name, rows in named.items() if len(rows) != 1} == {}
    unused = {row[0] for row in ROWS if not any(sbom.matches(name, row[0]) for name in shipped)}
    assert unused <= {"merino_edge/device_profiles/probes/*/*.json"}, "a row of LICENSES.md for what is not shipped"


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """The same commit built twice, as by another user; the first is signed."""
    if not (ROOT / ".git").exists():
        pytest.skip("no repository here to build a commit of")
    folder = tmp_path_factory.mktemp("releases")
    key = folder / "key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key)
    build = [sys.executable, ROOT / "release" / "build.py"]
    run(*build, folder / "first", "--sign", key, cwd=ROOT)
    run("sh", "-c", 'umask 077; exec "$@"', "sh", *build, folder / "second", cwd="/", TZ="Asia/Tokyo", LC_ALL="C")
    return folder / "first", folder / "second"


@pytest.mark.nightly
def test_two_builds_are_equal_and_the_signature_is_checked_by_ssh(releases, tmp_path):
    first, second = releases
    assert sorted(path.suffix for path in second.iterdir()) == [
        "", ".gz", ".gz", ".json", ".pyz", ".txt", ".whl", ".whl"]  # fmt: skip
    assert [path.name for path in second.iterdir() if path.read_bytes() != (first / path.name).read_bytes()] == []
    shutil.copytree(first, tmp_path / "dist")
    assert 'Good "merino-release" signature' in run("sh", "-ec", VERIFY, cwd=tmp_path / "dist")
    (changed,) = (tmp_path / "dist").glob("merino_edge-*.whl")
    changed.write_bytes(changed.read_bytes() + b"\0")
    hashed, signed = (
        subprocess.run(["sh", "-ec", line], cwd=tmp_path / "dist", capture_output=True) for line in VERIFY.splitlines()
    )
    assert (hashed.returncode, signed.returncode) == (1, 0)
    with (tmp_path / "dist" / "SHA256SUMS").open("a") as sums:
        sums.write("\n")
    assert subprocess.run(["sh", "-ec", VERIFY.splitlines()[1]], cwd=tmp_path / "dist", capture_output=True).returncode


@pytest.mark.nightly
def test_the_bill_of_materials_is_valid_and_whole(releases):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (releases[0] / "sbom.cdx.json").read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    by_name = {each["name"]: each for each in json.loads(text)["components"]}
    assert by_name["scipy"]["scope"] == "required" and by_name["lm-eval"]["scope"] == "optional"
    models = [each for each in by_name["merino_edge"]["components"] if each["type"] == "machine-learning-model"]
    assert [each["name"] for each in models] == [sbom.MODEL] and "TinyStories" in models[0]["description"]
    links = {each["ref"].partition("@")[0]: each["dependsOn"] for each in json.loads(text)["dependencies"]}
    assert f"pkg:pypi/merino-runtime@{merino_edge.__version__}" in links["pkg:pypi/merino-edge"]


def environment(folder, python, packages, wheels, *distributions):
    """A new environment's python with our wheels, from a folder alone; other packages are those of `packages`."""
    run(python, "-m", "venv", folder)
    options = ["--no-index", "--no-deps", "--disable-pip-version-check"]
    files = [path for name in distributions for path in wheels.glob(f"{name}-*.whl")]
    run(folder / "bin" / "python", "-m", "pip", "install", *options, *files)
    site = run(folder / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "third_party.pth").write_text(f"{packages}\n")
    return folder / "bin" / "python"


def packages_of(python):
    """Where the environment of the tests has the third parties' packages."""
    code = "import numpy, pathlib; print(pathlib.Path(numpy.__file__).parents[1])"
    return run(python, "-c", code).strip()


@pytest.mark.nightly
def test_the_wheels_alone_run_the_demo(releases, tmp_path):
    packages = packages_of(sys.executable)
    python = environment(tmp_path / "venv", sys.executable, packages, releases[0], "merino_edge", "merino_runtime")
    work = tmp_path / "elsewhere"
    work.mkdir()
    out = run(python, "-c", DEMO, cwd=work)
    assert "== 4/4" in out and "Lily" in out and (work / "out" / "pi4-design" / "merino.pyz").is_file()
    assert run(tmp_path / "venv" / "bin" / "merino-edge", "devices", cwd=work).count("raspberry-pi") >= 3
    checked = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True, timeout=500).stdout
    assert "merino" not in checked.lower(), "what is required is there"


@pytest.mark.nightly
@pytest.mark.parametrize("name", [".venv36", "this"])
def test_the_boards_wheel_runs_beside_no_torch(name, releases, tmp_path, embedded_bundles):
    """On Python 3.6 by the pip that comes with it, as on a Jetson Nano."""
    own = Path(sys.executable) if name == "this" else ROOT / name / "bin" / "python"
    if not own.exists():
        pytest.skip("no Python 3.6 on this machine")
    base = run(own, "-c", "import os, sys; print(os.path.realpath(sys.executable))").strip()
    environment(tmp_path / "venv", base, packages_of(own), releases[0], "merino_runtime")
    merino, bundle = tmp_path / "venv" / "bin" / "merino", embedded_bundles["portable", "fp32"]
    assert run(merino, "--version", cwd=tmp_path) == f"merino {merino_runtime.__version__}\n"
    assert run(merino, "selftest", bundle, cwd=tmp_path) == "ok: 16 greedy ids as expected\n"
    run(merino, "bench", bundle, "-p", "8", "-n", "4", "-r", "1", "-o", "record.json", cwd=tmp_path)
    assert json.loads((tmp_path / "record.json").read_text())


PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"


@pytest.mark.nightly
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_extras_resolve(version, releases, tmp_path):
    """By pip and the package index, without a download of what is large: a metadata-only resolve."""
    python = next(iter(sorted(PYENV.glob(f"{version}.*/bin/python{version}"))), shutil.which(f"python{version}"))
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    run(python, "-m", "venv", tmp_path / "venv")
    pip = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    try:
        run(*pip, "install", "--quiet", "--upgrade", "pip")  # that of Python 3.11 downloads what it only resolves
    except AssertionError as error:
        pytest.skip(f"no index to resolve with: {str(error)[-300:]}")
    extras = [name for name in settings(".")["options.extras_require"] if name != "dev"]
    report = tmp_path / "report.json"
    call = ["install", "--dry-run", "--quiet", "--prefer-binary", "--report", report]
    (edge,), (runtime,) = (releases[0].glob(f"{name}-*.whl") for name in ("merino_edge", "merino_runtime"))
    run(*pip, *call, f"{edge}[{','.join(extras)}]", f"{runtime}[onnxruntime,serve,templates]")
    chosen = {sbom.canonical(each["metadata"]["name"]) for each in json.loads(report.read_text())["install"]}
    assert {"merino-runtime", "torch", "lm-eval", "uvicorn", "asyncssh", "ctranslate2", "jetson-stats"} <= chosen
