"""From nothing to generated text over ssh, and back: records and a probe come home. sshd on loopback is the board.
What is said of flashed boards: tables, JSON, the missing extra."""

import asyncio
import getpass
import json
import platform
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ssh_board
from packed_files import app_bytes, bundle_files, changed_golden, packed_bytes
from processes import on_a_terminal
from sample_records import record
from served import free_port
from test_cli import run

from merino_edge.cli.over_ssh import on_board
from merino_edge.cli.record_tables import flashed_json, flashed_table, speeds_ms
from merino_edge.cli.tables import plain
from merino_edge.delivery.ssh import flash as flash_module
from merino_edge.delivery.ssh.board import Facts, profile_of, program
from merino_edge.delivery.ssh.connect import parse_address
from merino_edge.delivery.ssh.flash import Flashed, flash_all, package
from merino_edge.embedded import FOLDER
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile, profile_text
from merino_edge.records.reading import parse_records, read_records
from merino_runtime.delivery.archive import open_archive
from merino_runtime.delivery.fit import this_machine
from merino_runtime.delivery.manifest import BoardNeed
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
QUICK_BENCH = "import quick_bench; quick_bench.quicken_apps()\n"
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
from merino_edge.benchmarking import chosen
from merino_edge.calibration import command
from merino_edge.design.paper.space import PaperSpace
from merino_edge.design.space import Space
chosen.DESIGNS, chosen.VOCABS, chosen.CONTEXTS, command.ROUNDS = 1, (512,), (64,), 1
chosen.SPACE = Space(widths=(64, 128), depths=(1, 2))
chosen.PAPER_SPACE = PaperSpace(widths=(64, 128), depths=(1, 2), blocks=1)
chosen.DECODE_REPETITIONS = chosen.PREFILL_REPETITIONS = 1
"""
GREEDY = ("Once upon a time", "-n", "12", "--temperature", "0")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("flash")


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


@pytest.fixture(scope="module")
def archive(place):
    return packed(place / "sample.merino")


def packed(path, bundle=None, **keys):
    """The embedded bundle, or the files of another one, in an unsigned packed file."""
    files = bundle or bundle_files(FOLDER)
    path.write_bytes(packed_bytes(keys.pop("app", None) or app_bytes(path.with_suffix(".pyz")), [files], **keys))
    return path


SHORT = ("-r", "1", "-p", "8", "-n", "4")  # in place of what the board measures after an install: a few tokens


def short(*arguments):
    return run(*arguments, first=f"from merino_edge.delivery.ssh import flash; flash.BENCH += {SHORT}")


def flash(archive, *arguments):
    return short("flash", archive, "--allow=unsigned", *arguments)


def test_from_nothing_to_text_then_again_without_a_copy(board, archive, workstation):
    root = board.home / "merino"
    workstation.known_hosts.write_text("")
    dry_run = [sys.executable, "-m", "merino_edge", "flash", archive, "--allow=unsigned", "--ssh",
               f"{board.address}{root}", "--dry-run"]  # fmt: skip
    code, shown = on_a_terminal(dry_run, width=200, typed=b"n\n")
    assert code == 1 and "nothing was changed" in shown and workstation.known_hosts.read_text() == ""
    code, shown = on_a_terminal(dry_run, width=200, typed=b"y\n")
    assert code == 0, shown
    assert f"has the new host key {board.host_key.get_fingerprint()}" in shown and "copy sample.merino" in shown
    assert workstation.known_hosts.read_text() == board.known_hosts_line
    files = [path for path in board.home.rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["merino.pyz"], "a dry run leaves this workstation's application alone"

    code, out, err = flash(archive, "--ssh", f"{board.address}{root}", "--json")
    assert code == 0, err
    (row,) = json.loads(out)
    assert (row["error"], row["selftest"], row["was_there"], row["replaced"]) == (None, "ok", False, None)
    assert row["measured"]["decode_ms"] > 0 and row["measured"]["prefill_ms"] > 0
    assert (root / "current").resolve().name == open_archive(str(archive)).id
    assert [path.name for path in (board.cache / "incoming").iterdir()] == [], "nothing is left over"

    code, out, err = flash(archive, "--ssh", f"{board.address}{root}")
    assert code == 0, err
    assert "was there" in out and "copying" not in err and "ok" in out


@pytest.mark.nightly
def test_one_board_that_fails_keeps_no_other_back(board, archive):
    nobody = f"127.0.0.1:{free_port()}"
    root = board.home / "merino-of-two"
    code, out, err = flash(archive, "--ssh", nobody, "--ssh", f"{board.address}{root}", "--json")
    assert code == 1
    bad, good = json.loads(out)
    assert bad["host"] == nobody and "refused" in bad["error"].lower()
    assert good["error"] is None and (root / "current" / "merino").exists()
    where = ("--ssh", f"{board.address}{root}")
    bench = ["bench", "installed", "-p", "4", "-n", "0", "-r", "1"]
    for words in (["generate", "installed", "Once", "-n", "2"], bench):
        code, out, err = run(*words, *where)
        assert code == 0 and out.strip(), err
        code, _, err = run(*words, where[0], f"{board.address}{board.home}/none")
        assert code == 1 and f"no release is installed in {board.home}/none" in err and "merino-edge flash" in err


def test_an_upgrade_replaces_and_a_release_that_fails_there_changes_nothing(board, archive, place):
    root = board.home / "merino-upgraded"
    assert flash(archive, "--ssh", f"{board.address}{root}")[0] == 0
    before = (root / "current").resolve().name
    newer = packed(place / "newer.merino", name="newer")
    code, out, err = flash(newer, "--ssh", f"{board.address}{root}", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["replaced"] == before
    bad = packed(place / "bad.merino", changed_golden(bundle_files(FOLDER)))
    code, out, err = flash(bad, "--ssh", f"{board.address}{root}", "--json")
    (row,) = json.loads(out)
    assert code == 1 and "self-test" in row["error"] and row["selftest"] is None
    empty = packed(place / "empty.merino", app=b"#!/bin/false\n")
    code, out, err = flash(empty, "--ssh", f"{board.address}{root}", "--json")
    assert code == 1 and board.address in err and json.loads(out)[0]["error"]
    assert (root / "current").resolve().name == open_archive(str(newer)).id


@pytest.mark.nightly
def test_a_connection_cut_anywhere_leaves_the_old_release_or_the_new_one(board, archive, place, monkeypatch):
    """Upgrades whose connection is killed at random: in the copy at random bytes, later after random times. Each next
    try of the same file succeeds."""
    monkeypatch.setattr(flash_module, "BENCH", flash_module.BENCH + SHORT)
    rng = random.Random(17)
    root = board.home / "merino-cut"
    assert flash(archive, "--ssh", f"{board.address}{root}")[0] == 0
    cuts = dict.fromkeys(("copying", "installing", "measuring"), 0)
    for number in range(12):
        newer = packed(place / "cut.merino", name=f"cut-{number}")
        sent = package(newer, allow=["unsigned"])
        old, new = (root / "current").resolve().name, sent.archive.id
        step = list(cuts)[number % len(cuts)]
        done = asyncio.run(cut_at(board, root, sent, step, rng))
        cuts[step] += bool(done.error) or done.notes != []
        now = (root / "current").resolve()
        assert now.name in (old, new)
        output = subprocess.run([now / "merino", "generate", "installed", "Once", "-n", "3"], capture_output=True,
                              env=board_environment(board), check=False)  # fmt: skip
        assert output.returncode == 0, output.stderr
        (again,) = asyncio.run(flash_all([parse_address(f"{board.address}{root}")], sent))
        assert again.error == "" and (root / "current").resolve().name == new
    assert min(cuts.values()) >= 1, cuts


async def cut_at(board, root, package, step, rng):
    at = rng.randrange(package.whole.size_bytes)
    loop = asyncio.get_running_loop()

    def report(_, doing, sent, total):
        if doing == step == "copying" and total == package.whole.size_bytes and sent >= at:
            board.cut()
        elif doing == step != "copying":
            loop.call_later(rng.uniform(0.05, 1.0), board.cut)

    (done,) = await flash_all([parse_address(f"{board.address}{root}")], package, report=report)
    return done


def board_environment(board):
    return {"HOME": str(board.home), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}


def test_another_board_is_refused_before_anything_travels(board, place):
    other = packed(place / "pi.merino", boards=[BoardNeed("raspberry-pi-5", ("Raspberry Pi 5",))])
    code, out, err = flash(other, "--ssh", f"{board.address}{board.home}/pi", "--json")
    (row,) = json.loads(out)
    assert code == 1 and "raspberry-pi-5" in row["error"] and "--allow any-board" in row["error"]
    assert "copying" not in err
    code, out, err = flash(other, "--ssh", f"{board.address}{board.home}/pi", "--allow=any-board", "--dry-run")
    assert code == 0, err


def test_what_is_refused_here(archive, place, board):
    for arguments, output in (
        ([archive, "--ssh", board.address], "--allow unsigned"),
        ([archive, "--allow=unsigned"], "one of --ssh, --rootfs, --image"),
        ([archive, "--ssh", "a", "--rootfs", place], "flash has --ssh and --rootfs: give one of"),
        ([archive, "--rootfs", place, "--allow=any-board"], "go with --ssh"),
        ([archive, "--allow=unsigned", "--ssh", "a", "--ssh", "a"], "twice"),
        ([place / "none.merino", "--ssh", "a"], "cannot read"),
    ):
        code, _, err = run("flash", *arguments)
        assert code == 1 and output in err.splitlines()[-1]


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
    words = ("embedded", "x" * 5000, "-n", "400", "--set=overflow=error")
    code, out, err = run("generate", "--ssh", board.address, *words)
    assert (code, out) == (1, "") and "context" in err.splitlines()[-1]
    code, _, err = run("generate", "--ssh", f"{board.address}{board.home}/none", "installed", *GREEDY)
    assert code == 1 and "no release is installed" in err


def test_a_closed_pipe_ends_it_quietly_here_and_there(board):
    words = [sys.executable, "-c", "from merino_edge.cli.app import main; main()", "generate", "--ssh", board.address,
             "embedded", "Once", "-n", "100000", "--set=overflow=shift", "--set=ignore_eos=true", "--json"]  # fmt: skip
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
        "bench", "--ssh", board.address, "embedded", "--baseline", "opt-125m", "-p", "0", "-n", "4", "-r", "1",
        "--format", "json", "-o", saved, first=QUICK_BENCH + SMALL_OPT,
    )  # fmt: skip
    assert code == 0, err
    rows = read_records([saved])
    assert json.loads(out) == json.loads(saved.read_text())
    assert {row.bundle for row in rows} == {"embedded", "opt-125m"} and len(rows) == 2
    assert all(row.board for row in rows)
    assert all(row["ratio_to_baseline"] for row in json.loads(out))
    assert len(list((board.cache / "bundles").iterdir())) == 2


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
        "calibrate", "--ssh", board.address, "--board", f"{base}:onnxruntime", "-o", place / "my.toml",
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


def test_a_probe_is_asked_for_only_where_its_result_can_be_used(board, place):
    for arguments, output in (
        (["--board", "raspberry-pi-5"], "-o FILE"),
        (["--board", "host"], "--board host"),
        (["--board", "raspberry-pi-5", "-o", place], "it is a folder"),
    ):
        code, _, err = run("calibrate", "--ssh", board.address, *arguments)
        assert code == 1 and output in err.splitlines()[-1], err
        assert "measures itself" not in err
    if platform.machine() == "aarch64":
        return  # the profile's board and this one are alike
    code, _, err = run("calibrate", "--ssh", board.address, "--board", "raspberry-pi-5", "-o", place / "x.toml")
    assert code == 1 and f"the probed machine is {platform.machine()}, the profile is of aarch64" in err
    assert "measures itself" not in err


def test_a_board_that_no_profile_names_is_told_so(board):
    code, _, err = run("recommend", "--board", f"{getpass.getuser()}@{board.address}")
    assert code == 1 and "which no profile names" in err and "Raspberry Pi 5" in err and "--board" in err
    code, _, err = run("recommend")
    assert code == 2 and "--board" in err


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
        workstation.trusts(started)
        on_board(started.address, program)


ROWS = [record(20.0), record(300.0, test="pp64", mbu=None)]


def facts(model):
    return Facts(this_machine("/")._replace(model=model), "merino.pyz", "/opt/merino", None)


def flashed_board(model="Raspberry Pi 5 Model B Rev 1.0", **changes):
    rows, faults, _ = parse_records(json.dumps(ROWS))
    assert faults == []
    result = Flashed("pi", facts=facts(model), bundle="ours", precision="fp32", tested=True, records=rows)
    return replace(result, **changes)


def test_what_was_measured_stands_beside_the_prediction_for_the_boards_profile():
    one = flashed_board()
    _, predicted = speeds_ms(one)
    (series, *_) = {row.bundle: row for row in one.records}.values()
    cost = cost_model(load_profile("raspberry-pi-5"), InferenceShape("fp32", 8 + 32 // 2, 8))
    assert predicted["decode"] == pytest.approx(cost.predict(series.geometry.operators).decode_ms)
    row = flashed_json(one)
    assert row["device"] == "raspberry-pi-5" and row["selftest"] == "ok" and row["error"] is None
    assert row["predicted"]["decode_ms"] == predicted["decode"]
    assert row["measured"]["decode_ms"] == pytest.approx(20, rel=0.05)
    assert row["measured"]["prefill_ms"] == pytest.approx(300, rel=0.05)
    text = plain(flashed_table([one]))
    assert f"{predicted['decode']:,.1f}" in text and "Raspberry Pi 5" in text


def test_nothing_that_a_board_says_steers_the_terminal():
    text = plain(flashed_table([flashed_board(model="\u202eRaspberry\x1b[2J", replaced="\x1b[2J")]))
    assert all(one.isprintable() or one == "\n" for one in text)


def test_the_profile_of_a_board_is_that_which_names_its_model():
    assert profile_of("pi", facts("NVIDIA Jetson Nano Developer Kit")).id == "jetson-nano"
    for model in ("", "Another\x1b board"):
        with pytest.raises(MerinoError, match="no profile names.*--board") as caught:
            profile_of("pi", facts(model))
        assert str(caught.value).isprintable()


WITHOUT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "asyncssh":
            raise ImportError("blocked")
sys.meta_path.insert(0, Blocker())
from merino_edge.cli.app import main
main(sys.argv[1:])
"""
