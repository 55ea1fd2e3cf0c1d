"""The service: counts starts, goes back where a new release keeps failing, marks good. And the units."""
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from packed_files import app_bytes, bundle_files, packed_bytes, renamed

from merino_runtime.__main__ import main
from merino_runtime.delivery import keys, probation, releases
from merino_runtime.delivery.install import install
from merino_runtime.delivery.service import check_service
from merino_runtime.delivery.units import first_boot_unit, serve_unit, service_unit
from merino_runtime.errors import MerinoError
from merino_runtime.io.lock import locked

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not sys.platform.startswith("linux"), reason="boards run Linux")]

OLD, NEW, KEPT = ("0" * 15 + digit for digit in "123")
# What a release is to the service: its launcher. This one passes the test unless there is a file `fails`.
LAUNCHER = """#!/bin/sh
here=$(dirname "$0")
echo "$1" >> "$here/calls"
case $1 in
    selftest) if [ -e "$here/fails" ]; then echo broken >&2; exit 1; fi; echo "ok: 4 greedy ids as expected" ;;
esac
"""


@pytest.fixture
def root(tmp_path):
    for name in ("releases", "state"):
        (tmp_path / name).mkdir()
    return tmp_path


def add(root, release_id):
    """A release whose only part is a launcher, swapped in as an install does it."""
    folder = root / "releases" / release_id
    folder.mkdir()
    (folder / "merino").write_text(LAUNCHER)
    (folder / "merino").chmod(0o755)
    releases.swap(str(root), probation.links_with(str(root), release_id))
    return folder


def step(root, name):
    """In this process: (exit code, what it said). The launcher that it starts is another one."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(["service", name, "--root", str(root)])
    return code, printed.getvalue()


def step_apart(root, name):
    """The same in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "merino_runtime", "service", name, "--root", str(root)],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
    out = process.communicate()[0].decode("utf-8")
    assert "Traceback" not in out, out
    return process.returncode, out


def start(root, step=step):
    """One start of the unit, of three steps of which one that fails ends it -> (exit code, what they said)."""
    output = ""
    for name in re.findall("service ([a-z]+) --root", service_unit(str(root))):
        code, out = step(root, name)
        output += out
        if code:
            break
    return code, output


def probation_of(root, release_id):
    return probation.read_probation(str(root), release_id)


def test_a_release_that_passes_is_good(root):
    folder = add(root, OLD)
    for _ in range(2):
        code, output = start(root, step_apart)
        assert code == 0 and f"release {OLD} generates its golden ids" in output
    assert probation_of(root, OLD) == probation.Probation(1, good=True)
    assert (folder / "calls").read_text().split() == ["selftest", "selftest"]


def test_three_failed_starts_go_back_to_the_release_before(root):
    add(root, OLD)
    assert start(root)[0] == 0
    (add(root, NEW) / "fails").write_text("")
    for number in (1, 2, 3):
        code, output = start(root)
        assert code == 1 and "broken" in output and probation_of(root, NEW).starts == number
        assert releases.links(str(root)) == releases.Links(NEW, OLD)
    code, output = start(root)
    assert code == 0 and f"back to {OLD}" in output and f"release {OLD} generates" in output
    assert releases.links(str(root)) == releases.Links(OLD, NEW) and probation_of(root, NEW).gave_up


@pytest.mark.parametrize("failed", ["tested", "gone"])
@pytest.mark.parametrize("damaged", [False, True])
def test_going_back_passes_over_a_release_of_a_withdrawn_key(root, failed, damaged):
    """If another good one is there, as one that a process still uses. Else, or if the list is damaged, it is used."""
    for release_id in (KEPT, OLD):
        folder = add(root, release_id)
        assert start(root)[0] == 0
    (folder / "manifest.sig").write_text(json.dumps({"key": keys.key_base64(b"k" * 32)}))
    keys.withdraw(str(root), [b"k" * 32])
    (add(root, NEW) / "fails").write_text("")
    releases.swap(str(root), releases.Links(NEW, OLD))  # as before the withdrawal
    if failed == "gone":
        shutil.rmtree(str(root / "releases" / NEW))
    if damaged:
        (root / "withdrawn.json").write_text("{}")
    output = "".join(start(root)[1] for _ in range(4))
    back = OLD if damaged else KEPT
    assert f"back to {back}" in output and releases.links(str(root)).current == back
    shutil.rmtree(str(root / "releases" / back))
    releases.swap(str(root), releases.Links(None, OLD))
    assert damaged or f"back to {OLD}" in start(root)[1]


def test_a_good_release_that_fails_is_no_reason_to_go_back(root):
    add(root, OLD)
    folder = add(root, NEW)
    assert start(root)[0] == 0
    (folder / "fails").write_text("")
    # Marked good by a person, after many starts.
    probation.write_probation(str(root), NEW, probation.Probation(starts=9, good=True))
    for _ in range(5):
        assert start(root)[0] == 1
    assert releases.links(str(root)) == releases.Links(NEW, OLD)


