"""The board side's tests under Python 3.6 with ONNX Runtime 1.10 and a `portable` bundle, as on a Jetson Nano."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON36 = ROOT / ".venv36" / "bin" / "python"


@pytest.mark.skipif(not PYTHON36.exists(), reason="no Python 3.6 on this machine (make test sets .venv36 up)")
@pytest.mark.parametrize("side", ["runtime", "bench"])
def test_the_board_side_passes_its_tests_on_python_36(side, bundle_dirs, tmp_path):
    files = sorted(path for path in (ROOT / "tests").glob(f"test_{side}_*.py") if path.name != "test_runtime_syntax.py")
    assert files
    shutil.copytree(bundle_dirs["portable"], tmp_path / "portable")
    environment = {**os.environ, "MERINO_TEST_BUNDLE": str(tmp_path)}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [PYTHON36, "-m", "pytest", "-p", "no:cacheprovider", *files],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
