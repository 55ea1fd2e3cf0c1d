"""Runs a release in separate processes before it is trusted: it builds its engine and generates its golden ids.

Root builds the engine, which is part of the release and so belongs to root. The self-test runs as the service's user if
there is one: it then proves what the service will find, without root's rights. Standard library only.
"""
import os
import re
import subprocess
from typing import Any, Callable, Dict, Optional

from merino_runtime.delivery import releases
from merino_runtime.errors import MerinoError
from merino_runtime.io.machine_faults import last_line, machine_fault

SELFTEST_TIMEOUT_S = 1800.0  # a Pi Zero 2 W decodes a large model at less than a token per second
PASSED = b"ok: "  # the first word of `selftest` on stdout
Report = Callable[[str], None]


def build_engine(folder: str, report: Report) -> None:
    """Let the release in `folder` build its TensorRT engine in a separate process. Raise MerinoError with its last line
    if that fails."""
    command = [os.path.join(folder, releases.LAUNCHER), "build-engine", releases.INSTALLED]
    latest = ""
    try:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
                              ) as process:
            for line in process.stderr or ():
                latest = re.sub("^merino: ", "", line.decode("utf-8", "replace").strip())
                report(latest)
    except OSError as error:
        raise machine_fault(f"start {command[0]}", error) from error
    if process.returncode:
        refusal = latest or f"exit code {process.returncode}"
        raise MerinoError(f"no engine was built: {refusal}")


def selftest(folder: str, user: Optional[releases.User] = None) -> None:
    """Let the release in `folder` generate its golden ids in a separate process, as this user if root names one. A slow
    format is allowed: it was rejected before, or allowed by --force. Raise MerinoError with the last line of a failed
    test."""
    command = [os.path.join(folder, releases.LAUNCHER), "selftest", releases.INSTALLED, "--allow-slow"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=SELFTEST_TIMEOUT_S, **_as_user(user))
    except OSError as error:
        raise machine_fault(f"start {command[0]}", error) from error
    except subprocess.TimeoutExpired as error:
        raise MerinoError(f"the self-test did not finish within {SELFTEST_TIMEOUT_S:g} s. Install a smaller "
                          "model.") from error
    if done.returncode or not done.stdout.startswith(PASSED):  # an empty application ends with exit code 0 too
        refusal = last_line(done.stderr, done.returncode)
        raise MerinoError(f"the self-test failed: {refusal}")


def _as_user(user: Optional[releases.User]) -> Dict[str, Any]:
    """Return the arguments of a subprocess that runs as `user`, without root's environment; none for the user of this
    process."""
    if user is None:
        return {}
    import grp  # here, because Windows has no such modules
    import pwd

    name = pwd.getpwuid(user.uid).pw_name
    groups = [group.gr_gid for group in grp.getgrall() if name in group.gr_mem]

    def become() -> None:
        os.setgroups([user.gid, *groups])
        os.setgid(user.gid)
        os.setuid(user.uid)

    return {"preexec_fn": become, "cwd": "/", "env": {
        "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": user.home, "XDG_CACHE_HOME": user.home}}
