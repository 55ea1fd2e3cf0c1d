"""`deploy` from a model to a board that answers, over a real sshd and into a root file system; and what it refuses."""

import os
import re

import pytest
import ssh_board
from sample_roots import make_root
from test_cli import run
from test_delivery_ssh_flash import QUICK_BENCH, SHORT

from merino_edge.delivery.keys import make_key
from merino_edge.embedded import FOLDER
from merino_runtime.bundle import load_bundle
from merino_runtime.delivery.archive import open_archive
from merino_runtime.delivery.keys import read_public_key

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not ssh_board.SSHD, reason=ssh_board.REASON)]
LIKE = ("--board", "raspberry-pi-4", "--precision", "int8")  # a PC has no model that a profile names


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("deploy")


@pytest.fixture(scope="module")
def workstation(place):
    return ssh_board.make_workstation(place / "home")


@pytest.fixture(autouse=True)
def home(workstation, monkeypatch):
    monkeypatch.setenv("HOME", str(workstation.home))
    for name in ("SSH_AUTH_SOCK", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def board(place, workstation):
    with ssh_board.running(place / "board", workstation.key) as started:
        workstation.trusts(started)
        yield started


def test_a_board_is_asked_gets_the_model_once_and_answers(board, workstation):
    where = ("--ssh", f"{board.address}{board.home}/merino")
    # A key of one's own is made; nobody can be asked here, so nothing happens on the board.
    code, _, err = run("deploy", "embedded", *where, *LIKE)
    assert code == 1 and "does not trust your key SHA256:" in err and "--yes" in err
    (private,) = (workstation.home / ".config/merino_edge").glob("deploy-*.key")
    assert private.stat().st_mode & 0o077 == 0
    assert not (board.home / "merino").exists()

    quick = QUICK_BENCH + f"from merino_edge.delivery.ssh import flash; flash.BENCH += {SHORT}"
    code, out, err = run("deploy", "embedded", *where, *LIKE, "--yes", first=quick)
    assert code == 0, err
    assert re.search(r"int8 on Raspberry Pi 4.*: [\d.]+ MB, [\d,.]+ tokens/s", err), err
    assert re.search(r"in int8: [\d,.]+ tokens/s; prefill [\d.]+ ms \(predicted [\d.]+\), decode", out), out
    assert f"merino-edge generate installed --ssh {where[1]}" in out
    (bundle,) = (workstation.home / ".cache/merino_edge/deploy").glob("*/bundle")
    written = bundle.stat().st_mtime_ns, load_bundle(str(bundle)).precision
    assert written[1] == "int8"

    # Again: the export is the same one, and the board trusts the key by now.
    code, out, err = run("deploy", "embedded", *where, *LIKE, first=quick)
    assert code == 0, err
    assert "exported before" in err and "trust the key" not in err
    assert bundle.stat().st_mtime_ns == written[0]
    code, out, err = run("generate", "installed", "Once upon a time", "-n", "8", *where)
    assert code == 0 and out.strip(), err


def test_a_system_that_boots_later_gets_the_package_and_the_key(tmp_path, workstation):
    if os.geteuid():
        pytest.skip("only root writes a root file system")
    root = make_root(tmp_path / "root")
    code, out, err = run("deploy", "embedded", "--rootfs", root, *LIKE)
    assert code == 0, err
    assert "the board that starts from it installs it" in err and "write /opt/merino/incoming/" in out
    public = next((workstation.home / ".config/merino_edge").glob("*.pub")).read_text().split()[1]
    assert any(public in path.read_text() for path in root.rglob("*.pub"))

    # A key of one's own in its place.
    fleet, root = make_key(tmp_path / "fleet"), make_root(tmp_path / "another")
    own = ("--sign", fleet[0])
    code, _, err = run("deploy", str(FOLDER), "--rootfs", root, *LIKE, *own)
    assert code == 0, err
    (package,) = root.rglob("*.merino")
    archive = open_archive(str(package))
    assert archive.signature.key == read_public_key(str(fleet[1])).key
    assert [path.name for path in root.rglob("*.pub")] == [fleet[1].name]


def test_what_is_refused_says_what_to_do(tmp_path):
    for words, said in {
        (): "give one of --ssh, --image, --rootfs",
        ("--rootfs", tmp_path, "--image", tmp_path / "a.img"): "has --image and --rootfs",
        ("--rootfs", tmp_path): "--board is missing",
        ("--rootfs", tmp_path, "--serve"): "go with --ssh, not --rootfs",
        ("--rootfs", tmp_path, "--board", "raspberry-pi-4"): "is not a root file system",
        ("--rootfs", tmp_path, "--chat"): "go with --ssh, not --rootfs",
        ("--image", __file__, "--board", "raspberry-pi-4", "--precision", "int3"): "choose auto",
    }.items():
        code, _, err = run("deploy", "embedded", *words)
        assert code == 1 and said in err, err
    code, _, err = run("deploy", "opt-350m", "--rootfs", tmp_path, "--board", "raspberry-pi-9")
    assert code == 1 and "raspberry-pi-9" in err
