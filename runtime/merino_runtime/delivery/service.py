"""What systemd runs: the texts of the units, the verb `service`, and setting both up (`install --service`).

A start has four steps. Root counts it and may go back to the release before; the service's user tests the release; root
marks it good; the user probes the board, once for each release. After three failed starts of a new release the service
rolls back. All four are run by ROOT/merino.pyz, of a release that was good, so that no damage of the release under test
stops them. Standard library only.
"""
import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from typing import Callable, List, Sequence

from merino_runtime.bundle import sha256_of
from merino_runtime.delivery import probation, releases
from merino_runtime.delivery.archive import SIGNATURE
from merino_runtime.delivery.manifest import APP, NAME, parse_manifest
from merino_runtime.delivery.release_runs import selftest
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import value_of
from merino_runtime.io.lock import hold, raising_machine_faults
from merino_runtime.io.machine_faults import last_line, machine_fault
from merino_runtime.io.outputs import write_output

USER = "merino"
SERVE_UNIT, SERVE_OPTIONS = "merino-serve.service", "/etc/merino/serve.env"
UNIT, UNITS = "merino.service", "/etc/systemd/system"
FIRST_BOOT_UNIT, INCOMING = "merino-install.service", "incoming"
FIRST_WORDS = (releases.INSTALLED, '"Once upon a time"', "-n", "24", "--temperature", "0")
PROBE, PROBED, PROBE_TIMEOUT_S = "probe.json", "probed", 600.0  # in ROOT/state
PYTHON = "/usr/bin/python3"  # the system's: what root runs at each start
GPU_DEVICES = ("/dev/nvmap", "/dev/nvhost-gpu")  # of a Jetson; their group may open them
WAIT_S = 1800.0  # for an install that runs when the board starts
# Units that enlarge a card's file system at its first start: systemd's, cloud-init's, Raspberry Pi OS's, JetPack's.
GROWING = ("systemd-repart.service", "systemd-growfs-root.service", "systemd-growfs@-.service", "cloud-init.service",
           "rpi-resize.service", "resize2fs_once.service", "nvresizefs.service", "nvfb.service")
HIDDEN = ("/home", "/root", "/run", "/tmp")  # from a hardened service
Report = Callable[[str], None]


def service_unit(root: str) -> str:
    """merino.service. Runs on systemd 237 (JetPack 4), which takes no Restart= with Type=oneshot. `+`: as root. The
    server is wanted where there is one, so that it is started again with each start of this."""
    run = f"{PYTHON} -I {root}/{APP} service"
    return f"""[Unit]
Description=merino: self-test of the installed language model
ConditionPathIsDirectory={root}/{releases.RELEASES}
After=local-fs.target
Wants={SERVE_UNIT}
StartLimitIntervalSec=3600
StartLimitBurst={probation.MOST_STARTS + 3}

[Service]
Type=simple
RemainAfterExit=yes
User={USER}
ExecStartPre=+{run} begin --root {root}
ExecStartPre={run} test --root {root}
ExecStartPre=+{run} end --root {root}
ExecStart={run} probe --root {root}
TimeoutStartSec=infinity
Restart=on-failure
RestartSec=5
Environment=HOME={root}/{releases.STATE} XDG_CACHE_HOME={root}/{releases.STATE}
UMask=0022
{hardened(root)}RestrictAddressFamilies=AF_UNIX

[Install]
WantedBy=multi-user.target
"""


def hardened(root: str) -> str:
    """The limits of a process of the service's user, without those on sockets."""
    return f"""NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ReadWritePaths={root}/{releases.STATE}
ProtectHome=yes
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
"""


def serve_unit(root: str) -> str:
    """merino-serve.service, written by `install --serve`: serves the release in use once it has passed its test. An
    upgrade and a rollback restart it with merino.service. Root may give options in SERVE_OPTIONS."""
    return f"""[Unit]
Description=merino: serves the installed language model
Requires={UNIT}
PartOf={UNIT}
After={UNIT} network.target
StartLimitIntervalSec=600
StartLimitBurst=20

[Service]
User={USER}
EnvironmentFile=-{SERVE_OPTIONS}
ExecStart={root}/{releases.CURRENT}/{releases.LAUNCHER} serve {releases.INSTALLED} $OPTIONS
Restart=always
RestartSec=5
Environment=HOME={root}/{releases.STATE} XDG_CACHE_HOME={root}/{releases.STATE}
UMask=0077
{hardened(root)}RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6

[Install]
WantedBy=multi-user.target
"""


