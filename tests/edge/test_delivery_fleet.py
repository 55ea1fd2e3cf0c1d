"""The Ansible role of fleet/ against two sshd on loopback: idempotent, in batches, none after a board that fails."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ssh_board
from packed_files import app_bytes, bundle_files, changed_golden, packed_bytes

from merino_edge.bundles.board_app import board_app
from merino_edge.embedded import FOLDER
from merino_runtime.delivery.archive import open_archive

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = ROOT / ".venv-ansible" / "bin" / "ansible-playbook"
SFTP = "Subsystem sftp internal-sftp"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ssh_board.SSHD, reason=ssh_board.REASON),
    pytest.mark.skipif(not PLAYBOOK.exists(), reason="no ansible-core here: make .venv-ansible"),
]


def playing(place, workstation, boards, **variables):
    """A function that runs the playbook on `boards` by name. `place`: where its inventory and application lie."""
    app = place / "controllers.pyz"
    app.write_bytes(board_app())
    lines = [
        f"{name} ansible_host=127.0.0.1 ansible_port={board.port} merino_root={board.home}/merino"
        for name, board in boards.items()
    ]
    (place / "boards.ini").write_text(
        "\n".join(["[boards]", *lines, "[boards:vars]", f"ansible_python_interpreter={sys.executable}",
                   f"merino_python={sys.executable}", f"merino_app={app}",
                   f"ansible_ssh_private_key_file={workstation.home}/.ssh/id_ed25519",
                   f"ansible_ssh_common_args=-F none -o UserKnownHostsFile={workstation.known_hosts}"
                   " -o ControlMaster=no", *(f"{name}={value}" for name, value in variables.items())])
        + "\n"
    )  # fmt: skip

    def play(archive, *more, book=ROOT / "fleet" / "site.yml"):
        """(exit code, output, {board: (changed, failed)})"""
        site = ["-i", place / "boards.ini", book, *(["-e", f"merino_file={archive}"] if archive else [])]
        done = subprocess.run(
            [PLAYBOOK, *site, *more], capture_output=True, text=True, check=False, timeout=1800,
            env={**os.environ, "HOME": str(workstation.home), "LC_ALL": "C.UTF-8", "ANSIBLE_PIPELINING": "1"},
        )  # fmt: skip
        rows = re.findall(r"^(\w+)\s*: ok=\d+\s+changed=(\d+)\s+unreachable=\d+\s+failed=(\d+)", done.stdout, re.M)
        return done.returncode, done.stdout + done.stderr, {name: (int(c), int(f)) for name, c, f in rows}

    return play


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """(a function that runs the playbook, the two boards, a folder)"""
    place = tmp_path_factory.mktemp("fleet")
    workstation = ssh_board.make_workstation(place / "home")
    with (
        ssh_board.running(place / "one", workstation.key, more=SFTP) as one,
        ssh_board.running(place / "two", workstation.key, more=SFTP) as two,
    ):
        workstation.trusts(one, two)
        yield playing(place, workstation, {"one": one, "two": two}, merino_allow_unsigned="true"), (one, two), place


def packed(path, files=None, name="sample"):
    path.write_bytes(packed_bytes(app_bytes(path.with_suffix(".pyz")), [files or bundle_files(FOLDER)], name))
    return path


def current(board):
    link = board.home / "merino" / "current"
    return link.resolve().name if link.exists() else None


def test_a_fleet_is_installed_once_and_stops_where_a_release_fails(fleet, nightly):
    """Upgrades: test_delivery_forged.py."""
    play, boards, place = fleet
    archive = packed(place / "sample.merino")
    result = open_archive(str(archive)).id

    if nightly:
        code, out, recap = play(archive, "--check")
        assert (code, recap) == (0, {"one": (1, 0), "two": (1, 0)}), out
        assert [current(board) for board in boards] == [None, None]

    code, out, recap = play(archive)
    assert code == 0, out
    assert [current(board) for board in boards] == [result, result]
    assert all(changed for changed, _ in recap.values()) and set(recap) == {"one", "two"}

    code, out, recap = play(archive)
    assert (code, recap) == (0, {"one": (0, 0), "two": (0, 0)}), out

    bad = packed(place / "bad.merino", changed_golden(bundle_files(FOLDER)), "bad")
    code, out, recap = play(bad)
    assert code != 0 and "self-test" in out
    assert set(recap) == {"one"} and recap["one"][1] == 1, "the second batch was not begun"
    assert [current(board) for board in boards] == [result, result]

    ran, key = place / "ran", base64.b64encode(b"k" * 32).decode("ascii")
    for board in boards:
        release = (board.home / "merino" / "current").resolve()
        (release / "merino.pyz").write_text(f"open({str(ran)!r}, 'w')\n")
        (release / "manifest.sig").write_text(f'{{"algorithm":"ed25519","key":"{key}","signature":"x"}}\n')
    assert play(archive, "--check")[0] == 0 and ran.exists(), "the sign that an application would be seen"
    ran.unlink()
    for board in boards:
        (board.home / "merino" / "withdrawn.json").write_text(json.dumps({"schema": 1, "keys": [key]}, indent=1))
    code, out, _ = play(archive, "--check")
    assert code == 0 and not ran.exists(), out
