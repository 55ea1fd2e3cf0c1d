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
from test_delivery_trust import (
    AS_ROOT,
    FLEET,
    OTHERS,
    OVER_SSH,
    PLAYBOOK,
    SFTP,
    marking_app_bytes,
    playing,
    public_key_file,
    signed_by,
)

from merino_edge.bundles.board_app import board_app
from merino_edge.delivery.first_boot import flash_rootfs
from merino_edge.delivery.image import flash_image
from merino_edge.delivery.ssh.board import Facts
from merino_edge.delivery.ssh.connect import parse_addresses
from merino_edge.delivery.ssh.flash import BENCH, check_signer, flash_all, package
from merino_edge.delivery.ssh.transfer import Source
from merino_edge.embedded import FOLDER
from merino_runtime.bundle import sha256_of
from merino_runtime.delivery.archive import open_archive
from merino_runtime.delivery.fit import this_machine
from merino_runtime.delivery.keys import key_base64
from merino_runtime.delivery.units import first_boot_unit
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
    refusal: dict[Path, str]

    def refused(self, path: Path, message: str, or_refusal: str = "") -> None:
        """`message`: all that was printed."""
        fits = re.search(self.refusal[path], message) or (or_refusal and or_refusal in message)
        assert fits and "\n" not in message and "Traceback" not in message, (path, message)
        assert not self.marker.exists(), path

    def by_application(
        self, *arguments: object, or_refusal: str = "", inside: Callable[[list[str]], list[str]] = list
    ) -> None:
        """Each file by the application; `arguments`: a call, in which None stands for the file."""
        calls = [[str(path if each is None else each) for each in arguments] for path in self.refusal]
        command = inside([sys.executable, "-c", DRIVER, str(self.app)])
        done = subprocess.run(command, input=json.dumps(calls), capture_output=True, text=True, check=False)
        if "unshare" in done.stderr or "mount:" in done.stderr:
            pytest.skip(f"nothing can be mounted here: {done.stderr}")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(rows) == len(calls), done.stderr
        for path, (code, output) in zip(self.refusal, rows, strict=True):
            assert code == 1 and output.splitlines()[-1].startswith("merino: "), (path, output)
            self.refused(path, output.splitlines()[-1], or_refusal)


def marking(marker):
    """An application that leaves a file when it is run, by whatever Python and from wherever."""
    return f"open({str(marker)!r}, 'a').close()\n".encode()


@pytest.fixture(scope="module")
def forged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forged")
    marker = folder / "the sender's application ran"
    refusal = {}
    for number, kind in enumerate(kinds_with(marking(marker))):
        path = folder / f"{number:03}.merino"
        path.write_bytes(kind.data)
        refusal[path] = kind.refusal
    (app := folder / "merino.pyz").write_bytes(board_app())
    return Forged(folder, app, public_key_file(folder / "ours.pub", SEED), marker, refusal)


def each_refused(forged, act, or_refusal=""):
    for path in forged.refusal:
        with pytest.raises(MerinoError) as caught:
            act(path)
        forged.refused(path, str(caught.value), or_refusal)


@pytest.mark.parametrize("trust", [True, False], ids=["with --trust", "without --trust"])
def test_before_anything_goes_over_ssh(trust, forged):
    """Without --trust the board's keys are asked for, which are known before the file is copied."""
    facts = Facts(this_machine("/"), "merino.pyz", "/opt/merino", None, keys=frozenset({key_base64(KEY)}))
    keys = [forged.pub] if trust else []

    def judge(path):
        check_signer(package(path, keys, allow=["unsigned"]), facts)

    each_refused(forged, judge, "not trusted there")


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
    forged.by_application("install", None, "--root", installed, "--allow=unsigned")
    forged.by_application("install", None, "--root", tmp_path / "new", "--allow=unsigned", "--trust", forged.pub)
    assert tree(tmp_path) == before


def test_on_ansibles_controller(forged):
    """With `merino_trust`; with `merino_allow_unsigned`, where the role compares the signer with the board's keys."""
    forged.by_application("info", "--check", None, "--json", "--trust", forged.pub, or_refusal="is not signed")
    others = {path: refusal for path, refusal in forged.refusal.items() if "not trusted here" not in refusal}
    assert len(others) == len(forged.refusal) - 1
    forged._replace(refusal=others).by_application("info", "--check", None, "--json")


