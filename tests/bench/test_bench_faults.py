"""The board's verbs, by real processes: on streams and disks that take nothing more, and in a stranger's folder whose
modules have the names of what is imported. The exit code is one of the contract, results are kept, nothing is left
behind, and no module of the current folder runs.

The writer itself: tests/runtime/test_runtime_outputs.py; the workstation's verbs: tests/edge/test_start.py.
"""
import json
import os
import shutil
import sys
import zipfile

import pytest
import quick_bench
from packed_files import WheelSet, app_bytes, bundle_files, packed_bytes
from processes import Hostile, check_modules, run_bounded

from merino_bench.fresh_process import run_separately
from merino_runtime.delivery.fit import this_machine

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not sys.platform.startswith("linux"), reason="devices of Linux")]
CALL = [sys.executable, "-c", "import sys; from merino_bench.start import main; sys.exit(main())"]
BENCH = ["bench", "BUNDLE", "-p", "8", "-n", "0", "-r", "1", "-t", "1"]
VERBS = [["generate", "BUNDLE", "the", "-n", "3"], ["info", "BUNDLE", "--json"], ["info", "--check", "BUNDLE"],
         [*BENCH, "-o", "kept.json"], ["--help"]]
# (redirections, whether stdout has a reader, exit code)
STREAMS = [(">/dev/full", True, 1), ("", False, 141), (">&-", True, 1), ("2>/dev/full", True, 0), ("2>&-", True, 0)]


@pytest.fixture(scope="module")
def bundle(bundle_dirs):
    return str(bundle_dirs["portable"])


def run(words, bundle, cwd, **options):
    call = quick_bench.CALL if words[0] == "bench" else CALL
    call = call + [bundle if word == "BUNDLE" else word for word in words]
    code, out, err = run_bounded(call, cwd=str(cwd), PYTHONPATH=quick_bench.ROOTS, **options)
    assert "Traceback" not in err and "Exception ignored" not in err, err
    return code, out, err


def messages(err):
    """The lines that are no notes and not the summary of a generation."""
    usual = ("merino: note: ", "merino: measuring for", "merino: wrote ")
    return [line for line in err.splitlines() if not line.startswith(usual) and ", stopped by " not in line]


@pytest.mark.parametrize("words, streams, reader, expected", [  # by day all streams for one verb, two for the others
    pytest.param(words, *stream, id="{} {}".format(words[0], stream[0] or "closed pipe"),
                 marks=() if words[0] == "generate" or stream in STREAMS[:2] else pytest.mark.nightly)
    for words in VERBS for stream in STREAMS])
def test_a_stream_that_takes_nothing(words, streams, reader, expected, bundle, tmp_path):
    code, _, err = run(words, bundle, tmp_path, streams=streams, reader=reader)
    lines = messages(err)
    assert len(lines) == (expected == 1) and all("cannot write to stdout: " in line for line in lines), err
    assert code == expected
    kept = [word for word in words if word == "kept.json"]
    assert os.listdir(str(tmp_path)) == kept
    for name in kept:
        row, = json.loads((tmp_path / name).read_text())
        assert row["tok_s"] > 0


@pytest.mark.parametrize("words", [
    [*BENCH, "--format", "jsonl", "-o", "disk/kept.json"], [*BENCH, "--format", "jsonl", "-o", "disk/kept.jsonl"],
    ["generate", "BUNDLE", "the", "-n", "3", "--cache", "disk/kept"], ["probe", "-o", "disk/kept.json"],
], ids=["bench to JSON", "bench to lines", "generate --cache", "probe"])
def test_a_disk_that_takes_nothing(words, no_room, bundle, tmp_path):
    folder, kind = no_room
    before = os.listdir(str(folder))
    code, out, err = run(words, bundle, tmp_path)
    line, = messages(err)
    assert code == 1 and line.startswith("merino: cannot write ") and "disk/kept" in line, err
    reason = {"read-only": "Read-only file system", "full": "No space left on device"}[kind]
    assert reason in line or " MB are free there" in line
    assert os.listdir(str(folder)) == before and os.listdir(str(tmp_path)) == ["disk"]
    measured = [json.loads(text) for text in out.decode().splitlines() if words[0] == "bench"]
    assert len(measured) == (words[0] == "bench" and kind == "full")  # printed where it could not be saved
    assert all(row["tok_s"] > 0 for row in measured)


