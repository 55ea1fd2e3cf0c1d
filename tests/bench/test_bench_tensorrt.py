"""`bench --backend tensorrt` by real processes over the stand-in: whose times mean nothing, and whose rows do."""
import json
import os
import subprocess
import sys

import pytest

from tests.tensorrt_stand_in import ON_PATH

pytestmark = pytest.mark.slow
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def bench(*words, **environment):
    paths = [ON_PATH, os.path.join(ROOT, "runtime")]
    process = subprocess.Popen([sys.executable, "-m", "merino_bench", "bench", *words, "-p", "8", "-n", "4", "-r", "1",
                                "-o", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths), **environment))
    out, err = process.communicate()
    return process.returncode, json.loads(out.decode("utf-8")), err.decode("utf-8")


def test_rows_name_the_backend_and_the_engine_is_built_before_any_is_timed(bundle_dirs, tmp_path):
    code, rows, err = bench(str(bundle_dirs["portable"]), "--backend", "tensorrt", XDG_CACHE_HOME=str(tmp_path))
    assert code == 0, err
    assert [row["test"] for row in rows] == ["pp8", "tg4"]
    for row in rows:
        assert row["engine"] == "tensorrt 8.2.1.8 fp32 NVIDIA Stand-In X1" and row["tok_s"] > 0
        assert not [note for note in row["notes"] if "building" in note or "float16" in note]


def test_a_gpu_that_is_not_there_fails_its_rows_with_the_reason(bundle_dirs, tmp_path):
    code, rows, _ = bench(str(bundle_dirs["portable"]), "--backend", "tensorrt", XDG_CACHE_HOME=str(tmp_path),
                          MERINO_STAND_IN_BROKEN="1")
    assert code == 1 and all("no NVIDIA driver" in row["flags"][0] for row in rows) and len(rows) == 2
