"""The board side's own tests under the Pythons of boards: 3.6 with ONNX Runtime 1.10, as on a Jetson Nano, where only
`portable` bundles run; and 3.8 with 1.19, whose fused attention needs care (docs/decisions/export.md). There
those of the models alone: what installs, and what measures, passes under the oldest Python and under the newest.

That the trained model's bundles give the same ids under them: test_interpreters.py. Properties are tried on few
examples: on many they are tried under the Python of the workstation.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
WORKSTATIONS = ("test_runtime_syntax.py", "test_probe_graphs.py")  # these need newer Pythons, or torch


@pytest.mark.parametrize(("version", "which", "dialects"), [
    ("3.6", "runtime/test_*.py", ["portable"]), ("3.6", "bench/test_*.py", ["portable"]),
    ("3.8", "runtime/test_runtime_*.py", ["fused", "portable"]),
])  # fmt: skip
def test_the_board_side_passes_its_tests(version, which, dialects, bundle_dirs, chat_dir, tmp_path):
    python = ROOT / f".venv{version.replace('.', '')}" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no Python {version} on this machine (make test sets it up where there is one)")
    files = sorted(path for path in (ROOT / "tests").glob(which) if path.name not in WORKSTATIONS)
    assert files
    for dialect in dialects:
        shutil.copytree(bundle_dirs[dialect], tmp_path / dialect)
    shutil.copytree(chat_dir, tmp_path / "chat")
    environment = {**os.environ, "MERINO_TEST_BUNDLE": str(tmp_path)}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, "-m", "pytest", "-p", "no:cacheprovider", "--hypothesis-profile=fast", *files],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
