"""The stand-in is strict; a packed file onto a board with TensorRT."""
import contextlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from packed_files import app_bytes, bundle_files, packed_bytes

from merino_runtime.backends import choice
from merino_runtime.backends.choice import choose_backend
from merino_runtime.backends.cuda import ON_DEVICE, TO_DEVICE, CudaError, open_cuda
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError
from tests.tensorrt_stand_in import ON_PATH, VERSIONS, Gpu, put_in


@pytest.fixture(params=VERSIONS)
def gpu(request, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = Gpu()
    put_in(machine, request.param, monkeypatch)
    return machine


@pytest.fixture
def cuda(gpu):
    return open_cuda((10, 3) if gpu.runtime >= 12000 else (8, 2))


@pytest.fixture
def bundle(bundle_dirs):
    return load_bundle(str(bundle_dirs["portable"]))


PAGEABLE = np.zeros(64, np.uint8)


def free(cuda, address):
    cuda._call("cudaFree", address)


@pytest.mark.parametrize("misuse, message", [
    (lambda cuda, stream, device, pinned: cuda.memcpy(device, PAGEABLE.ctypes.data, 64, TO_DEVICE, stream),
     "not in pinned memory"),
    (lambda cuda, stream, device, pinned: cuda.memcpy(device, pinned, 65, TO_DEVICE, stream), "65 bytes"),
    (lambda cuda, stream, device, pinned: cuda.memset(device, 0, 64, 0), "default stream"),
    (lambda cuda, stream, device, pinned: (free(cuda, device), cuda.memset(device, 0, 64, stream)), "was freed"),
    (lambda cuda, stream, device, pinned: (free(cuda, device), free(cuda, device)), "any more"),
    (lambda cuda, stream, device, pinned: cuda.memcpy(device + 8, device, 16, ON_DEVICE, stream), "overlap"),
    (lambda cuda, stream, device, pinned: (cuda.memset(device, 0, 64, stream), free(cuda, device)), "work is on"),
    (lambda cuda, stream, device, pinned: (cuda._call("cudaStreamBeginCapture", stream, 1),
                                          cuda.malloc(8, contextlib.ExitStack())), "within a capture"),
    (lambda cuda, stream, device, pinned: cuda.launch(123, stream), "not there"),
])
def test_misuse_of_cuda_is_found(gpu, cuda, misuse, message):
    stack = contextlib.ExitStack()  # it is never closed
    stream, device, pinned = cuda.stream_create(stack), cuda.malloc(64, stack), cuda.host_alloc(64, stack)
    try:
        misuse(cuda, stream, device, pinned)
    except CudaError:
        pass
    assert any(message in violation for violation in gpu.violations), gpu.violations


@pytest.fixture
def pack(bundle_dirs, tmp_path):
    path = tmp_path / "model.merino"
    path.write_bytes(packed_bytes(app_bytes(tmp_path / "merino.pyz"), [bundle_files(bundle_dirs["portable"])]))
    return path


def run(*command, **environment):
    """-> (exit code, stdout, stderr) of a process for which the stand-in is installed."""
    path = os.pathsep.join(filter(None, [ON_PATH, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=dict(os.environ, PYTHONPATH=path, **environment))
    out, err = (stream.decode("utf-8") for stream in process.communicate())
    assert "Traceback" not in err, err
    return process.returncode, out, err


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="boards run Linux")
def test_install_builds_the_engine_and_the_release_runs_on_it(pack, tmp_path):
    root, app = tmp_path / "root", tmp_path / "merino.pyz"
    code, out, err = run(sys.executable, app, "install", pack, "--allow-unsigned", "--json", "--root", root,
                         "--backend", "tensorrt")
    assert code == 0, err
    assert err.index("building an engine") < err.index("self-test")
    release = root / "releases" / json.loads(out)["id"]
    engines = [path.name for path in (release / "engines").iterdir() if path.suffix == ".engine"]
    assert len(engines) == 1, "beside the bundle, for whoever runs it"
    code, out, err = run(root / "current" / "merino", "selftest", "installed")
    assert code == 0 and out.startswith("ok: ") and "building" not in err
    code, _, err = run(root / "current" / "merino", "selftest", "installed", MERINO_STAND_IN_BROKEN="1")
    assert code == 1 and "no NVIDIA driver" in err, "the release's backend is the one that it was installed with"
    assert run(root / "current" / "merino", "selftest", "installed", "--backend", "onnxruntime",
               MERINO_STAND_IN_BROKEN="1")[0] == 0


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="boards run Linux")
def test_where_no_engine_can_be_built_nothing_is_installed(pack, tmp_path):
    root = tmp_path / "root"
    code, _, err = run(sys.executable, tmp_path / "merino.pyz", "install", pack, "--allow-unsigned", "--root", root,
                       "--backend", "tensorrt", MERINO_STAND_IN_BROKEN="1")
    assert code == 1 and "no engine was built" in err and "no NVIDIA driver" in err and "nothing is installed" in err
    assert list((root / "releases").iterdir()) == []


def test_the_command_line_chooses_then_the_environment_then_the_bundle(bundle, monkeypatch):
    assert choose_backend(bundle) == "onnxruntime"
    assert choose_backend(bundle, "tensorrt") == "tensorrt"
    monkeypatch.setenv("MERINO_BACKEND", "tensorrt")
    assert choose_backend(bundle) == "tensorrt" and choose_backend(bundle, "onnxruntime") == "onnxruntime"
    monkeypatch.setenv("MERINO_BACKEND", "abacus")
    with pytest.raises(MerinoError, match="'abacus', allowed: onnxruntime, tensorrt"):
        choose_backend(bundle)
    monkeypatch.delenv("MERINO_BACKEND")
    without_tensorrt = bundle._replace(backends=bundle.backends[:1])
    with pytest.raises(MerinoError, match="does not run on tensorrt: it needs onnxruntime .*--dialect portable"):
        choose_backend(without_tensorrt, "tensorrt")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_jetson_that_has_tensorrt_takes_it_and_says_so(bundle, monkeypatch, version):
    messages = []
    monkeypatch.setattr(choice, "is_installed", lambda name: True)
    put_in(Gpu(), version, monkeypatch)
    assert choose_backend(bundle, None, messages.append) == "onnxruntime" and messages == []
    models = {"/proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0"}
    monkeypatch.setattr(choice.board, "read_text", lambda path: models.get(path, ""))
    assert choose_backend(bundle, None, messages.append) == "tensorrt"
    assert version in messages[0] and "--backend onnxruntime runs on the CPU" in messages[0]
    assert choose_backend(bundle._replace(backends=bundle.backends[:1]), None, messages.append) == "onnxruntime"
    put_in(Gpu(), "8.0.1.6", monkeypatch)  # JetPack 4.6.0
    assert choose_backend(bundle, None, messages.append) == "onnxruntime"
    assert "TensorRT is 8.0.1.6" in messages[-1] and "onnxruntime is used" in messages[-1]
