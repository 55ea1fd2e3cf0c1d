"""From nothing to generated text over ssh: sshd on loopback, with a home of its own, is the board."""

import asyncio
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import ssh_board
from packed_files import app_bytes, bundle_files, changed_golden, packed_bytes
from served import free_port
from test_cli import run

from merino_edge.delivery.ssh import flash as flash_module
from merino_edge.delivery.ssh.connect import parse_address
from merino_edge.delivery.ssh.flash import flash_all, package
from merino_edge.embedded import FOLDER
from merino_runtime.delivery.archive import open_archive
from merino_runtime.delivery.manifest import BoardNeed

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not ssh_board.SSHD, reason=ssh_board.REASON)]


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
    return short("flash", archive, "--allow-unsigned", *arguments)


def test_from_nothing_to_text_then_again_without_a_copy(board, archive, workstation):
    root = board.home / "merino"
    workstation.known_hosts.write_text("")
    code, out, err = flash(archive, "--ssh", board.address, "--root", root, "--dry-run", "--accept-new")
    assert code == 0, err
    assert "would" in out or "copy sample.merino" in out
    serving = flash(archive, "--ssh", board.address, "--root", root, "--dry-run", "--accept-new", "--serve")
    assert serving[0] == 0 and "set up merino-serve.service" in serving[1] and "merino-serve" not in out
    assert list(board.home.iterdir()) == [], "a dry run leaves nothing on the board"
    assert f"is new and would be written into {workstation.known_hosts}" in err
    assert workstation.known_hosts.read_text() == ""
    workstation.trusts(board)

    code, out, err = run("flash", archive, "--allow-unsigned", "--ssh", board.address, "--root", root, "--json")
    assert code == 0, err
    (row,) = json.loads(out)
    assert (row["error"], row["selftest"], row["was_there"], row["replaced"]) == (None, "ok", False, None)
    assert row["measured"]["decode_ms"] > 0 and row["measured"]["prefill_ms"] > 0
    assert (root / "current").resolve().name == open_archive(str(archive)).id
    assert [path.name for path in (board.cache / "incoming").iterdir()] == [], "nothing is left over"
    for step in ("connecting", "asking what it is", "copying", "installing", "measuring", "done"):
        assert f"{board.address}: {step}" in err

    code, out, err = flash(archive, "--ssh", board.address, "--root", root)
    assert code == 0, err
    assert "was there" in out and "copying" not in err and "ok" in out


@pytest.mark.nightly
def test_one_board_that_fails_keeps_no_other_back(board, archive):
    nobody = f"127.0.0.1:{free_port()}"
    root = board.home / "merino-of-two"
    code, out, err = flash(archive, "--ssh", nobody, "--ssh", board.address, "--root", root, "--json")
    assert code == 1
    bad, good = json.loads(out)
    assert bad["host"] == nobody and "refused" in bad["error"].lower()
    assert good["error"] is None and (root / "current" / "merino").exists()
    where = ("--ssh", board.address, "--root", root)
    bench = ["bench", "installed", "-p", "4", "-n", "0", "-r", "1"]
    for words in (["generate", "installed", "Once", "-n", "2"], bench):
        code, out, err = run(*words, *where)
        assert code == 0 and out.strip(), err
        code, _, err = run(*words, *where[:3], board.home / "none")
        assert code == 1 and f"no release is installed in {board.home}/none" in err and "merino-edge flash" in err
        code, _, err = run(*words, "--root", root)
        assert code == 1 and "--root goes with --ssh HOST" in err


def test_an_upgrade_replaces_and_a_release_that_fails_there_changes_nothing(board, archive, place):
    root = board.home / "merino-upgraded"
    assert flash(archive, "--ssh", board.address, "--root", root)[0] == 0
    before = (root / "current").resolve().name
    newer = packed(place / "newer.merino", name="newer")
    code, out, err = flash(newer, "--ssh", board.address, "--root", root, "--json")
    assert code == 0, err
    assert json.loads(out)[0]["replaced"] == before
    bad = packed(place / "bad.merino", changed_golden(bundle_files(FOLDER)))
    code, out, err = flash(bad, "--ssh", board.address, "--root", root, "--json")
    (row,) = json.loads(out)
    assert code == 1 and "self-test" in row["error"] and row["selftest"] is None
    empty = packed(place / "empty.merino", app=b"#!/bin/false\n")
    code, out, err = flash(empty, "--ssh", board.address, "--root", root, "--json")
    assert code == 1 and board.address in err and json.loads(out)[0]["error"]
    assert (root / "current").resolve().name == open_archive(str(newer)).id


