"""What systemd runs: the texts of the units, the verb `service`, and setting both up (`install --service`).

`service` tests the installed release at each start of the board. A new release that fails three starts is left for the
one before it. Until there is a server, that is all it does, and a probe of the board, once for each release.
Standard library only.
"""
import os
import shutil
import subprocess
from typing import Callable, List, Sequence

from merino_runtime.delivery import releases, trial
from merino_runtime.delivery.manifest import APP
from merino_runtime.delivery.release_runs import selftest
from merino_runtime.errors import MerinoError
from merino_runtime.io.lock import LOCK, hold, locked
from merino_runtime.io.machine_faults import machine_fault
from merino_runtime.io.outputs import write_output

USER = "merino"
UNIT, UNITS = "merino.service", "/etc/systemd/system"
FIRST_BOOT_UNIT, INCOMING = "merino-install.service", "incoming"
FIRST_WORDS = (releases.INSTALLED, '"Once upon a time"', "-n", "24", "--temperature", "0")
PROBE, PROBE_TIMEOUT_S = "probe.json", 600.0
WAIT_S = 1800.0  # for an install that runs when the board starts
HIDDEN = ("/home", "/root", "/run", "/tmp")  # from a hardened service
Tell = Callable[[str], None]


def service_unit(root: str) -> str:
    """merino.service. Runs on systemd 237 (JetPack 4), which takes no Restart= with Type=oneshot."""
    return f"""[Unit]
Description=merino: self-test of the installed language model
ConditionPathExists={root}/{releases.CURRENT}
After=local-fs.target
StartLimitIntervalSec=3600
StartLimitBurst={trial.MOST_STARTS + 3}

[Service]
Type=simple
RemainAfterExit=yes
User={USER}
ExecStart={root}/{releases.CURRENT}/{releases.LAUNCHER} service --root {root}
Restart=on-failure
RestartSec=5
CacheDirectory={USER}
Environment=XDG_CACHE_HOME=/var/cache/{USER}
UMask=0022
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ReadWritePaths={root}
ProtectHome=yes
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""


def first_boot_unit(root: str, archive_name: str, allow_unsigned: bool = False) -> str:
    """merino-install.service: installs what lies in ROOT/incoming, at each start of the board until a release is
    there. The console shows what it says, then a few words that the release generates, by the service's user, whose
    the release is by then. They fail no install: a model may have no tokenizer."""
    unsigned = " --allow-unsigned" if allow_unsigned else ""
    return f"""[Unit]
Description=merino: installs the language model that came with this card
ConditionPathExists=!{root}/{releases.CURRENT}
After=local-fs.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/python3 {root}/{INCOMING}/{APP} install {root}/{INCOMING}/{archive_name} --root {root} --service{unsigned}
ExecStartPost=-/sbin/runuser -u {USER} -- {root}/{releases.CURRENT}/{releases.LAUNCHER} generate {" ".join(FIRST_WORDS)}
TimeoutStartSec=infinity
Environment=HOME=/root
StandardOutput=journal+console
StandardError=journal+console

