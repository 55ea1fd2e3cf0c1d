"""Commands on an emulated Arm CPU, of which `make boards` made the root file system: one process, or with children.

Emulated are instructions, not time: an instruction that a CPU has not kills, and nothing here measures anything.
"""

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

CPUS = {
    "cortex-a53": "raspberry-pi-zero-2w",
    "cortex-a57": "jetson-nano",
    "cortex-a72": "raspberry-pi-4",
    "cortex-a76": "raspberry-pi-5",
}
WITH_DOTPROD = ["cortex-a76"]
BY_DEFAULT = ["cortex-a53", "cortex-a76"]  # one without dotprod and one with it: what a bundle does differs by no more
OF_EACH_KIND = [pytest.param(cpu, marks=() if cpu in BY_DEFAULT else pytest.mark.nightly) for cpu in CPUS]
ON_THE_OLDER = [pytest.param(cpu, marks=() if cpu == "cortex-a53" else pytest.mark.nightly) for cpu in CPUS]
ON_EACH = [pytest.param(cpu.values[0], CPUS[cpu.values[0]], marks=cpu.marks) for cpu in OF_EACH_KIND]  # with its board
GIVEN = os.environ.get("MERINO_BOARD_ROOT")
BOARD_ROOT = Path(GIVEN or Path(os.environ["MERINO_USERS_CACHE"]) / "merino_edge" / "boards" / "bookworm")
SITE = BOARD_ROOT / "opt" / "site"
PYTHON = BOARD_ROOT / "usr" / "bin" / "python3"
OLDER = {  # root file systems by the version of ONNX Runtime in their folder opt
    "1.10.0": BOARD_ROOT.with_name("bullseye"), "1.16.3": BOARD_ROOT, "1.19.2": BOARD_ROOT, "1.23.2": BOARD_ROOT,
}  # fmt: skip
SCRIPTS = Path(__file__).parent / "boards"
INSTRUCTIONS = SCRIPTS / "instructions.py"
# What enter.sh needs of a kernel: user namespaces, and in them formats of executables (Linux 6.7) and layers.
NAMESPACES = """
mount -t proc board /proc && mount -t binfmt_misc board /proc && mount -t tmpfs board /tmp && cd /tmp &&
mkdir lower upper work && mount -t overlay board -o lowerdir=lower,upperdir=upper,workdir=work /mnt
"""

needs_board = pytest.mark.skipif(
    not GIVEN and not (PYTHON.exists() and shutil.which("qemu-aarch64")),
    reason="no emulated board on this machine (make test-boards sets one up)",
)


def run(*call, cwd=None, timeout_s=300):
    done = subprocess.run([str(word) for word in call], cwd=cwd, capture_output=True, text=True, timeout=timeout_s)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def output(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def on_board(cpu, *arguments, cwd=None, path=SITE, root=BOARD_ROOT):
    """Runs the board's Python on an emulated CPU. It can fork; what it executes is this machine's."""
    return run(*python_words(cpu, path, root), *arguments, cwd=cwd)


def python_words(cpu, path=SITE, root=BOARD_ROOT):
    """The words of a command that runs the board's Python on an emulated CPU."""
    settings = ("-E", f"PYTHONPATH={path}", "-E", "PYTHONNOUSERSITE=1")
    return ["qemu-aarch64", "-L", str(root), "-cpu", cpu, *settings, str(root / "usr" / "bin" / "python3")]


def under(version):
    """Keywords of `on_board` for this version of ONNX Runtime."""
    root = OLDER[version]
    own = root / "opt" / f"onnxruntime-{version}"
    if not own.exists():
        pytest.skip(f"no onnxruntime {version} for the emulated boards (make boards-older sets it up)")
    return {"path": own if root != BOARD_ROOT else f"{own}:{SITE}", "root": root}


@functools.cache
def why_no_children():
    """Why a board's process can start no other here; "" where it can."""
    if not (BOARD_ROOT / "bin" / "sh").exists():
        return "the emulated board has no shell (make boards makes it anew)"
    call = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "sh", "-c", NAMESPACES]
    tried = subprocess.run(call, capture_output=True, text=True, timeout=60)
    messages = tried.stderr.strip().splitlines()
    return f"no namespaces to emulate a board's children in: {messages[-1:]}" if tried.returncode else ""


def call_with_children(cpu, *command, cwd):
    """The words that run what `on_board_with_children` runs. Killing that process kills all that it started."""
    if why_no_children():
        pytest.skip(why_no_children())
    return [SCRIPTS / "enter.sh", BOARD_ROOT, cpu, Path(cwd).resolve(), *command]


def on_board_with_children(cpu, *command, cwd, timeout_s=300):
    """Runs a command of the board's own system on an emulated CPU, as root there, with what it starts.

    `cwd` is the only folder that the command shares with this machine, under the same path. What it writes elsewhere,
    /opt/merino too, is gone when it ends. A signal that ends it is the status 128 + its number. The CPU is named by
    QEMU_CPU in the command's environment: a child that is given another environment runs on a CPU with everything.
    """
    return run(*call_with_children(cpu, *command, cwd=cwd), timeout_s=timeout_s)


def as_model(model, folder):
    """Words before a command: it finds `model` in /proc/device-tree, which the kernel of a PC does not have.

    The emulator looks in a folder of its own first, by QEMU_LD_PREFIX. `folder` is one that the command shares.
    """
    tree = Path(folder).resolve() / "device-tree"
    file = tree / "proc" / "device-tree" / "model"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(model.encode() + b"\0")
    return ["env", f"QEMU_LD_PREFIX={tree}"]