@pytest.mark.nightly
def test_a_signed_file_needs_a_key_that_the_board_trusts(board, place):
    assert run("keygen", "-o", place / "mine")[0] == 0
    code, _, err = run("pack", "embedded", "-o", place / "signed.merino", "--sign", place / "mine.key")
    assert code == 0, err
    root = board.home / "merino-signed"
    where = ("--ssh", board.address, "--root", root, "--json")
    code, out, _ = run("flash", place / "signed.merino", *where)
    assert code == 1 and "not trusted" in json.loads(out)[0]["error"] and "--trust" in json.loads(out)[0]["error"]
    code, out, err = short("flash", place / "signed.merino", *where, "--trust", place / "mine.pub")
    assert code == 0, err
    assert (root / "trusted" / "mine.pub").exists()
    assert run("keygen", "-o", place / "other")[0] == 0
    code, _, err = run("flash", place / "signed.merino", *where, "--trust", place / "other.pub")
    assert code == 1 and "not trusted here" in err and "asking" not in err, "refused here, before any board is asked"


@pytest.mark.nightly
def test_a_connection_cut_anywhere_leaves_the_old_release_or_the_new_one(board, archive, place, monkeypatch):
    """Upgrades whose connection is killed at random: in the copy at random bytes, later after random times. Each next
    try of the same file succeeds."""
    monkeypatch.setattr(flash_module, "BENCH", flash_module.BENCH + SHORT)
    rng = random.Random(17)
    root = board.home / "merino-cut"
    assert flash(archive, "--ssh", board.address, "--root", root)[0] == 0
    cuts = dict.fromkeys(("copying", "installing", "measuring"), 0)
    for number in range(12):
        newer = packed(place / "cut.merino", name=f"cut-{number}")
        sent = package(newer, allow_unsigned=True, root=str(root))
        old, new = (root / "current").resolve().name, sent.archive.id
        step = list(cuts)[number % len(cuts)]
        done = asyncio.run(cut_at(board, sent, step, rng))
        cuts[step] += bool(done.error) or done.notes != []
        now = (root / "current").resolve()
        assert now.name in (old, new)
        output = subprocess.run([now / "merino", "generate", "installed", "Once", "-n", "3"], capture_output=True,
                              env=board_environment(board), check=False)  # fmt: skip
        assert output.returncode == 0, output.stderr
        (again,) = asyncio.run(flash_all([parse_address(board.address)], sent))
        assert again.error == "" and (root / "current").resolve().name == new
    assert min(cuts.values()) >= 1, cuts


async def cut_at(board, package, step, rng):
    at = rng.randrange(package.whole.size_bytes)
    loop = asyncio.get_running_loop()

    def report(_, doing, sent, total):
        if doing == step == "copying" and total == package.whole.size_bytes and sent >= at:
            board.cut()
        elif doing == step != "copying":
            loop.call_later(rng.uniform(0.05, 1.0), board.cut)

    (done,) = await flash_all([parse_address(board.address)], package, report=report)
    return done


def board_environment(board):
    return {"HOME": str(board.home), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}


def test_another_board_is_refused_before_anything_travels(board, place):
    other = packed(place / "pi.merino", boards=[BoardNeed("raspberry-pi-5", ("Raspberry Pi 5",))])
    code, out, err = flash(other, "--ssh", board.address, "--json", "--root", board.home / "pi")
    (row,) = json.loads(out)
    assert code == 1 and "raspberry-pi-5" in row["error"] and "--force" in row["error"]
    assert "copying" not in err
    code, out, err = flash(other, "--ssh", board.address, "--force", "--dry-run", "--root", board.home / "pi")
    assert code == 0, err


def test_what_is_refused_here(archive, place, board):
    for arguments, output in (
        ([archive, "--ssh", board.address], "--allow-unsigned"),
        ([archive, "--allow-unsigned"], "one of --ssh, --rootfs, --image"),
        ([archive, "--ssh", "a", "--rootfs", place], "flash has --ssh and --rootfs: give one of"),
        ([archive, "--rootfs", place, "--force"], "go with --ssh"),
        ([archive, "--allow-unsigned", "--ssh", "a", "--ssh", "a"], "twice"),
        ([place / "none.merino", "--ssh", "a"], "cannot read"),
    ):
        code, _, err = run("flash", *arguments)
        assert code == 1 and output in err.splitlines()[-1]