[Install]
WantedBy=multi-user.target
"""  # noqa: E501


def run_service(root: str, tell: Tell) -> None:
    """Counts the start, tests `current`, marks it good. Goes back to the release before where a new one has failed too
    often. Raises MerinoError where the test fails: systemd then starts this again."""
    with locked(root, "service", WAIT_S):
        releases.recover(root)
        now = releases.links(root)
        if now.current is None:
            raise MerinoError(f"no release is installed in {root}. {releases.INSTALL_FIRST}")
        starts = trial.count_start(releases.release_folder(root, now.current))
        left = not starts.good and starts.starts > trial.MOST_STARTS and _may_go_back(root, now)
        if left:
            to = trial.rollback(root, gave_up=True)
            tell(f"release {now.current} failed {trial.MOST_STARTS} starts: back to {to.current}")
    if left:  # by its own application and Python; the lock is free
        launcher = os.path.join(root, releases.CURRENT, releases.LAUNCHER)
        os.execv(launcher, [launcher, "service", "--root", root])
    folder = releases.release_folder(root, now.current)
    hold(folder)
    selftest(folder)
    with locked(root, "service", WAIT_S):
        trial.mark_good(root, now.current)
    tell(f"release {now.current} is good: it generates its golden ids")
    _probe_once(root, folder, tell)


def _may_go_back(root: str, now: releases.Links) -> bool:
    """There is a previous release, and it is not one that was left already: else the two would take turns for ever."""
    return now.previous is not None and not trial.read_trial(releases.release_folder(root, now.previous)).gave_up


def _probe_once(root: str, folder: str, tell: Tell) -> None:
    """Noted before it is measured: a board that dies of the load must not do it at each start. A probe that fails is
    no failure of the release."""
    found = trial.read_trial(folder)
    if found.probed:
        return
    with locked(root, "service", WAIT_S):
        trial.write_trial(folder, trial.read_trial(folder)._replace(probed=True))
    command = [os.path.join(folder, releases.LAUNCHER), "probe", "-o", os.path.join(root, PROBE)]
    try:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=PROBE_TIMEOUT_S).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        tell(f"the probe failed: {error}")
    else:
        tell(f"the probe ended with exit code {code}" if code else f"the board was measured: {root}/{PROBE}")


def check_service(root: str) -> None:
    """Raises MerinoError where no service can be set up: for before anything is installed."""
    if os.geteuid() != 0:
        raise MerinoError("--service needs root: it makes a user and a unit of systemd. Run it with sudo, or install "
                          "without --service into a folder of your own.")
    missing = [name for name in ("systemctl", "useradd") if shutil.which(name) is None]
    if missing:
        raise MerinoError(f"--service needs {' and '.join(missing)}, which this system lacks. Install without it.")
    inside = [folder for folder in HIDDEN if (os.path.realpath(root) + "/").startswith(folder + "/")]
    if inside or not _plain(root):
        raise MerinoError(f"--service cannot run from {root}: a service sees nothing of {', '.join(HIDDEN)}, and a "
                          "unit takes letters, digits and ._/+- alone. Choose a folder such as "
                          f"{releases.SYSTEM_ROOT} with --root.")


def _plain(path: str) -> bool:
    return all(letter.isalnum() and ord(letter) < 128 or letter in "._/+-" for letter in path)


def set_up_service(root: str) -> List[str]:
    """Makes the user, gives it ROOT, writes and enables the unit, starts it where systemd runs -> notes. Changes
    nothing that is so already. Raises MerinoError where a step fails."""
    import pwd  # here, because Windows has no such module, and the workstation writes units

    try:
        pwd.getpwnam(USER)
    except KeyError:
        _run(["useradd", "--system", "--user-group", "--home-dir", root, "--no-create-home", "--shell",
              "/usr/sbin/nologin", USER])
    user = pwd.getpwnam(USER)
    _give_root(root, user.pw_uid, user.pw_gid)
    write_output(os.path.join(UNITS, UNIT), service_unit(root))
    _run(["systemctl", "enable", "--quiet", UNIT])
    if not os.path.isdir("/run/systemd/system"):
        return [f"{UNIT} is enabled; systemd is not running here"]
    _run(["systemctl", "daemon-reload"])
    _run(["systemctl", "restart", "--no-block", UNIT])
    return [f"{UNIT} is enabled and started: it tests this release at each start of the board"]


def _give_root(root: str, user: int, group: int) -> None:
    """To the service's user: it counts starts and changes links. The trusted keys stay root's."""
    with locked(root, "install", WAIT_S):
        try:
            for name in (os.curdir, releases.RELEASES, LOCK, PROBE):
                path = os.path.join(root, name)
                if os.path.exists(path):
                    os.chown(path, user, group)
            releases.give_to_owner(root, os.path.join(root, releases.RELEASES))
        except OSError as error:
            raise machine_fault(f"give {root} to the user {USER}", error) from error


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        raise machine_fault(f"start {command[0]}", error) from error
    if done.returncode:
        said = done.stdout.decode("utf-8", "replace").strip().splitlines()
        raise MerinoError(f"`{' '.join(command)}` failed: {said[-1] if said else done.returncode}. The release is "
                          "installed; mend this and run the same command again.")
