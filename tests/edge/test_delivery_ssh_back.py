"""The board speaks back over ssh: text, records and a probe come home; sshd on loopback is the board."""

import json
import os
import platform
import re
import subprocess
import sys
import time

import pytest
import ssh_board
from test_cli import run

from merino_edge.cli.over_ssh import on_board
from merino_edge.delivery.ssh.board import program
from merino_edge.profiles.reading import load_profile, profile_text
from merino_edge.records.reading import read_records
from merino_runtime.errors import MerinoError

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not ssh_board.SSHD, reason=ssh_board.REASON)]
# opt-125m with a small geometry: what is copied and compared does not depend on its 500 MB.
SMALL_OPT = """
from merino_edge.families import zoo
models = {each.id: each for each in zoo.load_models()}
less = {"width": 64, "layers": 1, "heads": 2, "ffn_width": 64, "embed_width": 64, "vocab": 64, "context": 32}
opt = models["opt-125m"]
models["opt-125m"] = opt.model_copy(update={"geometry": opt.geometry.model_copy(update=less)})
zoo.load_models = lambda: tuple(models.values())
"""
QUICK_BENCH = """
from merino_edge.bundles import board_app
from quick_bench import quick
all_files = board_app.packed_files
board_app.packed_files = lambda package: ((name, quick(name, content)) for name, content in all_files(package))
"""
# The application that is copied there probes for 8 seconds of the minute.
SHORT_PROBE = """
from merino_edge.bundles import board_app
packed = board_app.packed_files
board_app.packed_files = lambda package: (
    (name, content.replace(b"MOST_SECONDS = 55.0", b"MOST_SECONDS = 8.0")) for name, content in packed(package)
)
"""
# One design of a small space in one round, in place of six over the board's range in two.
FEW_DESIGNS = """
from merino_edge.benchmarking import chosen, measuring
from merino_edge.calibration import command
from merino_edge.design.paper.space import PaperSpace
from merino_edge.design.space import Space
chosen.DESIGNS, chosen.VOCABS, chosen.CONTEXTS, command.ROUNDS = 1, (512,), (64,), 1
chosen.SPACE = Space(widths=(64, 128), depths=(1, 2))
chosen.PAPER_SPACE = PaperSpace(widths=(64, 128), depths=(1, 2), blocks=1)
measuring.DECODE_REPETITIONS = measuring.PREFILL_REPETITIONS = 1
"""
GREEDY = ("Once upon a time", "-n", "12", "--temperature", "0")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("back")


@pytest.fixture(scope="module")
def workstation(place):
    return ssh_board.make_workstation(place / "home")


