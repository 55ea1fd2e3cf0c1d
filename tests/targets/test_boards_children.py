"""Emulated boards whose processes start others, as installing does: on the CPU that was named. `make test-boards`."""

import fcntl
import os
import shutil
import signal
import subprocess

import pytest
from emulated_board import (
    BOARD_ROOT,
    CPUS,
    INSTRUCTIONS,
    OF_EACH_KIND,
    ON_EACH,
    WITH_DOTPROD,
    call_with_children,
    needs_board,
    on_board_with_children,
    output,
)

from merino_edge.bundles.board_app import write_board_app
from merino_edge.embedded import FOLDER as PACKAGED
from merino_edge.profiles.reading import load_profile

pytestmark = [pytest.mark.slow, needs_board]

# A shell that Python starts, and a Python that this shell starts.
GRANDCHILD = "import subprocess, sys; sys.exit(subprocess.call(['sh', '-c', '\"$@\"; exit $?', 'sh', *sys.argv[1:]]))"


def in_grandchild(cpu, *command, cwd):
    return on_board_with_children(cpu, "python3", "-c", GRANDCHILD, *command, cwd=cwd)


@pytest.mark.parametrize("cpu, device", ON_EACH)
def test_a_child_has_the_instructions_of_the_profile(cpu, device, tmp_path):
    write_board_app(tmp_path / "merino.pyz")
    script = "import os; from merino_runtime.io import board; print(os.uname().machine, *board.this_isa())"
    done = in_grandchild(cpu, "env", "PYTHONPATH=merino.pyz", "python3", "-c", script, cwd=tmp_path)
    assert set(output(done).split()) | {"neon"} == {"aarch64", *load_profile(device).isa}


@pytest.mark.parametrize("cpu", OF_EACH_KIND)
def test_an_instruction_that_the_cpu_has_not_kills_a_child(cpu, tmp_path):
    killed = cpu not in WITH_DOTPROD
    shutil.copy(INSTRUCTIONS, tmp_path)
    done = in_grandchild(cpu, "python3", INSTRUCTIONS.name, "dotprod", cwd=tmp_path)
    assert (done.returncode, done.stdout) == ((128 + signal.SIGILL, "") if killed else (0, "24\n"))


@pytest.mark.nightly
@pytest.mark.parametrize("cpu", CPUS)
def test_a_virtual_environment_made_there_generates_the_golden_tokens(cpu, tmp_path):
    shutil.copytree(PACKAGED, tmp_path / "bundle")
    write_board_app(tmp_path / "merino.pyz")
    output(on_board_with_children(cpu, "python3", "-m", "venv", "--without-pip", "env", cwd=tmp_path))
    (tmp_path / "env" / "lib" / "python3.11" / "site-packages" / "board.pth").write_text("/opt/site\n")
    done = in_grandchild(cpu, "env/bin/python3", "merino.pyz", "selftest", "bundle", cwd=tmp_path)
    assert output(done).startswith("ok: ")


def test_only_the_given_folder_is_written(tmp_path):
    before = sorted(path.name for path in (BOARD_ROOT / "opt").iterdir())
    script = "mkdir -p /opt/merino && echo kept >kept && echo lost >/opt/merino/lost && cat /opt/merino/lost"
    assert output(on_board_with_children("cortex-a72", "sh", "-c", script, cwd=tmp_path)) == "lost\n"
    assert (tmp_path / "kept").read_text() == "kept\n"
    assert sorted(path.name for path in (BOARD_ROOT / "opt").iterdir()) == before
    assert "site" in before and "merino" not in before
    assert not os.path.ismount(BOARD_ROOT / "tmp")


HOLDS_THE_LOCK = """
import fcntl, time
held = open("lock", "w")
fcntl.flock(held, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
open("ended", "w")
"""


def test_a_killed_call_takes_all_its_processes_with_it(tmp_path):
    """The lock that a background process of the board holds is free, and not because that process came to its end."""
    command = ("sh", "-c", 'python3 -c "$1" & wait', "sh", HOLDS_THE_LOCK)
    with subprocess.Popen(call_with_children("cortex-a72", *command, cwd=tmp_path), stdout=subprocess.PIPE) as board:
        try:
            assert board.stdout.readline() == b"held\n"
        finally:
            board.kill()
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    assert not (tmp_path / "ended").exists()
