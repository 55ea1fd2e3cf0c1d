"""Trust on every path to a board: nothing of the sender's runs before it is verified.

The sender's application leaves a file when it is run, and takes every signature. Boards are sshd on loopback, a root
file system, an image, and the unit of a first boot; all other kinds: test_delivery_forged.py. The Ansible role of
fleet/ runs against two sshd: it is idempotent, goes in batches, and stops after a board that fails.
"""

import base64
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import ssh_board
from packed_files import app_bytes, bundle_files, changed_golden, packed_bytes, renamed
from sample_roots import MISSING, WHY, ask_debugfs, make_image, make_root
from test_cli import run

from merino_edge.bundles.board_app import board_app
from merino_edge.delivery.first_boot import flash_rootfs
from merino_edge.delivery.image import flash_image
from merino_edge.embedded import FOLDER
from merino_runtime.delivery.archive import Signature, open_archive, signed_bytes
from merino_runtime.delivery.keys import key_line
from merino_runtime.delivery.units import first_boot_unit, service_unit
from merino_runtime.errors import MerinoError
from tests import ed25519_signer

FLEET, OTHERS = b"the key that boards trust".ljust(32), b"the key of another sender".ljust(32)
OVER_SSH = pytest.mark.skipif(not ssh_board.SSHD, reason=ssh_board.REASON)
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount, and write a board's files")
ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = ROOT / ".venv-ansible" / "bin" / "ansible-playbook"
SFTP = "Subsystem sftp internal-sftp"
pytestmark = pytest.mark.slow


def signed_by(seed):
    return lambda manifest: Signature(*ed25519_signer.sign(seed, signed_bytes(manifest)))


def public_key_file(path, seed):
    path.write_text(key_line(ed25519_signer.public_key_of(seed), path.stem))
    return path


def marking_app_bytes(path, marker):
    """An application that leaves a file when it is run, and otherwise installs whatever it is given."""
    app_bytes(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    spy = (
        f"open({str(marker)!r}, 'a').close()\nfrom merino_runtime.delivery import install\n"
        "install.check_signature = lambda archive, keys: b''\n"
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, spy.encode() + data if name == "__main__.py" else data)
    return path.read_bytes()


class Place:
    """Packed files whose applications leave `marker` when they are run; that of `ours` does not."""

    def __init__(self, folder):
        self.folder, self.marker = folder, folder / "the sender's application ran"
        self.ours = self.packed("ours", FLEET, board_app())
        self.newer = self.packed("newer", FLEET)
        self.forged = self.packed("forged", OTHERS)
        self.pub = public_key_file(folder / "ours.pub", FLEET)
        self.others_pub = public_key_file(folder / "others.pub", OTHERS)
        self.app = folder / "merino.pyz"
        self.app.write_bytes(board_app())

    def packed(self, name, seed, app=None):
        path = self.folder / f"{name}.merino"
        app = app or marking_app_bytes(self.folder / f"{name}.pyz", self.marker)
        path.write_bytes(packed_bytes(app, [renamed(bundle_files(FOLDER), name)], name, sign=signed_by(seed)))
        return path

    def installed(self, root, *more):
        """(exit code, stderr) of a local install of what boards trust, by this workstation's application."""
        return self.install(self.app, self.ours, root, "--trust", self.pub, *more)

    @staticmethod
    def install(app, archive, root, *more):
        command = [sys.executable, app, "install", archive, "--root", root, *more]
        done = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False, timeout=300)
        return done.returncode, done.stderr

    def ran(self):
        result = self.marker.exists()
        self.marker.unlink(missing_ok=True)
        return result


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("trust"))


@pytest.fixture(autouse=True)
def unmarked(place):
    place.marker.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def workstation(tmp_path_factory):
    return ssh_board.make_workstation(tmp_path_factory.mktemp("home") / "home")


@pytest.fixture(scope="module")
def board(tmp_path_factory, workstation):
    with ssh_board.running(tmp_path_factory.mktemp("board"), workstation.key, more=SFTP) as started:
        workstation.trusts(started)
        yield started


