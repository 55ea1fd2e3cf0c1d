"""Every hostile file on every path to a board: each is refused in one line, and its application never runs.

All kinds go through what verifies on each path: here before ssh, a root file system and an image; on the board the
installed application and the one that is sent; Ansible's controller; a first boot. One file of each class then goes
over a real sshd, as one that was exchanged after it was checked here.
"""

import asyncio
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import ssh_board
from packed_files import bundle_files, packed_bytes, renamed, tree
from sample_roots import MISSING, WHY, digest, make_image, make_root
from test_delivery_fleet import PLAYBOOK, SFTP, playing
from test_delivery_trust import AS_ROOT, OTHERS, OVER_SSH, public_key_file, signed_by

from merino_edge.bundles.board_app import board_app
from merino_edge.delivery.image import flash_image
from merino_edge.delivery.rootfs import flash_rootfs
from merino_edge.delivery.ssh.address import parse_addresses
from merino_edge.delivery.ssh.board import Facts
from merino_edge.delivery.ssh.flash import check_signer, flash_all, in_base64, package
from merino_edge.delivery.ssh.transfer import Source
from merino_edge.embedded import FOLDER
from merino_runtime.bundle import sha256_of
from merino_runtime.delivery.archive import open_archive
from merino_runtime.delivery.machine import this_machine
from merino_runtime.delivery.service import first_boot_unit
from merino_runtime.errors import MerinoError
from tests import ed25519_signer
from tests.hostile_archives import SEED, kinds_with

pytestmark = pytest.mark.slow
KEY = ed25519_signer.public_key_of(SEED)

# Runs the application in argv[1] once for each list of arguments, in one process: what a board or a controller starts.
DRIVER = """
import contextlib, io, json, sys
sys.path.insert(0, sys.argv[1])
from merino_bench.__main__ import main
for arguments in json.loads(sys.stdin.read()):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = ended.code
    sys.__stdout__.write(json.dumps([code, said.getvalue()]) + "\\n")
"""


class Forged(NamedTuple):
    """A file of each kind: its path, and a pattern of the refusal."""

    folder: Path
    app: Path  # this workstation's
    pub: Path
    marker: Path
    says: dict[Path, str]

    def refused(self, path: Path, said: str, or_says: str = "") -> None:
        """`said`: the message alone."""
        fits = re.search(self.says[path], said) or (or_says and or_says in said)
        assert fits and "\n" not in said and "Traceback" not in said, (path, said)
        assert not self.marker.exists(), path

    def by_application(
        self, *arguments: object, or_says: str = "", inside: Callable[[list[str]], list[str]] = list
    ) -> None:
        """Each file by the application; `arguments`: a call, in which None stands for the file."""
        calls = [[str(path if each is None else each) for each in arguments] for path in self.says]
        command = inside([sys.executable, "-c", DRIVER, str(self.app)])
        done = subprocess.run(command, input=json.dumps(calls), capture_output=True, text=True, check=False)
        if "unshare" in done.stderr or "mount:" in done.stderr:
            pytest.skip(f"nothing can be mounted here: {done.stderr}")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(rows) == len(calls), done.stderr
        for path, (code, said) in zip(self.says, rows, strict=True):
            assert code == 1 and said.splitlines()[-1].startswith("merino: "), (path, said)
            self.refused(path, said.splitlines()[-1], or_says)


def marking(marker):
    """An application that leaves a file when it is run, by whatever Python and from wherever."""
    return f"open({str(marker)!r}, 'a').close()\n".encode()


@pytest.fixture(scope="module")
def forged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forged")
    marker = folder / "the sender's application ran"
    says = {}
    for number, kind in enumerate(kinds_with(marking(marker))):
        path = folder / f"{number:03}.merino"
        path.write_bytes(kind.data)
        says[path] = kind.says
    (app := folder / "merino.pyz").write_bytes(board_app())
    return Forged(folder, app, public_key_file(folder / "ours.pub", SEED), marker, says)


def each_refused(forged, act, or_says=""):
    for path in forged.says:
        with pytest.raises(MerinoError) as caught:
            act(path)
        forged.refused(path, str(caught.value), or_says)


@pytest.mark.parametrize("trust", [True, False], ids=["with --trust", "without --trust"])
def test_before_anything_goes_over_ssh(trust, forged):
    """Without --trust the board's keys are asked for, which are known before the file is copied."""
    facts = Facts(this_machine("/"), "/opt/merino", None, keys=frozenset({in_base64(KEY)}))
    keys = [forged.pub] if trust else []

    each_refused(forged, lambda path: check_signer(package(path, keys, allow_unsigned=True), facts), "not trusted there")


@AS_ROOT
@pytest.mark.parametrize("kind", ["rootfs", pytest.param("image", marks=pytest.mark.skipif(bool(MISSING), reason=WHY))])
def test_before_a_card_is_written(kind, forged, tmp_path):
    system = make_root(tmp_path / "system")
    how = {"trust": [forged.pub], "allow_unsigned": True}
    if kind == "rootfs":
        before = tree(system)
        each_refused(forged, lambda path: flash_rootfs(path, system, **how))
        assert tree(system) == before
    else:
        image = make_image(tmp_path / "board.img", system)
        before = digest(image)
        each_refused(forged, lambda path: flash_image(path, image, **how))
        assert digest(image) == before


def test_by_a_boards_installed_application_and_by_the_one_that_is_sent(forged, tmp_path):
    """An installed one has its folder of releases with a trusted key; on first contact there is nothing."""
    installed = tmp_path / "installed"
    (installed / "releases" / "one").mkdir(parents=True)
    (installed / "current").symlink_to("releases/one")
    (installed / "trusted").mkdir()
    public_key_file(installed / "trusted" / "ours.pub", SEED)
    before = tree(tmp_path)
    forged.by_application("install", None, "--root", installed, "--allow-unsigned")
    forged.by_application("install", None, "--root", tmp_path / "new", "--allow-unsigned", "--trust", forged.pub)
    assert tree(tmp_path) == before


def test_on_ansibles_controller(forged):
    """With `merino_trust`, then with `merino_allow_unsigned`, where the role compares the signer with the board's keys."""
    forged.by_application("verify", None, "--json", "--trust", forged.pub, or_says="is not signed")
    others = {path: says for path, says in forged.says.items() if "not trusted here" not in says}
    assert len(others) == len(forged.says) - 1
    forged._replace(says=others).by_application("verify", None, "--json")


@AS_ROOT
def test_at_a_first_boot(forged, tmp_path):
    """By the command of the unit, in the folder of a card on which somebody exchanged the packed file."""
    opt = tmp_path / "opt"
    (opt / "merino" / "trusted").mkdir(parents=True)
    public_key_file(opt / "merino" / "trusted" / "ours.pub", SEED)
    before = tree(opt)
    unit = first_boot_unit("/opt/merino", "FILE", allow_unsigned=True)
    call = re.search(r"^ExecStartPre=\S+ -I \S+ (.*)$", unit, re.MULTILINE).group(1).split()
    arguments = [None if word.endswith("/FILE") else word for word in call]
    assert arguments.count(None) == 1 and "--service" in arguments
    mounts = f"mount --bind {opt} /opt && mount -t tmpfs none /etc/systemd && exec \"$@\""
    forged.by_application(*arguments, inside=lambda command: ["unshare", "-m", "sh", "-c", mounts, "sh", *command])
    assert tree(opt) == before
