"""The commands that install a board's packages, run as they are printed: in a new environment of Python 3.6 with its
own pip, as on a Jetson Nano. They fetch from the package index, so without one they are skipped.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv36" / "bin" / "python"  # made from a Python 3.6 of this machine, where there is one


@pytest.fixture
def board(tmp_path):
    """A function that runs shell commands where `python3` is Python 3.6 and `~` an empty folder."""
    if not PYTHON.exists():
        pytest.skip("no Python 3.6 on this machine (make test sets it up where there is one)")
    base = subprocess.run(
        [PYTHON, "-c", "import sys; print(sys.base_prefix)"], capture_output=True, text=True, check=True
    ).stdout.strip()
    index = [PYTHON, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", tmp_path / "index", "six"]
    if subprocess.run(index, capture_output=True, check=False).returncode:
        pytest.skip("no package index can be reached")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(Path(base) / "bin" / "python3.6")
    (tmp_path / "home").mkdir()

    def run(commands, cwd="/"):
        environment = {"HOME": str(tmp_path / "home"), "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
        environment["GLIBC_TUNABLES"] = os.environ["GLIBC_TUNABLES"]  # conftest says why
        return subprocess.run(
            ["sh", "-e", "-c", commands], env=environment, cwd=cwd, capture_output=True, text=True, timeout=600
        )

    return run


def documented(page):
    """The block of shell commands that makes ~/merino."""
    blocks = re.findall(r"```(?:bash)?\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if "venv ~/merino" in block]
    return block


def check_a_bundle_runs(board, folder):
    done = board("~/merino/bin/python merino.pyz selftest .", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "ok: 16 greedy ids as expected\n"), done.stderr


def test_the_documented_commands_install_what_a_bundle_needs(board, embedded_bundles):
    done = board(documented("docs/board.md"))
    assert done.returncode == 0, done.stderr
    check_a_bundle_runs(board, embedded_bundles["portable", "fp32"])


@pytest.mark.nightly
def test_the_commands_of_the_message_install_what_a_bundle_needs(board, embedded_bundles):
    folder = embedded_bundles["portable", "fp32"]
    assert board("python3 -m venv ~/merino").returncode == 0
    messages = board("~/merino/bin/python merino.pyz selftest .", cwd=folder).stderr
    commands = re.search(r" Run: (.*)", messages).group(1)
    done = board(commands, cwd=folder)
    assert done.returncode == 0, done.stderr
    check_a_bundle_runs(board, folder)
