"""The systemd service: the verb `service`, and its setup (`install --service`). `units` has the texts of the units.

A start has three steps. Root counts it and may roll back; the service's user tests the release; root marks it good.
After three failed starts of a new release the service rolls back. ROOT/merino.pyz, from a release that was good, runs
all three, so that no damage of the release under test stops them. Standard library only.
"""
import contextlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from typing import Callable, List, Optional, Sequence

from merino_runtime.bundle import sha256_of
from merino_runtime.delivery import probation, releases, units
from merino_runtime.delivery.archive import SIGNATURE
from merino_runtime.delivery.manifest import APP, NAME, parse_manifest
from merino_runtime.delivery.packages import selftest
from merino_runtime.delivery.units import MOST_STARTS, PYTHON, SERVE_UNIT, UNIT, USER
from merino_runtime.errors import MerinoError, last_line, machine_fault
from merino_runtime.io.json_file import value_of
from merino_runtime.io.lock import hold, is_root, raising_machine_faults
from merino_runtime.io.outputs import write_output

UNITS = "/etc/systemd/system"
GPU_DEVICES = ("/dev/nvmap", "/dev/nvhost-gpu")  # of a Jetson; their group may open them
WAIT_S = 1800.0  # for an install that runs when the board starts
HIDDEN = ("/home", "/root", "/run", "/tmp")  # from a hardened service
Report = Callable[[str], None]


def begin_start(root: str, report: Report) -> None:
    """Count the start, as root, before the release is tested. Go back to the release before it if a new one has failed
    too often, or is gone. A fault such as a full disk does not prevent the start."""
    try:
        with releases.changing(root, "service", WAIT_S):
            links = releases.links(root)
            if links.current is None:
                if links.previous is not None:
                    releases.swap(root, releases.Links(probation.rollback_target(root, links), None))
                    report(f"the release in use is gone: back to {releases.linked(root, releases.CURRENT)}")
                return
            state = probation.count_start(root, links.current)
            target = probation.rollback_target(root, links)
            if state.good or state.starts <= MOST_STARTS or target is None:
                return
            if probation.read_probation(root, target).gave_up:  # otherwise the two would alternate forever
                return
            probation.rollback(root, gave_up=True)
            report(f"release {links.current} failed {MOST_STARTS} starts: back to {target}")
            for note in probation.withdrawn_notes(root):
                report(note)
            probation.count_start(root, target)
    except MerinoError as error:
        report(f"this start is not counted: {error}")


def try_release(root: str, report: Report) -> None:
    """Test the release, as the service's user. Raise MerinoError if it fails: systemd then starts everything again."""
    current = _current(root)
    folder = releases.release_folder(root, current)
    hold(folder)
    selftest(folder)
    report(f"release {current} generates its golden ids")


def end_start(root: str, report: Report) -> None:
    """Mark the release good, as root, after it passed its test, and keep its application as the one that counts starts.
    A release that was installed during the test of another one stays on probation."""
    with releases.changing(root, "service", WAIT_S):
        current = _current(root)
        state = probation.read_probation(root, current)
        if state.testing:
            probation.mark_good(root, current)
            report(f"release {current} is good")
            try:
                keep_application(root, current)
            except MerinoError as error:
                report(f"starts are counted by the application of an earlier release: {error}")
        elif not state.good:
            report(f"release {current} was installed meanwhile: its own start will test it")


def _current(root: str) -> str:
    current = releases.linked(root, releases.CURRENT)
    if current is None:
        raise MerinoError(f"no release is installed in {root}. {releases.INSTALL_FIRST}")
    return current


def keep_application(root: str, release_id: str) -> None:
    """Copy the application of this good release to ROOT/merino.pyz, if another one is there, after its signature, by
    which a withdrawal finds it. It counts the starts, so it must be the file of the release's manifest, able to report
    what is installed, and not signed by a withdrawn key. Raise MerinoError if it is not."""
    folder = releases.release_folder(root, release_id)
    app, kept = os.path.join(folder, APP), os.path.join(root, APP)
    with raising_machine_faults(f"read {folder}"):
        with open(os.path.join(folder, NAME), "rb") as file:
            manifest = parse_manifest(file.read(), folder)
        expected = next(entry.sha256 for entry in manifest.files if entry.path == APP)
        if probation.is_withdrawn(root, folder):
            raise MerinoError(f"{app} is signed by a withdrawn key. Install another release.")
        if os.path.exists(kept) and sha256_of(kept) == expected and not probation.is_withdrawn(root, root):
            return
        command = [sys.executable or PYTHON, "-I", app, "status", "--root", root, "--json"]
        reported = None
        if sha256_of(app) == expected:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            with contextlib.suppress(ValueError, KeyError, TypeError):
                reported = value_of(done.stdout.decode("utf-8", "replace"))["current"]["id"]
        if reported != release_id:
            raise MerinoError(f"{app} is damaged, or cannot report what is installed. Install the release again.")
        _keep(root, app)


def _keep(root: str, app: str) -> None:
    """Copy an application and its signature, if there is one, to ROOT."""
    for source, name in ((os.path.join(os.path.dirname(app), SIGNATURE), SIGNATURE), (app, APP)):
        target = os.path.join(root, name)
        if os.path.exists(source):
            with open(source, "rb") as file:
                write_output(target, file.read())
        elif os.path.exists(target):
            os.unlink(target)


