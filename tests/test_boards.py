"""The boards' CPUs, emulated: the same file, the same bundles, the same ids. `make test-boards` sets it up.

Emulated are instructions, not time: nothing here measures anything, and an instruction that a CPU has not kills.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from merino_edge.embedded import FOLDER as EMBEDDED
from merino_edge.export.board_app import write_board_app
from merino_edge.profiles import load_profile
from merino_runtime.board import ARM_FEATURES

CPUS = {
    "cortex-a53": "raspberry-pi-zero-2w",
    "cortex-a57": "jetson-nano",
    "cortex-a72": "raspberry-pi-4",
    "cortex-a76": "raspberry-pi-5",
}
GIVEN = os.environ.get("MERINO_BOARD_ROOT")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
BOARD_ROOT = Path(GIVEN or CACHE / "merino_edge" / "boards" / "bookworm")
PYTHON = BOARD_ROOT / "usr" / "bin" / "python3.11"
INSTRUCTIONS = Path(__file__).parent / "boards" / "instructions.py"

pytestmark = pytest.mark.skipif(
    not GIVEN and not (PYTHON.exists() and shutil.which("qemu-aarch64")),
    reason="no emulated board on this machine (make test-boards sets one up)",
)


def run(*call, cwd=None):
    done = subprocess.run([str(word) for word in call], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def on_board(cpu, *arguments, cwd=None, path=BOARD_ROOT / "opt" / "site"):
    """Runs the board's Python on an emulated CPU."""
    settings = ("-E", f"PYTHONPATH={path}", "-E", "PYTHONNOUSERSITE=1")
    return run("qemu-aarch64", "-L", BOARD_ROOT, "-cpu", cpu, *settings, PYTHON, *arguments, cwd=cwd)


def output(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def greedy_ids(out):
    *tokens, last = [json.loads(line) for line in out.splitlines()]
    assert last["done"] and last["tokens"] == len(tokens)
    return [token["id"] for token in tokens]


@pytest.fixture(scope="module", params=["embedded", "fused", "portable"])
def bundle(request, bundle_dirs):
    return EMBEDDED if request.param == "embedded" else Path(bundle_dirs[request.param])


@pytest.fixture(scope="module")
def generate(bundle):
    """Arguments of a greedy continuation, and the ids that it has on this machine."""
    arguments = ["merino.pyz", "generate", ".", "Once upon a time", "-n", "24", "--temperature", "0"]
    arguments += ["--ignore-eos", "--json"]
    ids = greedy_ids(output(run(sys.executable, *arguments, cwd=bundle)))
    assert len(ids) == 24 and len(set(ids)) > 5
    return arguments, ids


@pytest.mark.parametrize("cpu", CPUS)
def test_greedy_ids_are_those_of_this_machine(cpu, bundle, generate):
    arguments, ids = generate
    assert greedy_ids(output(on_board(cpu, *arguments, cwd=bundle))) == ids


@pytest.mark.parametrize("cpu", CPUS)
def test_the_selftest_passes(cpu, bundle):
    assert output(on_board(cpu, "merino.pyz", "selftest", ".", cwd=bundle)).startswith("ok: ")


@pytest.mark.parametrize("cpu, device", CPUS.items())
def test_info_finds_the_profiles_instructions(cpu, device):
    described = json.loads(output(on_board(cpu, "merino.pyz", "info", ".", "--json", cwd=EMBEDDED)))["board"]
    assert described["architecture"] == "aarch64" and described["pointer_bits"] == 64
    assert {"neon", *described["isa"]} == set(load_profile(device).isa)


@pytest.mark.parametrize("cpu", [*CPUS, "max"])
def test_the_instructions_found_are_those_that_execute(cpu, tmp_path):
    """Found without /proc/cpuinfo, which an emulator writes too; executed one by one."""
    executes = json.loads(output(on_board(cpu, INSTRUCTIONS)))
    assert executes.pop("none") and set(executes) == set(ARM_FEATURES.values())
    write_board_app(tmp_path / "merino.pyz")
    script = "from merino_runtime import board; board._read = lambda path: ''; print(*board.this_isa())"
    found = output(on_board(cpu, "-c", script, path=tmp_path / "merino.pyz")).split()
    assert set(found) == {name for name, ran in executes.items() if ran}
    assert cpu != "max" or all(executes.values())


@pytest.mark.parametrize("cpu, status", [
    ("cortex-a53", -signal.SIGILL), ("cortex-a57", -signal.SIGILL), ("cortex-a72", -signal.SIGILL), ("cortex-a76", 0),
])  # fmt: skip
def test_an_instruction_that_the_cpu_has_not_kills(cpu, status):
    """The emulation would catch such a one in a wheel: without this the tests above would prove nothing."""
    done = on_board(cpu, INSTRUCTIONS, "dotprod")
    assert (done.returncode, done.stdout) == (status, "" if status else "24\n")