def first_boot_unit(root: str, archive_name: str, allow_unsigned: bool = False) -> str:
    """merino-install.service: installs what lies in ROOT/incoming, after the file system has grown to its card. A
    failure is tried again, soon and at the next start of the board; `install --service` ends with disabling the unit.
    The console shows its output, then a few words that the release generates, by the service's user. They fail no
    install: a model may have no tokenizer."""
    unsigned = " --allow-unsigned" if allow_unsigned else ""
    return f"""[Unit]
Description=merino: installs the language model that came with this card
After=local-fs.target {" ".join(GROWING)}
StartLimitIntervalSec=3600
StartLimitBurst=3

[Service]
Type=simple
RemainAfterExit=yes
ExecStartPre={PYTHON} -I {root}/{INCOMING}/{APP} install {root}/{INCOMING}/{archive_name} --root {root} --service{unsigned}
ExecStart=-/sbin/runuser -u {USER} -- {root}/{releases.CURRENT}/{releases.LAUNCHER} generate {" ".join(FIRST_WORDS)}
TimeoutStartSec=infinity
Restart=on-failure
RestartSec=10
Environment=HOME=/root
UMask=0022
StandardOutput=journal+console
StandardError=journal+console

[Install]
WantedBy=multi-user.target
"""  # noqa: E501


def begin_start(root: str, report: Report) -> None:
    """By root, before the release is tried: counts the start, and goes back to the release before where a new one has
    failed too often, or is gone. What cannot be written, as on a full disk, is no reason not to start."""
    try:
        with releases.changing(root, "service", WAIT_S):
            now = releases.links(root)
            if now.current is None and now.previous is not None:
                releases.swap(root, releases.Links(probation.before(root, now), None))
                report(f"the release in use is gone: back to {releases.linked(root, releases.CURRENT)}")
            elif now.current is not None:
                _count_or_go_back(root, now, report)
    except MerinoError as error:
        report(f"this start is not counted: {error}")


def _count_or_go_back(root: str, now: releases.Links, report: Report) -> None:
    counted = probation.count_start(root, now.current or "")
    if not counted.good and counted.starts > probation.MOST_STARTS and _may_go_back(root, now):
        to = probation.rollback(root, gave_up=True)
        report(f"release {now.current} failed {probation.MOST_STARTS} starts: back to {to.current}")
        for note in probation.withdrawn_notes(root):
            report(note)
        probation.count_start(root, to.current or "")


def try_release(root: str, report: Report) -> None:
    """By the service's user. Raises MerinoError where the release fails: systemd then starts all of it again."""
    current = _current(root)
    folder = releases.release_folder(root, current)
    hold(folder)
    selftest(folder)
    report(f"release {current} generates its golden ids")


def end_start(root: str, report: Report) -> None:
    """By root, when the test was passed: marks the release good, and keeps its application as the one that counts
    starts. Not a release that was installed while another one was tested."""
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


def _may_go_back(root: str, now: releases.Links) -> bool:
    """There is a previous release, and it is not one that was left already: else the two would take turns for ever."""
    to = probation.before(root, now)
    return to is not None and not probation.read_probation(root, to).gave_up


def probe_once(root: str, report: Report) -> None:
    """By the service's user, once for each release. Noted before it is measured: a board that dies of the load must
    not do it at each start. A probe that fails is no failure of the release."""
    current, state = _current(root), os.path.join(root, releases.STATE)
    folder, noted = releases.release_folder(root, current), os.path.join(state, PROBED)
    known = set()
    with contextlib.suppress(OSError), open(noted, encoding="ascii", errors="replace") as file:
        known = set(file.read(1000).split())
    if current in known:
        return
    hold(folder)
    write_output(noted, "\n".join(sorted({current, *known.intersection(os.listdir(os.path.dirname(folder)))})) + "\n")
    command = [os.path.join(folder, releases.LAUNCHER), "probe", "-o", os.path.join(state, PROBE)]
    try:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=PROBE_TIMEOUT_S).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        report(f"the probe failed: {error}")
    else:
        report(f"the probe ended with exit code {code}" if code else f"the board was measured: {state}/{PROBE}")


def keep_application(root: str, release_id: str) -> None:
    """ROOT/merino.pyz becomes the application of this release, which is good. It counts the starts, so it must be the
    file of the release's manifest, able to report what is installed, and not signed by a withdrawn key. Nothing where
    it is so already."""
    folder = releases.release_folder(root, release_id)
    own = os.path.join(folder, APP)
    with raising_machine_faults(f"read {folder}"):
        with open(os.path.join(folder, NAME), "rb") as file:
            manifest = parse_manifest(file.read(), folder)
        expected = next(entry.sha256 for entry in manifest.files if entry.path == APP)
        if probation.is_withdrawn(root, folder):
            raise MerinoError(f"{own} is signed by a withdrawn key. Install another release.")
        kept = os.path.join(root, APP)
        if os.path.exists(kept) and sha256_of(kept) == expected and not probation.is_withdrawn(root, root):
            return
        if sha256_of(own) != expected or not _reports_status(own, root, release_id):
            raise MerinoError(f"{own} is damaged, or cannot report what is installed. Install the release again.")
        _keep(root, own)


def _keep(root: str, app: str) -> None:
    """Copy an application to ROOT/merino.pyz, after its signature, by which a withdrawal finds it."""
    for source, name in ((os.path.join(os.path.dirname(app), SIGNATURE), SIGNATURE), (app, APP)):
        target = os.path.join(root, name)
        if os.path.exists(source):
            with open(source, "rb") as file:
                write_output(target, file.read())
        elif os.path.exists(target):
            os.unlink(target)