def replace_withdrawn_application(root: str) -> List[str]:
    """Replace ROOT/merino.pyz, if a withdrawn key signed it, by the application of another good release. Return
    notes."""
    if not os.path.exists(os.path.join(root, APP)) or not probation.is_withdrawn(root, root):
        return []
    for release_id in releases.release_ids(root):
        if probation.read_probation(root, release_id).good:
            with contextlib.suppress(MerinoError):
                keep_application(root, release_id)
                return []
    return [f"{root}/{APP}, which counts the starts, is signed by a withdrawn key: the next good release replaces it"]


def check_service(root: str) -> None:
    """Raise MerinoError if no service can be set up, before anything is installed."""
    if not is_root():
        raise MerinoError("--service needs root: it makes a user and a unit of systemd. Run it with sudo, or install "
                          "without --service into a folder of your own.")
    missing = [name for name in ("systemctl", "useradd", PYTHON) if shutil.which(name, path=_search_path()) is None]
    if missing:
        raise MerinoError(f"--service needs {' and '.join(missing)}, which this system lacks. Install without it.")
    inside = [folder for folder in HIDDEN if (os.path.realpath(root) + "/").startswith(folder + "/")]
    if inside or not re.match(r"[A-Za-z0-9._/+-]*\Z", root):
        raise MerinoError(f"--service cannot run from {root}: a service sees nothing of {', '.join(HIDDEN)}, and a "
                          "unit takes letters, digits and ._/+- alone. Choose a folder such as "
                          f"{releases.SYSTEM_ROOT} with --root.")


def service_root() -> Optional[str]:
    """Return the folder of releases that merino.service uses at each start of the board; None if it is not enabled."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if os.path.lexists(os.path.join(UNITS, "multi-user.target.wants", UNIT)):
            with open(os.path.join(UNITS, UNIT), encoding="utf-8") as file:
                match = re.search(r"^Exec.* --root (/\S+)", file.read(), re.MULTILINE)
            return match.group(1) if match else None
    return None


def make_user(root: str) -> None:
    """Make the service's user and ROOT/state, its only folder, unless they exist. The caller holds the lock."""
    import grp  # here, because Windows has no such modules, and the workstation writes units
    import pwd

    state = os.path.join(root, releases.STATE)
    try:
        pwd.getpwnam(USER)
    except KeyError:
        _run(["useradd", "--system", "--user-group", "--home-dir", state, "--no-create-home",
              "--shell", "/usr/sbin/nologin", USER])
        groups = set()  # those that may open the GPU of a Jetson: building and running engines needs them
        for path in GPU_DEVICES:
            with contextlib.suppress(OSError, KeyError):
                groups.add(grp.getgrgid(os.stat(path).st_gid).gr_name)
        if groups:
            _run(["usermod", "--append", "--groups", ",".join(sorted(groups)), USER])
    user = pwd.getpwnam(USER)
    with raising_machine_faults(f"make {state}"):
        if not os.path.lexists(state):
            os.mkdir(state, 0o755)
        handle = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(handle).st_uid != user.pw_uid:
                os.fchown(handle, user.pw_uid, user.pw_gid)
        finally:
            os.close(handle)


def set_up_service(root: str, serve: bool = False) -> List[str]:
    """Write and enable the unit for an installed release, and start it if systemd runs. Return notes. This ends the
    unit of the first boot. serve: write and enable the server's unit too. Raise MerinoError if a step fails."""
    # 1. The application that counts the starts until a release is good: the one that has just installed the release,
    #    or, if that runs from sources, the release's own.
    with releases.changing(root, "install", WAIT_S):
        running = os.path.realpath(sys.argv[0] or os.curdir)
        if not os.path.exists(os.path.join(root, APP)):
            with raising_machine_faults(f"read {running}"):
                if zipfile.is_zipfile(running):
                    _keep(root, running)
                else:
                    keep_application(root, _current(root))
        # 2. The units.
        write_output(os.path.join(UNITS, UNIT), units.service_unit(root))
        if serve:
            write_output(os.path.join(UNITS, SERVE_UNIT), units.serve_unit(root))
    for unit in [UNIT, *[SERVE_UNIT] * serve]:
        _run(["systemctl", "enable", "--quiet", unit])
    if os.path.lexists(os.path.join(UNITS, units.FIRST_BOOT_UNIT)):
        _run(["systemctl", "disable", "--quiet", units.FIRST_BOOT_UNIT])
    # 3. The start.
    if not os.path.isdir("/run/systemd/system"):
        return [f"{UNIT} is enabled; systemd is not running here"]
    _run(["systemctl", "daemon-reload"])
    subprocess.run(["systemctl", "reset-failed", "--quiet", UNIT], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _run(["systemctl", "restart", "--no-block", UNIT])
    notes = [f"{UNIT} is enabled and started: it tests this release at each start of the board"]
    if serve:
        notes.append(f"{SERVE_UNIT} is enabled: it serves http://127.0.0.1:8080 once that test is passed, with the "
                     f"options that {units.SERVE_OPTIONS} has")
    return notes


def _search_path() -> str:
    """Return PATH with the folders of Debian's programs for root, which root's PATH over ssh may lack."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env=dict(os.environ, PATH=_search_path()))
    except OSError as error:
        raise machine_fault(f"start {command[0]}", error) from error
    if done.returncode:
        raise MerinoError(f"`{' '.join(command)}` failed: {last_line(done.stdout, done.returncode)}. The release is "
                          "installed; mend this and run the same command again.")
