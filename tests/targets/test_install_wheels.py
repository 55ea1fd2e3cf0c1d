"""A packed file with wheels, on Pythons that have no packages: the release makes its environment without a network. And
the documented commands that install a board's packages, from the package index.

On Python 3.6, as on a Jetson Nano, and on the system's Python, which refuses pip (PEP 668), in 1970. The nightly run
tries all, and kills it at random. x86 stands in for Arm: the wheels are this machine's.
"""
import json
import os
import platform
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packed_files import WheelSet, app_bytes, bundle_files, packed_bytes, partials, renamed, tree

from merino_edge.delivery.wheels import Target, wheels_for
from merino_edge.profiles.profile import Software
from merino_runtime.delivery import releases
from merino_runtime.errors import MerinoError

pytestmark = [pytest.mark.slow, pytest.mark.skipif(platform.system() != "Linux", reason="boards run Linux")]

# glibc, onnxruntime, numpy, tokenizers: as in tests/targets/pythons
VERSIONS = {
    "3.6": ("2.27", "1.10.0", "1.19.5", "0.12.1"),
    "3.8": ("2.27", "1.19.2", "1.24.4", "0.20.3"),
    "3.10": ("2.35", "1.23.2", "2.2.6", "0.22"),
    "3.11": ("2.36", "1.23.2", "2.2.6", "0.22"),
    "3.13": ("2.41", "1.23.2", "2.2.6", "0.22"),
}
KILLS = 6
# No route to an index, no packages of this machine's, and pip settings that would break it.
BARE = {
    "PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_USER": "1",
    "PYTHONPATH": "", "http_proxy": "http://127.0.0.1:9/", "https_proxy": "http://127.0.0.1:9/", "LANG": "C",
    "GLIBC_TUNABLES": os.environ["GLIBC_TUNABLES"],
}  # fmt: skip


def interpreter(version):
    """A Python without packages: pyenv's."""
    for path in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}")):
        return path
    pytest.skip(f"no Python {version} of pyenv on this machine")


def managed():
    """(Python, version) of one that the system manages."""
    for version in reversed(VERSIONS):
        python = Path(f"/usr/bin/python{version}")
        if python.exists() and Path(f"/usr/lib/python{version}/EXTERNALLY-MANAGED").exists():
            return python, version
    pytest.skip("no Python here that refuses pip (PEP 668)")


@pytest.fixture(scope="module")
def pack(bundle_dirs, tmp_path_factory):
    """A function: a folder of merino.pyz, and old.merino and new.merino with the wheels for a version of Python."""
    made = {}

    def packed(version):
        if version not in made:
            glibc, onnxruntime, numpy, tokenizers = VERSIONS[version]
            software = Software(system="sample", glibc=glibc, python=version, onnxruntime=onnxruntime, numpy=numpy,
                                tokenizers=tokenizers)  # fmt: skip
            try:
                wheels = wheels_for(software, Target(version, platform.machine(), glibc))
            except MerinoError as error:
                pytest.skip(f"no index to fetch wheels from: {error}")
            folder = tmp_path_factory.mktemp("packs")
            app, files = app_bytes(folder / "merino.pyz"), bundle_files(bundle_dirs["portable"])
            wheel_set = WheelSet(wheels.path, version, platform.machine(), wheels.target.glibc, wheels.packages,
                                 wheels.unpacked_bytes)  # fmt: skip
            members = {path.name: path.read_bytes() for path in wheels.files}
            for name in ("old", "new"):
                data = packed_bytes(app, [renamed(files, name)], name, wheels=[(wheel_set, members)])
                (folder / f"{name}.merino").write_bytes(data)
            made[version] = folder
        return made[version]

    return packed


