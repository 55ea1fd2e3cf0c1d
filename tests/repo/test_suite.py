"""How the tests themselves are started: in the background, by day and by night."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
CHILD = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
AS_PYTEST_DOES = "import subprocess, sys; import conftest; subprocess.check_call([sys.executable, '-c', sys.argv[1]])"


def test_what_tests_start_can_be_interrupted_where_sigint_was_ignored():
    """As under nohup, and in a script's background jobs."""
    done = subprocess.run(
        [sys.executable, "-c", AS_PYTEST_DOES, CHILD], cwd=TESTS, capture_output=True, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN), env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


SAMPLE = """
import pytest
from few_examples import examples
from hypothesis import given, strategies

def test_by_day(): pass

@pytest.mark.nightly
def test_by_night(): pass

@examples(200)
@given(strategies.integers())
def test_property(number): pass

def test_fixture(nightly): pass
"""


def collected(folder, options):
    """Names of the sample's tests that these options choose."""
    options = ["-c", str(ROOT / "setup.cfg"), "-o", "addopts=", "-p", "conftest", *shlex.split(options), "-q"]
    call = [sys.executable, "-m", "pytest", "--collect-only", *options, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(re.findall(r"::(test_\w+)", done.stdout))


def test_what_leaves_the_daily_run_is_in_the_nightly_one(tmp_path):
    """By the options of the Makefile. What has more examples or cases is in both. Each nightly file is in one part."""
    day, night, _ = re.findall(r"^\t\$\(PYTEST\) (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    assert collected(tmp_path, day) == {"test_by_day", "test_property", "test_fixture"}
    night, _, part = night.partition(" $(if $(PART),")
    assert collected(tmp_path, night) == {"test_by_night", "test_property", "test_fixture"}
    (tmp_path / "test_other.py").write_text(SAMPLE.replace("def test_", "def test_other_"))
    parts = [collected(tmp_path, f"{night} {part.strip(')').replace('$(PART', f'{number}/2')}") for number in (4, 7)]
    assert parts == [
        {"test_other_by_night", "test_other_property", "test_other_fixture"},
        {"test_by_night", "test_property", "test_fixture"},
    ]
