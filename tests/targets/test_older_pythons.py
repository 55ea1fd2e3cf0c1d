"""The board side's own tests under the Pythons of boards: 3.6 with ONNX Runtime 1.10, as on a Jetson Nano, where only
`portable` bundles run; and 3.8 with 1.19, whose fused attention needs care (docs/decisions/export.md). There
those of the models alone: what installs, and what measures, passes under the oldest Python and under the newest.

`make test` runs what is not slow under 3.6, with the TensorRT of the board that has it, but not what no Python changes;
`make test-nightly` all. That the trained model's bundles give the same ids under them: test_interpreters.py.
Properties are tried on few examples: on many under the Python of the workstation.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
# Of no board with 3.6; of many forged files; of pure arithmetic; of the tests' own GPU; of refusals and faults that are
# tried one by one, most in processes of their own; of the grammars of constrained answers and of packed files.
NOT_BY_DAY = (
    "not (10.3.0 or hostile or bench_ratios or sampler or stand_in or constraints"
    " or delivery_packed or cannot_be or without_a_package or memory_ends or opens_no_connection"
    " or writes_nothing or killed or damage or fails_at_any_call)"
)
WORKSTATIONS = ("test_runtime_syntax.py", "test_probe_graphs.py")  # these need newer Pythons, or torch


def test_what_is_not_slow_passes_under_the_oldest_python(bundle_dirs, chat_dir, tmp_path):
    check_board_side("3.6", ["runtime/test_*.py", "bench/test_*.py"], "not slow and not nightly", ["portable"],
                     bundle_dirs, chat_dir, tmp_path, NOT_BY_DAY)  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize(("version", "which", "marks", "dialects"), [
    ("3.6", "runtime/test_*.py", "", ["portable"]), ("3.6", "bench/test_*.py", "", ["portable"]),
    ("3.8", "runtime/test_runtime_*.py", "", ["fused", "portable"]),
])  # fmt: skip
def test_the_board_side_passes_its_tests(version, which, marks, dialects, bundle_dirs, chat_dir, tmp_path):
    check_board_side(version, [which], marks, dialects, bundle_dirs, chat_dir, tmp_path)


def check_board_side(version, patterns, marks, dialects, bundle_dirs, chat_dir, tmp_path, names=""):
    """The tests of these files, marks and names pass under this Python, on copies of these bundles."""
    python = ROOT / f".venv{version.replace('.', '')}" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no Python {version} on this machine (make test sets it up where there is one)")
    paths = (path for pattern in patterns for path in sorted((ROOT / "tests").glob(pattern)))
    files = [path for path in paths if path.name not in WORKSTATIONS]
    assert files
    for dialect in dialects:
        shutil.copytree(bundle_dirs[dialect], tmp_path / dialect)
    shutil.copytree(chat_dir, tmp_path / "chat")
    environment = {**os.environ, "MERINO_TEST_BUNDLE": str(tmp_path)}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, "-m", "pytest", "-p", "no:cacheprovider", "--hypothesis-profile=fast", "-m", marks, "-k", names,
         *files],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