def replace_withdrawn_application(root: str) -> List[str]:
    """Replace ROOT/merino.pyz, if a withdrawn key signed it, by the application of another good release -> notes."""
    if not os.path.exists(os.path.join(root, APP)) or not probation.is_withdrawn(root, root):
        return []
    for release_id in releases.release_ids(root):
        if probation.read_probation(root, release_id).good:
            with contextlib.suppress(MerinoError):
                keep_application(root, release_id)
                return []
    return [f"{root}/{APP}, which counts the starts, is signed by a withdrawn key: the next good release replaces it"]


def _reports_status(app: str, root: str, release_id: str) -> bool:
    command = [sys.executable or PYTHON, "-I", app, "status", "--root", root, "--json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        return bool(value_of(done.stdout.decode("utf-8", "replace"))["current"]["id"] == release_id)
    except (ValueError, KeyError, TypeError):
        return False


def check_service(root: str) -> None:
    """Raises MerinoError where no service can be set up: for before anything is installed."""
    if os.geteuid() != 0:
        raise MerinoError("--service needs root: it makes a user and a unit of systemd. Run it with sudo, or install "
                          "without --service into a folder of your own.")
    missing = [name for name in ("systemctl", "useradd", PYTHON) if shutil.which(name, path=_search_path()) is None]
    if missing:
        raise MerinoError(f"--service needs {' and '.join(missing)}, which this system lacks. Install without it.")
    inside = [folder for folder in HIDDEN if (os.path.realpath(root) + "/").startswith(folder + "/")]
    if inside or not _plain(root):
        raise MerinoError(f"--service cannot run from {root}: a service sees nothing of {', '.join(HIDDEN)}, and a "
                          "unit takes letters, digits and ._/+- alone. Choose a folder such as "
                          f"{releases.SYSTEM_ROOT} with --root.")


def _plain(path: str) -> bool:
    return all(letter.isalnum() and ord(letter) < 128 or letter in "._/+-" for letter in path)


def make_user(root: str) -> None:
    """Makes the service's user and ROOT/state, its only folder. What is there already is kept. Needs the lock."""
    import pwd  # here, because Windows has no such module, and the workstation writes units

    try:
        pwd.getpwnam(USER)
    except KeyError:
        _run(["useradd", "--system", "--user-group", "--home-dir", os.path.join(root, releases.STATE),
              "--no-create-home", "--shell", "/usr/sbin/nologin", USER])
        groups = sorted({_group_of(path) for path in GPU_DEVICES if os.path.exists(path)} - {""})
        if groups:  # whoever builds and runs engines on a Jetson opens these
            _run(["usermod", "--append", "--groups", ",".join(groups), USER])
    user, state = pwd.getpwnam(USER), os.path.join(root, releases.STATE)
    with raising_machine_faults(f"make {state}"):
        if not os.path.lexists(state):
            os.mkdir(state, 0o755)
        handle = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(handle).st_uid != user.pw_uid:
                os.fchown(handle, user.pw_uid, user.pw_gid)
        finally:
            os.close(handle)


def _group_of(path: str) -> str:
    import grp

    try:
        return grp.getgrgid(os.stat(path).st_gid).gr_name
    except (OSError, KeyError):
        return ""


def set_up_service(root: str, serve: bool = False) -> List[str]:
    """Writes and enables the unit for a release that is installed, and starts it where systemd runs -> notes. The unit
    of the first boot ends with that. serve: the server's unit too. Raises MerinoError where a step fails."""
    with releases.changing(root, "install", WAIT_S):
        if not os.path.exists(os.path.join(root, APP)):
            _keep_running_application(root)
        write_output(os.path.join(UNITS, UNIT), service_unit(root))
        if serve:
            write_output(os.path.join(UNITS, SERVE_UNIT), serve_unit(root))
    for unit in [UNIT, *[SERVE_UNIT] * serve]:
        _run(["systemctl", "enable", "--quiet", unit])
    if os.path.lexists(os.path.join(UNITS, FIRST_BOOT_UNIT)):
        _run(["systemctl", "disable", "--quiet", FIRST_BOOT_UNIT])
    if not os.path.isdir("/run/systemd/system"):
        return [f"{UNIT} is enabled; systemd is not running here"]
    _run(["systemctl", "daemon-reload"])
    subprocess.run(["systemctl", "reset-failed", "--quiet", UNIT], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _run(["systemctl", "restart", "--no-block", UNIT])
    served = [f"{SERVE_UNIT} is enabled: it serves http://127.0.0.1:8080 once that test is passed, with the options "
              f"that {SERVE_OPTIONS} has"]
    return [f"{UNIT} is enabled and started: it tests this release at each start of the board", *served * serve]


def _keep_running_application(root: str) -> None:
    """The program that has just installed a release is whole, and root's choice. Until a release is marked good it
    counts the starts. Run from sources, the release's own is taken."""
    running = os.path.realpath(sys.argv[0] or os.curdir)
    if zipfile.is_zipfile(running):
        with raising_machine_faults(f"read {running}"):
            _keep(root, running)
    else:
        keep_application(root, _current(root))


def _search_path() -> str:
    """PATH, and where Debian keeps what only root runs: root's own PATH over ssh may lack these."""
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
