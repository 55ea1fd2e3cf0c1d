"""A stranger's bundle folder holds modules by the names of what is imported: none of them runs, whatever verb runs in
the folder. Real processes; runs on Python 3.6 too. The workstation's verbs: tests/edge/test_start.py."""
import os
import shutil
import sys
import zipfile

import pytest
import quick_bench
from hostile_folder import Hostile, check_modules
from packed_files import WheelSet, app_bytes, bundle_files, packed_bytes

import merino_bench
import merino_runtime
from merino_bench.fresh_process import run_separately
from merino_runtime.delivery import agent
from merino_runtime.delivery.machine import this_machine

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="boards run Linux")]
ROOTS = os.pathsep.join([os.path.dirname(os.path.dirname(package.__file__))
                         for package in (merino_runtime, merino_bench)] + [os.path.dirname(quick_bench.__file__)])
BENCH = ("bench", ".", "-p", "8", "-n", "0", "-r", "1", "-t", "1")
VERBS = [("generate", ".", "the", "-n", "2"), ("chat", "CHAT"), ("info", "."), ("verify", "."), ("selftest", "."),
         ("info", "beside.merino"), ("verify", "beside.merino"), ("status", "--root", "ROOT"), BENCH,
         ("install", "beside.merino", "--allow-unsigned", "--root", "ROOT"),
         pytest.param(("probe", "-o", "ROOT"), marks=pytest.mark.nightly)]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    path = tmp_path_factory.mktemp("app") / "merino.pyz"
    app_bytes(path)
    return path


@pytest.fixture
def hostile(bundle_dirs, app, tmp_path):
    """A bundle's folder with a package in it, and the modules in this folder and beside it."""
    folder = tmp_path / "stranger" / "bundle"
    shutil.copytree(str(bundle_dirs["portable"]), str(folder))
    made = Hostile(folder)
    made.fill(tmp_path / "stranger")
    (folder / "beside.merino").write_bytes(packed_bytes(app.read_bytes(), [bundle_files(folder)]))
    return made


def test_the_modules_leave_marks(tmp_path):
    check_modules(tmp_path)


@pytest.mark.parametrize("program", ["merino.pyz", "python -m"])
@pytest.mark.parametrize("verb", VERBS, ids=lambda words: "-".join(words[:2]))
def test_no_verb_of_a_board_imports_from_the_current_folder(verb, program, hostile, app, chat_dir, tmp_path):
    call = [sys.executable, app] if program == "merino.pyz" else [sys.executable, "-m", "merino_bench"]
    places = {"CHAT": chat_dir, "ROOT": tmp_path / "root"}
    hostile.run([*call, *(places.get(word, word) for word in verb)],
                PYTHONPATH="" if program == "merino.pyz" else ROOTS)


def test_an_empty_entry_in_pythonpath_is_not_the_current_folder(hostile, app):
    hostile.run([sys.executable, app, *BENCH], PYTHONPATH=os.pathsep.join(["", ROOTS, ""]))


def test_no_child_of_a_program_of_the_users_does(hostile, monkeypatch):
    """Which imports this project from a folder of its own, and whose path begins with the current folder."""
    monkeypatch.chdir(hostile.folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", ROOTS, ""]))
    with pytest.raises(Exception, match="ended with code 1"):
        run_separately("merino_bench.harness.worker", "no JSON", 60)
    assert hostile.imported() == []


@pytest.mark.parametrize("pip, printed", [(b"raise SystemExit('pip ran')", "pip ran"), (b"", "No module named")])
def test_an_installation_that_makes_an_environment_does_not(pip, printed, hostile, app, tmp_path):
    """Root installs in another user's folder: by `venv`, the package's own pip, and a check of what can be imported."""
    machine = this_machine(str(tmp_path))
    if not machine.glibc:
        pytest.skip("this C library is not glibc, for which wheels are made")
    packages = {"onnxruntime": "1.30.0", "numpy": "2.2.6", "pip": "1.0"}
    wheels = WheelSet("wheels/here", machine.python, machine.board.architecture, "2.5", packages)
    wheel = tmp_path / "pip.whl"
    with zipfile.ZipFile(str(wheel), "w") as archive:
        archive.writestr("pip/__main__.py", pip)
    members = {"pip-1.0-py3-none-any.whl": wheel.read_bytes()}
    path = os.path.join(hostile.folder, "wheels.merino")
    with open(path, "wb") as file:
        file.write(packed_bytes(app.read_bytes(), [bundle_files(hostile.folder)], wheels=[(wheels, members)]))
    call = ["install", "wheels.merino", "--allow-unsigned", "--root", tmp_path / "root"]
    assert printed in hostile.run([sys.executable, app, *call], code=1, PYTHONPATH="")


def test_the_search_for_a_python_does_not(hostile, monkeypatch, capsys):
    """By the agent, in the folder in which ssh begins."""
    monkeypatch.chdir(hostile.folder)
    assert agent.find_python([agent.PYTHON], ["no_such_module"]) == 0
    assert capsys.readouterr().out == "null\n" and hostile.imported() == []
    os.rename("torch.py", "of_the_folder.py")
    assert agent.find_python([agent.PYTHON], ["of_the_folder"]) == 0
    assert capsys.readouterr().out == "null\n"