def test_two_releases_that_fail_do_not_take_turns_for_ever(root):
    for release_id in (OLD, NEW):
        (add(root, release_id) / "fails").write_text("")
    seen = []
    for _ in range(12):
        assert start(root)[0] == 1
        seen.append(releases.links(str(root)).current)
    assert seen == [NEW] * 3 + [OLD] * 9


def test_a_persons_rollback_gives_its_starts_again(root):
    add(root, OLD)
    (add(root, NEW) / "fails").write_text("")
    for _ in range(4):
        start(root)
    assert releases.links(str(root)).current == OLD
    with locked(str(root), "rollback"):
        probation.rollback(str(root))
    for number in (1, 2, 3):
        assert start(root)[0] == 1 and probation_of(root, NEW).starts == number
    assert start(root)[0] == 0 and releases.links(str(root)).current == OLD


def test_a_start_is_counted_before_what_may_kill_the_board(root):
    """The launcher's self-test here ends the process that asked for it, as a power cut would."""
    folder = add(root, OLD)
    (folder / "merino").write_text(LAUNCHER.replace("selftest) ", "selftest) kill -9 $PPID; "))
    for number in (1, 2):
        assert start(root, step_apart)[0] == -9
        assert probation_of(root, OLD).starts == number


def test_a_swap_that_was_cut_is_completed_before_the_start(root):
    add(root, OLD)
    add(root, NEW)
    os.unlink(str(root / "previous"))
    (root / "swap.json").write_text(json.dumps({"to": {"current": NEW, "previous": OLD}}))
    assert start(root)[0] == 0
    assert releases.links(str(root)) == releases.Links(NEW, OLD) and not (root / "swap.json").exists()


def test_a_real_release_that_fails_in_service(tmp_path, bundle_dirs):
    """Installed, started, damaged afterwards: the release before it generates."""
    files, root = bundle_files(bundle_dirs["portable"]), str(tmp_path / "root")
    app = app_bytes(tmp_path / "merino.pyz")
    for name in ("old", "new"):
        (tmp_path / name).write_bytes(packed_bytes(app, [renamed(files, name)], name))
        install(str(tmp_path / name), root, allow_unsigned=True)
        if name == "old":
            assert start(tmp_path / "root")[0] == 0
            assert (tmp_path / "root" / "merino.pyz").read_bytes() == app, "it counts the starts from now on"
    (tmp_path / "root" / "current" / "bundle" / "model.onnx").write_bytes(b"")
    for _ in range(3):
        code, output = start(tmp_path / "root")
        assert code == 1 and "model.onnx" in output
    code, output = start(tmp_path / "root")
    assert code == 0 and "generates its" in output and probation.status(root)["current"]["bundle"] == "old"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("unit", ["merino.service", "merino-install.service", "merino-serve.service"])
def test_systemd_takes_the_units(tmp_path, unit):
    root = tmp_path / "root"
    root.mkdir()
    text = {"merino.service": service_unit(str(root)), "merino-serve.service": serve_unit(str(root)),
            "merino-install.service": first_boot_unit(str(root), True)}[unit]
    if unit == "merino-serve.service":  # which it requires
        (tmp_path / "merino.service").write_text(service_unit(str(root)).replace("User=merino", "User=root"))
    current = root / "current"
    current.mkdir()
    shutil.copy("/bin/true", str(current / "merino"))
    (tmp_path / unit).write_text(text.replace("User=merino", "User=root"))  # that user is made by `install --service`
    process = subprocess.Popen(["systemd-analyze", "verify", "--man=no", str(tmp_path / unit)],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = process.communicate()[0].decode("utf-8")
    own = [line for line in out.splitlines() if unit in line and "python3" not in line]
    assert own == [], out
    # systemd 237 refuses a unit of Type=oneshot with Restart=
    assert ("Restart=" in text) != ("Type=oneshot" in text)


def test_the_server_runs_behind_the_test_of_its_release_and_comes_back():
    text = serve_unit("/opt/merino")
    for line in ("Requires=merino.service", "PartOf=merino.service", "Restart=always", "User=merino",
                 "ExecStart=/opt/merino/current/merino serve installed $OPTIONS",
                 "EnvironmentFile=-/etc/merino/serve.env"):
        assert line in text.splitlines()
    assert "Wants=merino-serve.service" in service_unit("/opt/merino").splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="asks what root may")
@pytest.mark.parametrize("root", ["/home/someone/merino", "/root/merino", "/tmp/merino", "/opt/a folder"])
def test_a_service_cannot_run_from_what_it_does_not_see(root):
    if not shutil.which("systemctl") or not shutil.which("useradd"):
        pytest.skip("no systemd here")
    with pytest.raises(MerinoError, match="--service cannot run from"):
        check_service(root)


@pytest.mark.skipif(os.geteuid() != 0, reason="asks what root may")
def test_the_tools_of_root_are_found_where_path_lacks_their_folder(monkeypatch):
    if not shutil.which("systemctl") or not shutil.which("useradd"):
        pytest.skip("no systemd here")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert shutil.which("useradd") is None, "else this proves nothing here"
    check_service("/opt/merino")