@AS_ROOT
def test_at_a_first_boot(forged, tmp_path):
    """By the command of the unit, in the folder of a card on which somebody exchanged the packed file."""
    opt = tmp_path / "opt"
    (opt / "merino" / "trusted").mkdir(parents=True)
    public_key_file(opt / "merino" / "trusted" / "ours.pub", SEED)
    before = tree(opt)
    unit = first_boot_unit("/opt/merino", allow_unsigned=True)
    call = re.search(r"^ExecStartPre=\S+ -I \S+ (.*)$", unit, re.MULTILINE).group(1).split()
    arguments = [None if word.endswith("/package.merino") else word for word in call]
    assert arguments.count(None) == 1 and "--service" in arguments
    mounts = f"mount --bind {opt} /opt && mount -t tmpfs none /etc/systemd && exec \"$@\""
    forged.by_application(*arguments, inside=lambda command: ["unshare", "-m", "sh", "-c", mounts, "sh", *command])
    assert tree(opt) == before


GONE = b"a key that the board has withdrawn".ljust(32)[:32]
STATELESS = ("signature", "signer", "application", "manifest", "path", "unsigned")  # refused by a new board as well


class Fleet:
    """A board's files: what it has, and one file of each class that it must not take, all from one real bundle."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.marker = folder, folder / "the sender's application ran"
        self.pubs = {name: public_key_file(folder / f"{name}.pub", seed)
                     for name, seed in (("ours", FLEET), ("others", OTHERS), ("gone", GONE))}  # fmt: skip
        self.app = folder / "merino.pyz"
        self.app.write_bytes(board_app())
        self.ours, self.newer = self.packed("ours", FLEET, 5, board_app()), self.packed("newer", FLEET, 6)
        signed = self.newer.read_bytes()
        (altered := bytearray(signed))[open_archive(str(self.newer)).offsets["merino.pyz"] + 20] ^= 1
        sig = signed.index(b'"signature":"') + 20
        dot_dot = next(kind.data for kind in kinds_with(marking(self.marker)) if kind.name == "path dot-dot")
        self.classes = {
            "signature": (signed[:sig] + (b"A" if signed[sig:sig + 1] != b"A" else b"B") + signed[sig + 1:],
                          "manifest.sig is not a signature"),
            "signer": (self.packed("forged", OTHERS, 7).read_bytes(), "is not trusted|other keys"),
            "application": (bytes(altered), "merino.pyz is damaged"),
            "manifest": (signed.replace(b'"name":"newer"', b'"name":"never"', 1), "manifest.sha256 is not that"),
            "path": (dot_dot, "path"),
            "unsigned": (self.packed("unsigned", None, 8).read_bytes(), "(has no signature|is not signed)"),
            "older": (self.packed("older", FLEET, 4).read_bytes(), "older than what was installed"),
            "withdrawn": (self.packed("withdrawn", GONE, 9).read_bytes(), "withdrawn here|is not trusted"),
        }  # fmt: skip
        for name, (data, _) in self.classes.items():
            (folder / f"{name}.merino").write_bytes(data)

    def packed(self, name: str, seed: bytes | None, counter: int, app: bytes = b"") -> Path:
        path, bundle = self.folder / f"{name}.merino", renamed(bundle_files(FOLDER), name)
        app = app or marking_app_bytes(self.folder / f"{name}.pyz", self.marker)
        path.write_bytes(packed_bytes(app, [bundle], name, counter=counter, sign=seed and signed_by(seed)))
        return path

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.merino"

    def provision(self, root: Path) -> None:
        """`ours` is current, its key is trusted, another one was withdrawn."""
        trusts = [word for name in ("ours", "gone") for word in ("--trust", self.pubs[name])]
        for call in (["install", self.ours, *trusts], ["untrust", self.pubs["gone"]]):
            command = [sys.executable, self.app, *call, "--root", root]
            subprocess.run([str(each) for each in command], check=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    return Fleet(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="module")
def workstation(tmp_path_factory):
    return ssh_board.make_workstation(tmp_path_factory.mktemp("home") / "home")


@pytest.fixture
def board(tmp_path, workstation, monkeypatch):
    monkeypatch.setenv("HOME", str(workstation.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr("merino_edge.delivery.ssh.flash.BENCH", (*BENCH, "-r", "1", "-p", "8", "-n", "4"))
    with ssh_board.running(tmp_path, workstation.key, more=SFTP) as started:
        workstation.trusts(started)
        yield started


def flashed(board, package, root=""):
    return asyncio.run(flash_all(parse_addresses([f"{board.address}{root}"]), package))[0]


def current(root):
    return (root / "current").resolve().name


@OVER_SSH
def test_a_board_over_ssh_refuses_what_was_exchanged_after_it_was_checked_here(fleet, board, nightly):
    """By its installed application; then by the one that is sent, where `older` and `withdrawn` are not known yet. By
    day three of the classes."""
    root, new = board.home / "installed", board.home / "new"
    fleet.provision(root)
    installed, sent = (fleet.classes, STATELESS) if nightly else (("application", "withdrawn"), ("signer",))
    for where, names, keys in ((root, installed, []), (new, sent, [fleet.pubs["ours"]])):
        checked = package(fleet.newer, keys)
        for name in names:
            data = fleet.file(name)
            exchanged = Source("newer.merino", data, data.stat().st_size, sha256_of(str(data)))
            done = flashed(board, dataclasses.replace(checked, whole=exchanged), where)
            assert "not installed: " in done.error and "\n" not in done.error
            assert re.search(fleet.classes[name][1], done.error), (name, done.error)
            assert not fleet.marker.exists(), name
    assert current(root) == open_archive(str(fleet.ours)).id and not (new / "current").exists()


# One play for many files: the role for each of `steps`, and what became of it.
BOOK = """
- hosts: boards
  gather_facts: false
  tasks:
    - ansible.builtin.include_tasks: step.yml
      loop: "{{ steps }}"
      loop_control: {loop_var: step}
    - ansible.builtin.copy: {content: "{{ became | to_json }}", dest: PLACE/became.json}
      delegate_to: localhost
