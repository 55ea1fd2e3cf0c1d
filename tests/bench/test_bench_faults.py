"""The board's verbs where a stream or a disk takes nothing more: an exit code of the contract, one line,
results kept, nothing left behind. Real processes; runs under Python 3.6 too.

The writer itself: tests/runtime/test_runtime_outputs.py. Of `probe`, which measures for a minute, only refusals.
"""
import json
import os
import sys

import pytest
import quick_bench
from bounded import run_bounded

import merino_bench
import merino_runtime

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not sys.platform.startswith("linux"), reason="devices of Linux")]

ROOTS = os.pathsep.join([os.path.dirname(os.path.dirname(package.__file__))
                         for package in (merino_runtime, merino_bench)] + [os.path.dirname(quick_bench.__file__)])
CALL = [sys.executable, "-c", "import sys; from merino_bench.start import main; sys.exit(main())"]
BENCH = ["bench", "BUNDLE", "-p", "8", "-n", "0", "-r", "1", "-t", "1"]
VERBS = [["generate", "BUNDLE", "the", "-n", "3"], ["info", "BUNDLE", "--json"], ["verify", "BUNDLE"],
         [*BENCH, "--save", "kept.json"], ["--help"]]
# (redirections, whether stdout has a reader, exit code)
STREAMS = [(">/dev/full", True, 1), ("", False, 141), (">&-", True, 1), ("2>/dev/full", True, 0), ("2>&-", True, 0)]


@pytest.fixture(scope="module")
def bundle(bundle_dirs):
    return str(bundle_dirs["portable"])


def run(words, bundle, cwd, **options):
    call = quick_bench.CALL if words[0] == "bench" else CALL
    call = call + [bundle if word == "BUNDLE" else word for word in words]
    code, out, err = run_bounded(call, cwd=str(cwd), PYTHONPATH=ROOTS, **options)
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
    [*BENCH, "-o", "jsonl", "--save", "disk/kept.json"], [*BENCH, "-o", "jsonl", "--save", "disk/kept.jsonl"],
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
                            (["generate", "BUNDLE", "na\u00efve \u20ac", "-n", "3"], 0), (["verify", "BUNDLE"], 0)):
        assert run(words, bundle, tmp_path, **variables)[0] == expected, words
