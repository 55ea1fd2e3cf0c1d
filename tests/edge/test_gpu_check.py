"""bench/gpu_check.py as far as it goes without a GPU: that it says there is none, and the whole check over the stand-in
of TensorRT, whose times mean nothing."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from tests.tensorrt_stand_in import VERSIONS, Gpu, put_in

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "gpu_check.py"


@pytest.fixture(scope="module")
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bundle(bundle_dirs):
    return load_bundle(str(bundle_dirs["portable"]))


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, gpu_check, monkeypatch, capsys):
    if gpu_check.gpu_name() is not None:
        pytest.skip("this machine has a GPU: run the script")
    monkeypatch.setattr(sys, "argv", ["gpu_check", "-o", str(tmp_path / "x")])
    assert gpu_check.main() == 1
    message = capsys.readouterr().err
    assert "no NVIDIA GPU" in message and "Nothing was run" in message and not (tmp_path / "x").exists()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_whole_check_over_the_stand_in(gpu_check, bundle, version, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gpu = Gpu()
    put_in(gpu, version, monkeypatch)
    monkeypatch.setattr(gpu_check, "gpu_name", lambda: gpu.name)
    monkeypatch.setattr(sys, "argv", ["gpu_check", bundle.folder, "-o", str(tmp_path / "record.json"), "--fp16"])
    assert gpu_check.main() == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["engine"] == f"tensorrt {version} fp16 {gpu.name}"
    assert record["parity"]["ok"] and record["parity"]["same_choices"] == record["parity"]["steps"]
    assert {"onnxruntime CPU", record["engine"]} <= set(record["speed"])
    assert gpu.violations == []


def test_a_difference_fails_the_check(gpu_check, bundle):
    right = gpu_check.of_backend(open_backend(bundle))
    wrong = gpu_check.of_backend(open_backend(bundle))
    result = gpu_check.compare(lambda ids: 1.01 * wrong(ids), right, [5, 6, 7], "fp32")
    assert not result["ok"] and result["largest_difference"] == pytest.approx(0.01, rel=0.2)