"""
STEP = """
- ansible.builtin.set_fact: {failure: ""}
- block:
    - ansible.builtin.include_role: {name: ROLE}
      vars:
        merino_file: "{{ step.file }}"
        merino_trust: "{{ step.trust | default([]) }}"
        merino_allow_unsigned: "{{ step.allow_unsigned | default(false) }}"
        merino_allow_downgrade: "{{ step.allow_downgrade | default(false) }}"
        merino_service: "{{ step.service | default(false) }}"
  rescue:
    - ansible.builtin.set_fact:
        failure: "{{ ansible_failed_result.msg | default('') }} {{ ansible_failed_result.stderr | default('') }}"
- ansible.builtin.command:
    argv: [sh, -c, 'test ! -e "$1" || echo ran; rm -f "$1"; basename "$(readlink "$2/current" || echo none)"', sh,
           "MARKER", "{{ merino_root }}"]
  changed_when: false
  register: after
- ansible.builtin.set_fact:
    became: "{{ became | default([]) + [[failure, after.stdout_lines, merino_differs | default(true)]] }}"
"""


@pytest.mark.nightly
@OVER_SSH
@pytest.mark.skipif(not PLAYBOOK.exists(), reason="no ansible-core here: make .venv-ansible")
def test_ansible_takes_what_is_verified_alone(fleet, board, workstation, tmp_path):
    """First contact; each class on a board with a release; an older file; keys and the service. In one play."""
    play, root = playing(tmp_path, workstation, {"one": board}), board.home / "merino"
    trust = [str(fleet.pubs["ours"])]
    both = [*trust, str(fleet.pubs["others"])]
    unknown, older = "which is not trusted on this board", open_archive(str(fleet.file("older"))).id
    first, newer = open_archive(str(fleet.ours)).id, open_archive(str(fleet.newer)).id
    # (file, variables, what is said or "", the release in use afterwards, behind "ran" where the marker was left)
    table = [
        ("signer", {}, unknown, ["none"]), ("signer", {"trust": trust}, "not trusted here", ["none"]),
        ("signer", {"allow_unsigned": True}, unknown, ["none"]), ("ours", {"trust": trust}, "", [first]),
        *((name, {}, refusal if name not in ("signer", "withdrawn") else unknown, [first])
          for name, (_, refusal) in fleet.classes.items() if name != "unsigned"),
        ("unsigned", {}, "is not signed", [first]),
        ("ours", {"trust": both}, "", [first]), ("ours", {"trust": both}, "", [first]),
        ("ours", {"service": True}, "--service (needs|cannot)", [first]),
        ("newer", {}, "", ["ran", newer]),
        ("older", {}, "older than what was installed", ["ran", newer]),  # by the one that is installed
        ("older", {"allow_downgrade": True}, "", ["ran", older]),
    ]  # fmt: skip
    steps = [{"file": str(fleet.file(name)), **more} for name, more, _, _ in table]
    for name, text in (("book.yml", BOOK), ("step.yml", STEP)):
        text = text.replace("PLACE", str(tmp_path)).replace("MARKER", str(fleet.marker))
        (tmp_path / name).write_text(text.replace("ROLE", str(PLAYBOOK.parents[2] / "fleet/roles/merino")))
    code, out, _ = play(None, "-e", json.dumps({"steps": steps}), book=tmp_path / "book.yml")
    assert code == 0, out
    became = json.loads((tmp_path / "became.json").read_text())
    assert len(became) == len(table)
    for (name, more, refusal, after), (failure, result, _) in zip(table, became, strict=True):
        output = re.sub(r"\s+", " ", failure)
        assert bool(output.strip()) == bool(refusal) and re.search(refusal, output), (name, more, output)
        assert result == after, (name, more, output)
    kept, again = (differs for (_, more, *_), (*_, differs) in zip(table, became, strict=True)
                   if more.get("trust") == both)  # fmt: skip
    assert (kept, again) == (True, False) and (root / "trusted" / "others.pub").exists()
