"""The TensorRT backend on the stand-in of both versions, against the ONNX Runtime backend on the same bundle.

What the stand-in shows and what not: tests/tensorrt_stand_in/__init__.py. It is strict, which is shown here too, and a
packed file is installed onto a board with TensorRT. Nothing here needs a GPU.
"""
import contextlib
import gc
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from packed_files import app_bytes, bundle_files, packed_bytes

from merino_runtime import backends
from merino_runtime.api import selftest
from merino_runtime.backends import choose_backend, open_backend
from merino_runtime.backends.cuda import ON_DEVICE, TO_DEVICE, CudaError, open_cuda
from merino_runtime.backends.tensorrt_model import open_model
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError
from merino_runtime.generation.cache_file import load_cache, save_cache
from tests.tensorrt_stand_in import ON_PATH, VERSIONS, Gpu, put_in

IDS = [5, 9, 100, 3, 77, 31, 2, 200]


@pytest.fixture(scope="module")
def bundle(bundle_dirs):
    return load_bundle(str(bundle_dirs["portable"]))


@pytest.fixture(params=VERSIONS)
def gpu(request, monkeypatch, tmp_path):
    """A machine with this version. At the end nothing is left on it, and nothing was done that a real one would not
    forgive."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = Gpu()
    put_in(machine, request.param, monkeypatch)
    yield machine
    gc.collect()
    assert machine.violations == [] and machine.left() == []


@pytest.fixture
def backend(bundle, gpu):
    opened = open_backend(bundle, backend="tensorrt")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def truth(bundle):
    """A function: ids -> logits [vocab] of the ONNX Runtime backend after one prefill of them."""
    other = open_backend(bundle, backend="onnxruntime")

    def logits(ids):
        other.truncate(0)
        return other.prefill(ids).copy()

    yield logits
    other.close()


def assert_close(computed, expected):
    assert np.abs(computed - expected).max() <= 1e-5 * np.abs(expected).max()
    assert computed.argmax() == expected.argmax()


def test_the_golden_ids_come_out(bundle, backend):
    assert selftest(bundle, backend) is None
    assert backend.replays_graph and "tensorrt" in backend.engine


def test_a_fork_goes_its_own_way_over_the_same_weights(backend, truth, gpu):
    backend.prefill(IDS)
    backend.step(3)
    weights = [block.size for block in gpu.blocks.values() if block.kind == "trt"]
    twin = backend.fork()
    assert [block.size for block in gpu.blocks.values() if block.kind == "trt"] == weights
    for opened, token_id in ((backend, 11), (twin, 12), (backend, 13), (twin, 14), (twin, 15), (backend, 16)):
        logits = opened.step(token_id)
        assert_close(logits, truth(opened.ids))
    backend.close()
    assert_close(twin.step(20), truth(twin.ids))
    twin.close()


def test_forks_run_in_threads_beside_each_other(bundle, backend, truth):
    backend.prefill(IDS)
    twins, failures = [backend.fork() for _ in range(3)], []

    def run(twin, number):
        try:
            for step in range(12):
                assert_close(twin.step((31 * number + step) % bundle.vocab), expected[number][step])
        except AssertionError as error:
            failures.append(error)

    expected = [[truth(IDS + [(31 * number + index) % bundle.vocab for index in range(step + 1)]) for step in range(12)]
                for number in range(3)]
    threads = [threading.Thread(target=run, args=(twin, number)) for number, twin in enumerate(twins)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for twin in twins:
        twin.close()
    assert failures == []


def test_a_saved_cache_is_read_by_either_backend(bundle, backend, truth, tmp_path):
    backend.prefill(IDS)
    save_cache(bundle, backend, str(tmp_path / "cache"))
    other = open_backend(bundle, backend="onnxruntime")
    load_cache(bundle, other, str(tmp_path / "cache"))
    assert_close(other.step(4), truth(IDS + [4]))
    save_cache(bundle, other, str(tmp_path / "cache2"))
    other.close()
    backend.truncate(0)
    load_cache(bundle, backend, str(tmp_path / "cache2"))
    assert_close(backend.step(9), truth(IDS + [4, 9]))


def test_what_does_not_fit_is_refused_and_changes_nothing(bundle, backend, truth):
    backend.prefill(IDS)
    for call, output in ((lambda: backend.prefill([1] * bundle.context), "does not fit"),
                       (lambda: backend.prefill([]), "at least 1 id"), (lambda: backend.step(bundle.vocab), "does not"),
                       (lambda: backend.prefill([-1]), "the model has"), (lambda: backend.truncate(99), "holds 8")):
        with pytest.raises(MerinoError, match=output):
            call()
    assert backend.ids == IDS
    backend.prefill([7] * (bundle.context - len(IDS)))
    with pytest.raises(MerinoError, match="the KV cache is full"):
        backend.step(1)
    backend.truncate(len(IDS))
    assert_close(backend.step(2), truth(IDS + [2]))


def test_after_closing_every_call_says_so(bundle, gpu):
    opened = open_backend(bundle, backend="tensorrt")
    logits = opened.prefill(IDS)
    kept = logits.copy()
    opened.close()
    opened.close()
    np.testing.assert_array_equal(logits, kept)  # no memory of the GPU's
    for call in (lambda: opened.prefill([1]), lambda: opened.step(1), opened.fork, lambda: opened.truncate(0)):
        with pytest.raises(MerinoError, match="is closed"):
            call()


def test_a_value_that_is_no_number_in_a_dropped_slot_does_not_reach_later_sums(bundle, backend, truth):
    backend.prefill(IDS)
    field = backend._memory.caches[0]
    array = backend._memory.read_cache(field)
    array[:, :, 5:] = np.nan
    backend._memory.write_cache(field, array)
    backend.truncate(5)
    assert_close(backend.step(8), truth(IDS[:5] + [8]))
    array[:, :, 2] = np.inf
    backend._memory.write_cache(field, array)
    with pytest.raises(MerinoError, match="position 6 are not finite"):
        backend.step(8)
    assert backend.length == 6


def test_a_hundred_sessions_leave_nothing(bundle, gpu):
    model = open_model(bundle, lambda _: None)
    model.close()
    gc.collect()
    assert gpu.left() == []
    first = open_backend(bundle, backend="tensorrt")
    first.prefill(IDS)
    used = None
    for number in range(100):
        session = first.fork()
        session.step(number)
        session.step(number)
        session.step(number)
        session.close()
        assert used in (None, gpu.used)
        used = gpu.used
    first.close()
    gc.collect()
    assert gpu.left() == [] and gpu.used == 0


def session(bundle):
    """What a user does: -> the ids that came out."""
    opened = open_backend(bundle, backend="tensorrt")
    try:
        logits = opened.prefill(IDS)
        results = []
        for _ in range(4):
            results.append(int(logits.argmax()))
            logits = opened.step(results[-1])
        twin = opened.fork()
        try:
            results.append(int(twin.step(results[-1]).argmax()))
        finally:
            twin.close()
        opened.truncate(3)
        results.append(int(opened.prefill(IDS[3:]).argmax()))
        return results
    finally:
        opened.close()


@pytest.mark.parametrize("code", [2, 700])
def test_a_driver_that_fails_at_any_call_ends_in_one_message_and_frees_all(bundle, gpu, code):
    """Code 2: no memory, at that call alone. Code 700: the GPU is lost, every later call fails too."""
    expected = session(bundle)
    started = len(gpu.calls)
    session(bundle)
    count = len(gpu.calls) - started
    assert count > 60
    refused = 0
    for number in range(count):
        gpu.calls, gpu.fail_at, gpu.fail_code, gpu.lost = [], number, code, 0
        try:
            assert session(bundle) == expected  # a failed capture, or a free: steps go on without a graph
        except MerinoError as error:
            refused += 1
            assert str(error).endswith("MERINO_BACKEND=onnxruntime."), error
        if gpu.left():  # in cycles; a collection takes longer than a session
            gc.collect()
        assert gpu.left() == [], (number, gpu.left())
        assert gpu.violations == []
        gpu.blocks.clear()  # a lost GPU frees nothing, though it was asked to
        gpu.streams.clear()
    gpu.fail_at, gpu.lost = None, 0
    assert refused > 0.5 * count
    assert session(bundle) == expected


def test_a_step_that_failed_leaves_the_cache_as_it_was(backend, gpu, truth):
    backend.prefill(IDS)
    backend.step(1)
    backend.step(2)
    for name in ("cudaGraphLaunch", "cudaMemcpy2DAsync", "cudaStreamSynchronize"):
        gpu.calls, gpu.fail_at, gpu.fail_code = [], None, 2
        backend.step(4)
        backend.truncate(10)
        gpu.fail_at, before = gpu.calls.index(name), backend.ids[:]
        gpu.calls = []
        with pytest.raises(MerinoError, match="a decode step"):
            backend.step(5)
        gpu.fail_at = None
        assert backend.ids == before
        assert_close(backend.step(6), truth(before + [6]))
        backend.truncate(10)


def test_where_a_decode_step_cannot_be_captured_it_is_enqueued(bundle, gpu, truth):
    opened = open_backend(bundle, backend="tensorrt")
    opened.prefill(IDS)
    opened.step(1)
    gpu.calls, gpu.fail_at, gpu.fail_code = [], 1, 2  # begin of the capture, then the copy in it
    assert_close(opened.step(2), truth(IDS + [1, 2]))
    gpu.fail_at = None
    assert_close(opened.step(3), truth(IDS + [1, 2, 3]))
    assert not opened.replays_graph and "cudaGraphLaunch" not in gpu.calls
    opened.close()


def test_without_a_driver_the_message_says_so(bundle, gpu):
    gpu.driver = 0
    with pytest.raises(MerinoError, match=r"\(35\).*no NVIDIA driver.*MERINO_BACKEND=onnxruntime"):
        open_backend(bundle, backend="tensorrt")


def test_without_the_cuda_runtime_the_message_names_the_package(bundle, gpu, monkeypatch):
    monkeypatch.setattr("merino_runtime.backends.cuda.open_library", lambda _: None)
    with pytest.raises(MerinoError, match="libcudart.so.*nvidia-jetpack"):
        open_backend(bundle, backend="tensorrt")


@pytest.mark.parametrize("version", ["8.0.1.6", "8.5.2.2", "8.6.1", "9.0.0", "11.0.0.114", "7.1.3", ""])
def test_other_versions_are_refused_by_name(bundle, monkeypatch, version):
    put_in(Gpu(), version, monkeypatch)
    with pytest.raises(MerinoError, match="TensorRT is {}.*8.2.*10.x".format(version or "of no version")):
        open_backend(bundle, backend="tensorrt")


def test_no_tensorrt_is_refused_with_what_to_do(bundle, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(MerinoError, match="cannot be imported.*python3-libnvinfer.*system-site-packages"):
        open_backend(bundle, backend="tensorrt")


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
@pytest.mark.parametrize("version", VERSIONS)
def test_misuse_of_cuda_is_found(version, misuse, message, monkeypatch):
    gpu = Gpu()
    put_in(gpu, version, monkeypatch)
    cuda = open_cuda((10, 3) if gpu.runtime >= 12000 else (8, 2))
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
    code, out, err = run(sys.executable, app, "install", pack, "--allow=unsigned", "--json", "--root", root,
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
    code, _, err = run(sys.executable, tmp_path / "merino.pyz", "install", pack, "--allow=unsigned", "--root", root,
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
    monkeypatch.setattr(backends, "is_installed", lambda name: True)
    put_in(Gpu(), version, monkeypatch)
    assert choose_backend(bundle, None, messages.append) == "onnxruntime" and messages == []
    models = {"/proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0"}
    monkeypatch.setattr(backends.board, "read_text", lambda path: models.get(path, ""))
    assert choose_backend(bundle, None, messages.append) == "tensorrt"
    assert version in messages[0] and "MERINO_BACKEND=onnxruntime runs on the CPU" in messages[0]
    assert choose_backend(bundle._replace(backends=bundle.backends[:1]), None, messages.append) == "onnxruntime"
    put_in(Gpu(), "8.0.1.6", monkeypatch)  # JetPack 4.6.0
    assert choose_backend(bundle, None, messages.append) == "onnxruntime"
    assert "TensorRT is 8.0.1.6" in messages[-1] and "onnxruntime is used" in messages[-1]
