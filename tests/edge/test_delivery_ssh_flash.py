"""From nothing to generated text over ssh: sshd on loopback, with a home of its own, is the board."""

import json

import pytest
import ssh_board
from sample_archive import write_archive
from test_cli import run

from merino_edge.embedded import FOLDER
from merino_runtime.delivery.archive import open_archive

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
    with ssh_board.running(place / "board", workstation.key) as found:
        workstation.trusts(found)
        yield found


@pytest.fixture(scope="module")
def archive(place):
    return write_archive(place / "sample.merino", FOLDER)


def flash(archive, *arguments):
    return run("flash", archive, "--allow-unsigned", *arguments)


def test_from_nothing_to_text_then_again_without_a_copy(board, archive):
    root = board.home / "merino"
    code, out, err = flash(archive, "--ssh", board.address, "--root", root, "--dry-run")
    assert code == 0, err
    assert "would" in out or "copy sample.merino" in out
    assert list(board.home.iterdir()) == [], "a dry run leaves nothing on the board"

    code, out, err = flash(archive, "--ssh", board.address, "--root", root, "--json")
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


def test_one_board_that_fails_keeps_no_other_back(board, archive):
    nobody = f"127.0.0.1:{ssh_board.free_port()}"
    root = board.home / "merino-of-two"
    code, out, err = flash(archive, "--ssh", nobody, "--ssh", board.address, "--root", root, "--at-once", "2", "--json")
    assert code == 1
    bad, good = json.loads(out)
    assert bad["host"] == nobody and "refused" in bad["error"].lower()
    assert good["error"] is None and (root / "current" / "merino").exists()


def test_an_upgrade_replaces_and_a_release_that_fails_there_changes_nothing(board, archive, place):
    root = board.home / "merino-upgraded"
    assert flash(archive, "--ssh", board.address, "--root", root)[0] == 0
    before = (root / "current").resolve().name
    newer = write_archive(place / "newer.merino", FOLDER, "newer")
    code, out, err = flash(newer, "--ssh", board.address, "--root", root, "--json")
    assert code == 0, err
    assert json.loads(out)[0]["replaced"] == before
    (place / "broken").mkdir()
    bad = write_archive(place / "broken" / "bad.merino", FOLDER, "bad", app=b"#!/bin/false\n")
    code, out, err = flash(bad, "--ssh", board.address, "--root", root, "--json")
    assert code == 1 and json.loads(out)[0]["error"]
    assert (root / "current").resolve().name == open_archive(str(newer)).id


def test_another_board_is_refused_before_anything_travels(board, place):
    other = write_archive(place / "pi.merino", FOLDER, boards=[("raspberry-pi-5", ["Raspberry Pi 5"])])
    code, out, err = flash(other, "--ssh", board.address, "--json", "--root", board.home / "pi")
    (row,) = json.loads(out)
    assert code == 1 and "raspberry-pi-5" in row["error"] and "--force" in row["error"]
    assert "copying" not in err
    code, out, err = flash(other, "--ssh", board.address, "--force", "--dry-run", "--root", board.home / "pi")
    assert code == 0, err


def test_what_is_refused_here(archive, place, board):
    for arguments, said in (
        ([archive, "--ssh", board.address], "--allow-unsigned"),
        ([archive, "--allow-unsigned"], "--ssh"),
        ([archive, "--allow-unsigned", "--ssh", "a", "--ssh", "a"], "twice"),
        ([place / "none.merino", "--ssh", "a"], "cannot read"),
    ):
        code, _, err = run("flash", *arguments)
        assert code == 1 and said in err.splitlines()[-1]