@pytest.fixture(autouse=True)
def home(workstation, monkeypatch):
    monkeypatch.setenv("HOME", str(workstation.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture(scope="module")
def board(place, workstation):
    with ssh_board.running(place / "board", workstation.key) as started:
        workstation.trusts(started)
        yield started


def test_text_is_the_same_there_as_here_and_the_bundle_travels_once(board):
    here = run("generate", "embedded", *GREEDY)
    code, out, err = run("generate", "--ssh", board.address, "embedded", *GREEDY)
    assert code == 0, err
    assert out == here[1] and "tok/s" in err and "copying model.onnx" in err
    (folder,) = (board.cache / "bundles").iterdir()
    stamp = (folder / "model.onnx").stat().st_mtime_ns
    code, out, err = run("generate", "--ssh", board.address, "embedded", *GREEDY, "--json", "--stop", "time")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["done"] is True
    assert (folder / "model.onnx").stat().st_mtime_ns == stamp


def test_a_refusal_there_is_the_exit_code_here(board):
    code, out, err = run("generate", "--ssh", board.address, "embedded", "x" * 5000, "-n", "400", "--overflow", "error")
    assert (code, out) == (1, "") and "context" in err.splitlines()[-1]
    code, _, err = run("generate", "--ssh", board.address, "embedded", *GREEDY, "--cache", "x")
    assert code == 1 and "--cache" in err
    code, _, err = run("generate", "--ssh", board.address, "installed", *GREEDY)
    assert code == 1 and "no release is installed" in err


def test_a_closed_pipe_ends_it_quietly_here_and_there(board):
    words = [sys.executable, "-c", "from merino_edge.cli.app import main; main()", "generate", "--ssh", board.address,
             "embedded", "Once", "-n", "100000", "--overflow", "shift", "--ignore-eos", "--json"]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("{")
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait(60) == 141
    for _ in range(200):
        if not ssh_board.programs_on(board):
            break
        time.sleep(0.05)
    assert not ssh_board.programs_on(board)


def test_records_come_home_with_their_baseline(board, place):
    saved = place / "there.json"
    code, out, err = run(
        "bench", "--ssh", board.address, "embedded", "--baseline", "opt-125m", "-p", "8", "-n", "4", "-r", "1",
        "-o", "json", "--save", saved, first=QUICK_BENCH + SMALL_OPT,
    )  # fmt: skip
    assert code == 0, err
    rows = read_records([saved])
    assert json.loads(out) == json.loads(saved.read_text())
    assert {row.bundle for row in rows} == {"embedded", "opt-125m"} and len(rows) == 4
    assert all(row.board for row in rows)
    assert all(row["ratio_to_baseline"] for row in json.loads(out))
    assert len(list((board.cache / "bundles").iterdir())) == 2


def test_what_cannot_be_saved_is_refused_before_anything_is_copied(board, place):
    code, _, err = run("bench", "--ssh", board.address, "embedded", "--save", place / "none" / "x.json")
    assert code == 1 and "none" in err.splitlines()[-1] and "copying" not in err


@pytest.fixture(scope="module")
def base(place):
    """A profile that this machine can be of, with a latency budget of a millisecond."""
    mine = profile_text("raspberry-pi-5").replace('arch = "aarch64"', 'arch = "x86_64"')
    mine = mine.replace('isa = ["neon", "dotprod", "fp16"]', 'isa = ["avx2"]')
    mine = re.sub(r"peak_gb_s = .*\n", "", mine)  # this machine's memory may be faster than a Pi's
    (place / "base.toml").write_text(mine.replace("decode_ms = 25", "decode_ms = 1"))
    return place / "base.toml"


@pytest.mark.nightly
def test_a_probe_of_the_board_and_designs_that_ran_there_become_its_profile(board, place, base):
    kept = sorted((board.cache / "bundles").glob("*"))
    code, out, err = run(
        "calibrate", "--ssh", board.address, "--device", base, "--backend", "onnxruntime", "-o", place / "my.toml",
        first=QUICK_BENCH + SHORT_PROBE + FEW_DESIGNS,
    )  # fmt: skip
    assert code == 0, err
    assert re.search(r"design 1 of 1: .*, context 64, by measured: predicted ", err) and "copying model.onnx" in err
    assert "round 1: 1 measured, predicted over measured: decode " in err
    assert re.search(r"design (fp32|int8|int4) decode +\d", out)
    assert sorted((board.cache / "bundles").glob("*")) == kept, "what was measured is removed"
    assert "measures itself" in err and "wrote" in err
    profile = load_profile(place / "my.toml")
    assert profile.performance.onnxruntime.coefficients is not None
    assert profile.performance.onnxruntime.read_gb_s.kind == "calibrated"


@pytest.mark.nightly
def test_a_connection_that_is_lost_while_designs_are_measured_leaves_the_former_profile(board, place, base):
    out = place / "kept.toml"
    out.write_text("# the former profile\n")
    words = ["calibrate", "--ssh", board.address, "--device", base, "--backend=onnxruntime", "-o", out]
    code = f"{SHORT_PROBE}{FEW_DESIGNS}\nfrom merino_edge.cli.app import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    messages = []
    for line in process.stderr:
        messages.append(line)
        if ": measuring" in line:
            board.cut()
    assert process.wait(60) == 1 and board.address in messages[-1], messages
    assert out.read_text() == "# the former profile\n"


def test_a_probe_is_asked_for_only_where_its_result_can_be_used(board, place):
    for arguments, output in (
        (["--device", "raspberry-pi-5"], "-o FILE"),
        (["--device", "host"], "--device host"),
        (["--device", "none", "-o", place / "x.toml"], "No device profile"),
        (["--device", "raspberry-pi-5", "--probe", "p.json", "-o", place / "x.toml"], "one of the two"),
        (["--device", "raspberry-pi-5", "-o", place], "it is a folder"),
    ):
        code, _, err = run("calibrate", "--ssh", board.address, *arguments)
        assert code == 1 and output in err.splitlines()[-1], err
        assert "measures itself" not in err
    if platform.machine() == "aarch64":
        return  # the profile's board and this one are alike
    code, _, err = run("calibrate", "--ssh", board.address, "--device", "raspberry-pi-5", "-o", place / "x.toml")
    assert code == 1 and f"the probed machine is {platform.machine()}, the profile is of aarch64" in err
    assert "measures itself" not in err


def test_a_board_that_no_profile_names_is_told_so(board):
    code, _, err = run("recommend", "--ssh", board.address)
    assert code == 1 and "which no profile names" in err and "Raspberry Pi 5" in err and "--device" in err
    code, _, err = run("recommend", "--ssh", board.address, "--device", "raspberry-pi-5")
    assert code == 2 and "one of" in err
    code, _, err = run("recommend")
    assert code == 2 and "--ssh" in err


def test_a_board_without_the_packages_is_told_how_to_get_them(place, workstation):
    """A Python without its site-packages."""
    bare = place / "bare"
    bare.mkdir()
    (bare / "python3").write_text('#!/bin/sh\nexec /usr/bin/python3 -S "$@"\n')
    (bare / "python3").chmod(0o755)
    path, output = f"{bare}:/usr/bin:/bin", "pip install numpy tokenizers onnxruntime"
    with (
        ssh_board.running(place / "bare-board", workstation.key, path) as started,
        pytest.raises(MerinoError, match=output),
    ):
        on_board(started.address, True, program)