@pytest.fixture
def home(workstation, monkeypatch):
    monkeypatch.setenv("HOME", str(workstation.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def flash(archive, *arguments):
    """(exit code, the row of JSON or what was said here, stderr)"""
    short = "from merino_edge.delivery.ssh import flash; flash.BENCH += ('-r', '1', '-p', '8', '-n', '4')"
    code, out, err = run("flash", archive, *arguments, "--json", first=short)
    return code, json.loads(out)[0] if out.strip() else {"error": err.strip().splitlines()[-1]}, err


def current(root):
    return (root / "current").resolve().name


def test_local(place, tmp_path):
    root = tmp_path / "root"
    assert place.installed(root)[0] == 0
    code, output = place.install(root / "current" / "merino.pyz", place.forged, root)
    assert code == 1 and "not trusted here" in output.splitlines()[-1]
    assert current(root) == open_archive(str(place.ours)).id and not place.ran()
    assert place.install(root / "current" / "merino.pyz", place.newer, root)[0] == 0
    assert place.ran(), "a verified release tests itself: the sign that a marker would be seen"


@OVER_SSH
@pytest.mark.usefixtures("home")
def test_over_ssh_nothing_of_the_file_runs_before_it_is_verified(place, board):
    root = board.home / "trusting"
    where = ("--ssh", f"{board.address}{root}")
    for more in ((), ("--dry-run",)):
        code, row, err = flash(place.forged, *where, *more)
        assert code == 1 and "the board trusts no key yet" in row["error"] and "--trust" in row["error"]
        assert "copying" not in err and not place.ran() and not root.exists()
    assert place.installed(root)[0] == 0
    for more, output in (((), "the board trusts 1 other keys"), (("--dry-run",), "other keys"),
                       (("--allow=any-board",), "other keys"),
                       (("--trust", place.pub), "not trusted here")):  # fmt: skip
        code, row, _ = flash(place.forged, *where, *more)
        assert code == 1 and output in row["error"] and "\n" not in row["error"]
        assert not place.ran() and current(root) == open_archive(str(place.ours)).id
    # A board whose answer names a key that it does not trust: `install` there is asked all the same.
    (root / "trusted" / "ours.pub").write_text((root / "trusted" / "ours.pub").read_text().replace("merino-", "x-"))
    code, row, _ = flash(place.newer, *where)
    assert code == 1 and "is not a public key" in row["error"] and not place.ran()


@pytest.mark.nightly
@OVER_SSH
@pytest.mark.usefixtures("home")
def test_over_ssh_keys_are_trusted_where_the_release_is_current(place, board):
    root = board.home / "keys"
    assert place.installed(root)[0] == 0
    for keys, copied in (((place.pub, place.others_pub), True), ((place.pub, place.others_pub), False)):
        trust = [word for key in keys for word in ("--trust", key)]
        code, row, err = flash(place.ours, "--ssh", f"{board.address}{root}", *trust)
        assert code == 0 and row["was_there"] and ("copying" in err) == copied, row
        assert {path.name for path in (root / "trusted").iterdir()} == {"ours.pub", "others.pub"}


# The self-test is a stand-in's: the service's user may not enter the folder of this Python.
STAND_IN = b"import sys\nif sys.argv[1:2] == ['selftest']:\n    print('ok: stand-in')\n    sys.exit()\n"
WITH_RELEASE = """
mount -t tmpfs -o mode=755 none /opt
cp -a /etc /opt/etc
mount --bind /opt/etc /etc
mount -t tmpfs none /usr/local/lib
packages=$(/usr/bin/python3 -c 'import sys; print("/usr/local/lib/python%d.%d/dist-packages" % sys.version_info[:2])')
for name in numpy tokenizers onnxruntime; do
    mkdir -p $packages/$name
    touch $packages/$name/__init__.py
done
mkdir /opt/home
/usr/bin/python3 APP install stand-in.merino --root /opt/merino --trust PUB
"""


@pytest.mark.nightly
@AS_ROOT
@OVER_SSH
@pytest.mark.usefixtures("home")
def test_over_ssh_the_service_is_set_up_where_the_release_is_current(place, workstation, tmp_path):
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/opt"], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    app = tmp_path / "stand-in.pyz"
    with zipfile.ZipFile(app, "w") as made, zipfile.ZipFile(io.BytesIO(board_app())) as own:
        for name in own.namelist():
            made.writestr(name, (STAND_IN if name == "__main__.py" else b"") + own.read(name))
    archive = tmp_path / "stand-in.merino"
    archive.write_bytes(packed_bytes(app.read_bytes(), [bundle_files(FOLDER)], sign=signed_by(FLEET)))
    inside = WITH_RELEASE.replace("APP", str(place.app)).replace("PUB", str(place.pub))
    with ssh_board.running(tmp_path, workstation.key, "/usr/bin:/bin:/usr/sbin:/sbin", inside=inside,
                           home="/opt/home") as board:  # fmt: skip
        with workstation.known_hosts.open("a") as known:
            known.write(board.known_hosts_line)
        where = ("--ssh", f"root@{board.address}/opt/merino", "--service")
        code, row, _ = flash(archive, *where, "--dry-run")
        assert code == 0 and "set up merino.service" in row["plan"], row
        code, row, err = flash(archive, *where)
        assert code == 0 and row["was_there"] and "copying" in err, (row, err)
        assert "merino.service is enabled; systemd is not running here" in row["notes"], row
        code, row, _ = flash(archive, *where, "--dry-run")
        assert code == 0 and "is installed already" in row["plan"][-1], row


@AS_ROOT
@OVER_SSH
@pytest.mark.usefixtures("home")
def test_over_ssh_nothing_runs_that_another_user_of_the_board_can_change(place, board):
    """Neither the launcher of the release that is current, nor its environment's Python."""
    root = board.home / "theirs"
    assert place.installed(root)[0] == 0
    release = (root / "current").resolve()
    mark = f"#!/bin/sh\ntouch {shlex.quote(str(place.marker))}\n"
    (release / "env" / "bin").mkdir(parents=True)
    for name in ("merino", "env/bin/python"):
        (release / name).write_text(mark)
        (release / name).chmod(0o755)
    os.chown(root, 65534, 65534)
    where = ("--ssh", f"{board.address}{root}")
    code, row, _ = flash(place.ours, *where)
    assert code == 1 and "can be changed by another user than root" in row["error"], row
    assert row["notes"] == [f"{root} can be changed by another user of the board"]
    run("generate", "installed", "a", "-n", "1", *where)
    assert not place.ran()
    os.chown(root, 0, 0)
    run("generate", "installed", "a", "-n", "1", *where)
    assert place.ran(), "the sign that a marker would be seen"


PROVISIONED = """
mount -t tmpfs none /opt
cp -a /etc /opt/etc
mount --bind /opt/etc /etc
useradd -p '*' -s /bin/sh -d /opt/home -m pi
cp authorized_keys /opt/authorized_keys
cp -r merino /opt/merino
mkdir -p /etc/systemd/system/multi-user.target.wants
cp merino.service /etc/systemd/system/
ln -s ../merino.service /etc/systemd/system/multi-user.target.wants/
"""


@pytest.mark.nightly
@AS_ROOT
@OVER_SSH
@pytest.mark.usefixtures("home")
def test_an_ordinary_user_makes_no_second_installation_beside_the_service(place, workstation, tmp_path):
    """A board as a card leaves it: root's release and the service's unit. Its Python is the system's."""
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/opt"], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    assert place.installed(tmp_path / "merino")[0] == 0
    (tmp_path / "merino.service").write_text(service_unit("/opt/merino"))
    with ssh_board.running(tmp_path, workstation.key, "/usr/bin:/bin", inside=PROVISIONED, home="/opt/home",
                           keys="/opt/authorized_keys") as board:  # fmt: skip
        host = f"127.0.0.1:{board.port}"
        with workstation.known_hosts.open("a") as known:
            known.write(board.known_hosts_line)
        code, row, _ = flash(place.newer, "--ssh", f"pi@{host}", "--dry-run")
        assert code == 1 and "/opt/merino, and this user's would be others, in /opt/home/.local" in row["error"]
        for_service, second = re.search(r"root@HOST(\S+)\. .*: --ssh HOST(\S+)$", row["error"]).groups()
        code, row, _ = flash(place.newer, "--ssh", f"root@{host}{for_service}", "--dry-run")
        assert code == 0 and any("in place of" in line for line in row["plan"]), row
        code, row, _ = flash(place.newer, "--ssh", f"pi@{host}{second}", "--dry-run", "--trust", place.pub)
        assert code == 0 and "this is a second installation" in row["notes"][0], row


def staged(kind, folder):
    """(a function that flashes, a function that copies the flashed /opt/merino to a folder)"""
    tree = make_root(folder / "system")
    if kind == "rootfs":
        return (
            lambda archive, **how: flash_rootfs(archive, tree, **how),
            lambda to: shutil.copytree(tree / "opt/merino", to / "merino"),
        )
    image = make_image(folder / "board.img", tree)
    return (
        lambda archive, **how: flash_image(archive, image, **how),
        lambda to: ask_debugfs(image, f"rdump /opt/merino {to}"),
    )


@AS_ROOT
@pytest.mark.parametrize("kind", [
    "rootfs", pytest.param("image", marks=[pytest.mark.nightly, pytest.mark.skipif(bool(MISSING), reason=WHY)]),
])
def test_a_card_and_its_first_boot(kind, place, tmp_path):
    flash_card, copied = staged(kind, tmp_path)
    for trust in ([], [place.pub]):
        with pytest.raises(MerinoError, match="not trusted here"):
            flash_card(place.forged, trust=trust)
    flash_card(place.newer, trust=[place.pub])
    unit = first_boot_unit("/opt/merino")
    (opt := tmp_path / "opt").mkdir()
    copied(opt)
    assert (opt / "merino/incoming/merino.pyz").read_bytes() == board_app() and not place.ran()

    # The first boot of a card on which somebody exchanged the packed file.
    shutil.copy(place.forged, next((opt / "merino/incoming").glob("*.merino")))
    command = re.search("^ExecStart(?:Pre)?=/usr/bin/python3 (.*)$", unit, re.MULTILINE).group(1)
    private = f"mount --bind {opt} /opt && mount -t tmpfs none /etc/systemd && exec {sys.executable} {command}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", private], capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert done.returncode == 1 and "not trusted here" in done.stderr.splitlines()[-1], done.stderr
    assert not place.ran() and not (opt / "merino/current").exists()


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


@OVER_SSH
@pytest.mark.skipif(not PLAYBOOK.exists(), reason="no ansible-core here: make .venv-ansible")
def test_a_fleet_is_installed_once_and_stops_where_a_release_fails(fleet, nightly):
    play, boards, place = fleet
    def packed(name, files):
        path = place / f"{name}.merino"
        path.write_bytes(packed_bytes(app_bytes(place / f"{name}.pyz"), [files], name))
        return path

    def releases():
        links = [board.home / "merino" / "current" for board in boards]
        return [link.resolve().name if link.exists() else None for link in links]

    archive = packed("sample", bundle_files(FOLDER))
    result = open_archive(str(archive)).id

    if nightly:
        code, out, recap = play(archive, "--check")
        assert (code, recap) == (0, {"one": (1, 0), "two": (1, 0)}), out
        assert releases() == [None, None]

    code, out, recap = play(archive, *([] if nightly else ["--limit", "one"]))  # a board takes seconds
    before = [result, result if nightly else None]
    assert code == 0, out
    assert releases() == before
    assert all(changed for changed, _ in recap.values()) and len(recap) == sum(map(bool, before))

    if nightly:
        code, out, recap = play(archive)
        assert (code, recap) == (0, {"one": (0, 0), "two": (0, 0)}), out

    bad = packed("bad", changed_golden(bundle_files(FOLDER)))
    code, out, recap = play(bad)
    assert code != 0 and "self-test" in out
    assert set(recap) == {"one"} and recap["one"][1] == 1, "the second batch was not begun"
    assert releases() == before
    if not nightly:
        return

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