def run(*command, **environment):
    done = subprocess.run(
        [str(word) for word in command], env={**BARE, **environment}, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_release(root):
    """`current` generates, by an interpreter of its own, and nothing names the folder in which it was made."""
    launcher = root / "current" / "merino"
    assert len(run(launcher, "generate", "installed", "The river", "-n", "3")) > 1
    folder = (root / "current").resolve()
    programs = sorted(path.name for path in (folder / "env" / "bin").iterdir())
    assert programs and all(name.startswith("python") for name in programs)
    where = run(folder / "env/bin/python", "-c", "import onnxruntime, tokenizers, numpy; print(numpy.__file__)")
    assert where.startswith(str(folder / "env"))
    assert not (folder / "wheels").exists() and partials(str(root)) == []


def check_on(python, folder, root, before=(), upgraded=True, **environment):
    command = [*before, python, folder / "merino.pyz", "install", "--allow=unsigned", "--root", root, "--json"]
    old = json.loads(run(*command, folder / "old.merino", **environment))
    check_release(root)
    if not upgraded:
        return
    new = json.loads(run(*command, folder / "new.merino", **environment))
    assert new["replaced"] == old["id"] and new["selftest"] == "ok"
    check_release(root)
    run(root / "current" / "merino", "rollback")
    check_release(root)
    assert releases.links(str(root)) == releases.Links(old["id"], new["id"])


@pytest.mark.parametrize("version", [
    "3.6", *(pytest.param(each, marks=pytest.mark.nightly) for each in ("3.8", "3.10", "3.11"))])  # fmt: skip
def test_a_python_without_packages(version, pack, nightly, tmp_path):
    """By day without an upgrade, which takes seconds: tests/runtime/test_install.py has upgrades without wheels."""
    check_on(interpreter(version), pack(version), tmp_path / "root", upgraded=nightly)


@pytest.mark.nightly
def test_a_python_that_refuses_pip_and_a_clock_in_1970(pack, tmp_path):
    python, version = managed()
    faketime = shutil.which("faketime")
    before = [faketime, "-f", "@1970-01-01 00:00:20"] if faketime else []
    check_on(python, pack(version), tmp_path / "root", before, TZ="UTC")


@pytest.mark.nightly
def test_from_an_environment_of_the_users(pack, tmp_path):
    """The release's environment stands on the system's Python, and outlives the one that installed it."""
    python, root = interpreter("3.6"), tmp_path / "root"
    run(python, "-m", "venv", "--without-pip", tmp_path / "own")
    run(tmp_path / "own/bin/python", pack("3.6") / "merino.pyz", "install", pack("3.6") / "old.merino",
        "--allow=unsigned", "--root", root)  # fmt: skip
    shutil.rmtree(tmp_path / "own")
    check_release(root)


@pytest.mark.nightly
def test_killed_at_random_moments(pack, tmp_path):
    """With all that it started: Python making the environment, and pip."""
    python, version = managed()
    folder, root = pack(version), tmp_path / "root"
    command = [str(word) for word in (python, folder / "merino.pyz", "install", "--allow=unsigned", "--root", root)]
    run(*command, folder / "old.merino")
    old, rng = releases.links(str(root)).current, random.Random(3)
    before = tree(releases.release_folder(str(root), old))
    for _ in range(KILLS):
        process = subprocess.Popen([*command, folder / "new.merino"], env=BARE, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        try:
            process.wait(timeout=rng.uniform(0.5, 8))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
        assert tree(releases.release_folder(str(root), old)) == before
        check_one = run(root / "current" / "merino", "selftest", "installed")
        assert check_one.startswith("ok: ")
    run(*command, folder / "new.merino")
    check_release(root)
    assert releases.links(str(root)).previous == old


def test_a_file_for_another_python_is_refused_before_anything_moves(pack, tmp_path):
    done = subprocess.run(
        [interpreter("3.10"), pack("3.6") / "merino.pyz", "install", pack("3.6") / "old.merino", "--allow=unsigned",
         "--root", tmp_path / "root"], env=BARE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "the file's wheels are for Python 3.6" in done.stderr, done.stderr
    assert not (tmp_path / "root").exists()


def test_a_python_without_packages_and_a_file_without_wheels(bundle_dirs, tmp_path):
    path = tmp_path / "bare.merino"
    path.write_bytes(packed_bytes(app_bytes(tmp_path / "merino.pyz"), [bundle_files(bundle_dirs["portable"])]))
    done = subprocess.run(
        [interpreter("3.6"), tmp_path / "merino.pyz", "install", path, "--allow=unsigned", "--root", tmp_path / "root"],
        env=BARE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and not (tmp_path / "root").exists()
    assert "this Python lacks numpy, tokenizers, onnxruntime. Run: " in done.stderr, done.stderr



ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv36" / "bin" / "python"  # made from a Python 3.6 of this machine, where there is one


@pytest.fixture
def board(tmp_path):
    """A function that runs shell commands where `python3` is Python 3.6 and `~` an empty folder."""
    if not PYTHON.exists():
        pytest.skip("no Python 3.6 on this machine (make test sets it up where there is one)")
    base = subprocess.run(
        [PYTHON, "-c", "import sys; print(sys.base_prefix)"], capture_output=True, text=True, check=True
    ).stdout.strip()
    index = [PYTHON, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", tmp_path / "index", "six"]
    if subprocess.run(index, capture_output=True, check=False).returncode:
        pytest.skip("no package index can be reached")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(Path(base) / "bin" / "python3.6")
    (tmp_path / "home").mkdir()

    def run(commands, cwd="/"):
        environment = {"HOME": str(tmp_path / "home"), "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
        environment["GLIBC_TUNABLES"] = os.environ["GLIBC_TUNABLES"]  # conftest says why
        return subprocess.run(
            ["sh", "-e", "-c", commands], env=environment, cwd=cwd, capture_output=True, text=True, timeout=600
        )

    return run


def documented(page):
    """The block of shell commands that makes ~/merino."""
    blocks = re.findall(r"```(?:bash)?\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if "venv ~/merino" in block]
    return block


def check_a_bundle_runs(board, folder):
    done = board("~/merino/bin/python merino.pyz selftest .", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "ok: 16 greedy ids as expected\n"), done.stderr


@pytest.mark.nightly
def test_the_documented_commands_install_what_a_bundle_needs(board, embedded_bundles):
    done = board(documented("docs/board.md"))
    assert done.returncode == 0, done.stderr
    check_a_bundle_runs(board, embedded_bundles["portable", "fp32"])


@pytest.mark.nightly
def test_the_commands_of_the_message_install_what_a_bundle_needs(board, embedded_bundles):
    folder = embedded_bundles["portable", "fp32"]
    assert board("python3 -m venv ~/merino").returncode == 0
    messages = board("~/merino/bin/python merino.pyz selftest .", cwd=folder).stderr
    commands = re.search(r" Run: (.*)", messages).group(1)
    done = board(commands, cwd=folder)
    assert done.returncode == 0, done.stderr
    check_a_bundle_runs(board, folder)