@pytest.mark.parametrize("variables", [
    {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
], ids=["by PYTHONIOENCODING", "by the C locale"])
def test_a_terminal_that_takes_ascii_alone(variables, bundle, tmp_path):
    absent = "n\u00e9ant \u65e5\u672c"
    for words, expected in ((["info", absent], 1), (["bench", absent, "-r", "1", "-n", "0"], 1), (["--help"], 0),
                            (["generate", "BUNDLE", "na\u00efve \u20ac", "-n", "3"], 0),
                            (["info", "--check", "BUNDLE"], 0)):
        assert run(words, bundle, tmp_path, **variables)[0] == expected, words


BENCH_HERE = ("bench", ".", "-p", "8", "-n", "0", "-r", "1", "-t", "1")
VERBS_HERE = [("generate", ".", "the", "-n", "2"), ("chat", "CHAT"), ("info", "."), ("info", "--check", "."),
              ("selftest", "."), ("info", "beside.merino"), ("info", "--check", "beside.merino"),
              ("status", "--root", "ROOT"), BENCH_HERE,
              ("install", "beside.merino", "--allow=unsigned", "--root", "ROOT")]


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


@pytest.mark.parametrize("verb, program", [
    *((verb, "merino.pyz") for verb in VERBS_HERE), (("selftest", "."), "python -m"),
    *(pytest.param(verb, "python -m", marks=pytest.mark.nightly) for verb in VERBS_HERE if verb[0] != "selftest"),
    pytest.param(("probe", "-o", "ROOT"), "merino.pyz", marks=pytest.mark.nightly),
], ids=lambda value: value if isinstance(value, str) else "-".join(value[:2]))
def test_no_verb_of_a_board_imports_from_the_current_folder(verb, program, hostile, app, chat_dir, tmp_path):
    call = [sys.executable, app] if program == "merino.pyz" else [sys.executable, "-m", "merino_bench"]
    places = {"CHAT": chat_dir, "ROOT": tmp_path / "root"}
    hostile.run([*call, *(places.get(word, word) for word in verb)],
                PYTHONPATH="" if program == "merino.pyz" else quick_bench.ROOTS)


def test_an_empty_entry_in_pythonpath_is_not_the_current_folder(hostile, app):
    hostile.run([sys.executable, app, *BENCH_HERE], PYTHONPATH=os.pathsep.join(["", quick_bench.ROOTS, ""]))


def test_no_child_of_a_program_of_the_users_does(hostile, monkeypatch):
    """Which imports this project from a folder of its own, and whose path begins with the current folder."""
    monkeypatch.chdir(hostile.folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", quick_bench.ROOTS, ""]))
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
    wheels = WheelSet("wheels/here", machine.python, machine.board.architecture, "2.5", packages, 10**6)
    wheel = tmp_path / "pip.whl"
    with zipfile.ZipFile(str(wheel), "w") as archive:
        archive.writestr("pip/__main__.py", pip)
    members = {"pip-1.0-py3-none-any.whl": wheel.read_bytes()}
    path = os.path.join(hostile.folder, "wheels.merino")
    with open(path, "wb") as file:
        file.write(packed_bytes(app.read_bytes(), [bundle_files(hostile.folder)], wheels=[(wheels, members)]))
    call = ["install", "wheels.merino", "--allow=unsigned", "--root", tmp_path / "root"]
    assert printed in hostile.run([sys.executable, app, *call], code=1, PYTHONPATH="")
