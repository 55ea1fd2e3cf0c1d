"""The virtual environment of a release, made from the wheels of its file: without network, separate from the system's
packages, and so also if the system's Python rejects pip (PEP 668). And the runs of a release before it is trusted.
Standard library only.

pip runs from its own wheel in the file: many boards have none, or one that cannot install today's wheels.
"""
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from merino_runtime.backends import TENSORRT, is_installed
from merino_runtime.bundle.requirements import PACKAGES, install_commands
from merino_runtime.delivery import releases
from merino_runtime.delivery.archive import Archive
from merino_runtime.delivery.manifest import FileEntry, WheelSet, files_under
from merino_runtime.delivery.releases import ENVIRONMENT
from merino_runtime.errors import MerinoError, last_line, machine_fault
from merino_runtime.io.lock import raising_machine_faults

TIMEOUT_S = 1800.0  # of a command: a Pi Zero 2 W compiles for minutes, and decodes less than a token per second
PASSED = b"ok: "  # the first word of `selftest` on stdout
Report = Callable[[str], None]


def python_of(folder: str) -> str:
    """Return the interpreter of the environment in a release's folder."""
    return os.path.join(folder, ENVIRONMENT, "bin", "python")


def check_tools(archive: Archive, wheels: WheelSet) -> None:
    """Raise MerinoError if no environment can be made of these wheels, before anything is written."""
    _pip_and_others(archive, wheels)
    if importlib.util.find_spec("venv") is None:
        raise MerinoError(f"{base_python()} cannot make a virtual environment for the file's wheels: it has no module "
                          "venv. On Debian and Ubuntu: sudo apt-get install python3-venv")


def check_present(backends: Sequence[str]) -> None:
    """Raise MerinoError if this Python lacks a package that a release without wheels uses, or every backend. Import
    nothing."""
    present = [name for name in backends if importlib.util.find_spec(name) is not None]
    needed = [*(name for name in PACKAGES if name != "onnxruntime"), (present or list(backends))[0]]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise MerinoError(f"the file contains no packages, and this Python lacks {', '.join(missing)}. "
                          f"{install_commands(needed)}. Or pack the file with --wheels.")


def check_tensorrt() -> None:
    """Raise MerinoError if this Python lacks TensorRT, which no file brings. Import nothing."""
    if not is_installed(TENSORRT):
        raise MerinoError(f"{sys.executable} finds no TensorRT, which comes with a Jetson's JetPack: sudo apt-get "
                          "install python3-libnvinfer, and install with the system's python3. Or install for the CPU: "
                          "--backend onnxruntime.")


def make_environment(folder: str, archive: Archive, wheels: WheelSet, wheel_folder: str,
                     system_packages: bool = False) -> None:
    """Make `folder`/env. wheel_folder: where the wheels were unpacked. system_packages: include the system's packages.
    Raise MerinoError with the last line of pip's output."""
    environment, python = os.path.join(folder, ENVIRONMENT), python_of(folder)
    options = ["--system-site-packages"] if system_packages else []
    _run([base_python(), "-I", "-m", "venv", "--without-pip", *options, environment], "make a virtual environment")
    pip_wheel, others = _pip_and_others(archive, wheels)
    pip = os.path.join(wheel_folder, os.path.basename(pip_wheel.path), "pip")
    paths = [os.path.join(wheel_folder, os.path.basename(entry.path)) for entry in others]
    # Without dependencies: the file holds what is needed, which is less than what packages require.
    _run([python, "-I", pip, "--isolated", "--disable-pip-version-check", "--no-cache-dir", "install", "--quiet",
          "--no-index", "--no-deps", "--only-binary=:all:", "--no-warn-script-location", *paths],
         "install the file's wheels")
    # Scripts name the interpreter by a path that a rename makes wrong, and none of them is needed.
    scripts = os.path.dirname(python)
    for name in os.listdir(scripts):
        if not name.startswith("python"):
            os.unlink(os.path.join(scripts, name))
    check_imports(folder, wheels)
    os.sync()  # one call: thousands of files, each synced separately, take minutes on a card


def check_imports(folder: str, wheels: WheelSet) -> None:
    """Raise MerinoError if the environment of a release lacks a package: the self-test imports no tokenizer."""
    modules = [name for name in PACKAGES if name in wheels.packages]
    if modules:
        _run([python_of(folder), "-I", "-c", "import " + ", ".join(modules)], "import the file's packages")


def base_python() -> str:
    """Return the system's interpreter, even if a virtual environment's one runs this: an environment that is made from
    another environment stops working when that is removed."""
    if sys.prefix != sys.base_prefix:
        path = os.path.join(sys.base_exec_prefix, "bin", "python{}.{}".format(*sys.version_info[:2]))
        if os.access(path, os.X_OK):
            return path
    return sys.executable or shutil.which("python3") or "python3"


def _pip_and_others(archive: Archive, wheels: WheelSet) -> Tuple[FileEntry, List[FileEntry]]:
    """Return the wheel of pip, and those that are installed. Raise MerinoError unless there is one of pip."""
    entries = files_under(archive.manifest, wheels.path)
    pip_wheels = [entry for entry in entries if os.path.basename(entry.path).startswith("pip-")]
    if len(pip_wheels) != 1:
        raise MerinoError(f"{archive.path}: {wheels.path} holds {len(pip_wheels)} wheels of pip, and one is needed. "
                          "Pack it again with --wheels.")
    return pip_wheels[0], [entry for entry in entries if entry not in pip_wheels]


def build_engine(folder: str, report: Report) -> None:
    """Let the release in `folder` build its TensorRT engine in a separate process. Raise MerinoError with its last line
    if that fails."""
    command = [os.path.join(folder, releases.LAUNCHER), "build-engine", releases.INSTALLED]
    latest = ""
    with raising_machine_faults(f"start {command[0]}"), subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        for line in process.stderr or ():
            latest = re.sub("^merino: ", "", line.decode("utf-8", "replace").strip())
            report(latest)
    if process.returncode:
        raise MerinoError(f"no engine was built: {latest or f'exit code {process.returncode}'}")


def selftest(folder: str, user: Optional[releases.User] = None) -> None:
    """Let the release in `folder` generate its golden ids in a separate process, as this user if root names one.
    Raise MerinoError with the last line of a failed test."""
    command = [os.path.join(folder, releases.LAUNCHER), "selftest", releases.INSTALLED]
    done = _done(command, "run the self-test", "Install a smaller model", stderr=subprocess.PIPE, **_as_user(user))
    if done.returncode or not done.stdout.startswith(PASSED):  # an empty application ends with exit code 0 too
        raise MerinoError(f"the self-test failed: {last_line(done.stderr, done.returncode)}")


def _run(command: Sequence[str], doing: str) -> None:
    """Run a command without the variables that would lead Python or pip elsewhere. Raise MerinoError if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    environment["PIP_CONFIG_FILE"] = os.devnull
    done = _done(command, doing, "Stop other programs, then install again", stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        raise MerinoError(f"cannot {doing}: {last_line(done.stdout, done.returncode)}. Free space or memory where it "
                          "is short, and pack the file again where a wheel is at fault; then install again.")


def _done(command: Sequence[str], doing: str, remedy: str, **how: Any) -> "subprocess.CompletedProcess[bytes]":
    """Run a command to its end. Raise MerinoError if it cannot start, or takes too long."""
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=TIMEOUT_S, **how)
    except OSError as error:
        raise machine_fault(f"start {command[0]}", error) from error
    except subprocess.TimeoutExpired as error:
        raise MerinoError(f"cannot {doing}: it did not finish within {TIMEOUT_S:g} s. {remedy}.") from error


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
