"""Memory that runs out, by a process's real limit and by the words of each library: one message, never "damage"."""
import os
import subprocess
import sys
import tracemalloc

import pytest

import merino_runtime
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.bundle.fit import memory_need_mb
from merino_runtime.bundle.requirements import require
from merino_runtime.errors import MerinoError
from merino_runtime.io import board
from merino_runtime.io.json_file import read_json
from merino_runtime.io.streams import exit_code

ROOT = os.path.dirname(os.path.dirname(merino_runtime.__file__))
IDS = [5, 9, 100, 3]
# As onnxruntime 1.32 and 1.10, numpy, the dynamic loader and glibc word it.
WORDS = [
    RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc"),
    RuntimeError("Non-zero status code returned while running Gather node. Name:'Gather_6' Status Message: "
                 "bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 102400"),
    ImportError("libonnxruntime.so.1.32.0: failed to map segment from shared object"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to "
                 "allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)"),
    RuntimeError("can't start new thread"), OSError(12, "Cannot allocate memory"), MemoryError(),
    MemoryError("Unable to allocate 512. KiB for an array")]

LIMITED = """
import resource, sys
import numpy, onnxruntime
from merino_runtime.backends import onnx, open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError

HARD = resource.getrlimit(resource.RLIMIT_AS)[1]

def limit(more_bytes):
    pages = int(open("/proc/self/statm").read().split()[0])
    size = pages * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (size, HARD))

bundle = load_bundle(sys.argv[1])
if sys.argv[2] == "a cache":  # of 256 GB, with a limit that the sessions keep
    inputs = tuple(port._replace(shape=(1, 2, 2 ** 30, 32)) if port.name.startswith("past_key_values") else port
                   for port in bundle.inputs)
    bundle = bundle._replace(inputs=inputs, kv_bytes=2 ** 38)
limit(2 ** 30 if sys.argv[2] == "a cache" else 0)
try:
    open_backend(bundle, 1)
except MerinoError as error:
    resource.setrlimit(resource.RLIMIT_AS, (HARD, HARD))
    print(error)
"""


@pytest.fixture(params=["fused", "portable"])
def bundle(request, bundle_dirs):
    if request.param not in bundle_dirs:
        pytest.skip(f"no {request.param} bundle for this Python's onnxruntime")
    return load_bundle(str(bundle_dirs[request.param]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
@pytest.mark.parametrize("what, doing", [("the sessions", "opening the graph"), ("a cache", "allocating the KV cache")])
def test_a_process_whose_memory_ends_while_opening_says_what_is_needed_and_what_there_is(bundle, what, doing):
    call = [sys.executable, "-c", LIMITED, bundle.folder, what]
    out = subprocess.check_output(call, env=dict(os.environ, PYTHONPATH=ROOT, OPENBLAS_NUM_THREADS="1"))
    output = out.decode("utf-8")
    assert output.startswith(f"out of memory in {doing}: bundle {bundle.name!r} needs ")
    assert "MB of weights" in output and "MB of KV cache" in output and "Stop other programs" in output
    assert "--context" in output and "--precision" in output and "again" not in output
    assert what != "a cache" or "MB are available. Stop" in output  # else there may be too little memory to look


@pytest.mark.parametrize("error", WORDS, ids=lambda error: type(error).__name__)
def test_memory_that_runs_out_in_prefill_and_decode_leaves_the_cache_as_it_was(bundle, error):
    class NoMemory:
        def io_binding(self):
            return session.io_binding()

        def run_with_iobinding(self, _):
            raise error

    backend = open_backend(bundle, 1)
    session = backend._decode_session
    backend._decode_session = backend._prefill_session = NoMemory()
    with pytest.raises(MerinoError, match="^out of memory in the prefill of 4 ids: .*Stop other programs"):
        backend.prefill(IDS)
    assert backend.ids == []
    backend._decode_session = backend._prefill_session = session
    backend.prefill(IDS)
    backend._decode_session = backend._prefill_session = NoMemory()
    with pytest.raises(MerinoError, match="^out of memory in a decode step: .*Stop other programs"):
        backend.step(7)
    assert backend.ids == IDS
    backend._decode_session = backend._prefill_session = session
    assert backend.step(7).shape == (bundle.vocab,) and backend.ids == [*IDS, 7]
    backend.close()


def test_two_sessions_need_the_weights_twice_and_the_process_counts(bundle):
    once, twice = memory_need_mb(bundle), memory_need_mb(bundle, 2)
    assert twice - once == bundle.weight_bytes / board.MB
    assert once == (bundle.weight_bytes + bundle.kv_bytes) / board.MB + board.PROCESS_MB > 50


def raised(error, reason=None):
    raise error from reason


DAMAGED = MerinoError("model.onnx is damaged. Export it again.")


@pytest.mark.parametrize("error", WORDS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("blamed", [False, True], ids=["as it is", "behind a reader's message"])
def test_memory_that_runs_out_anywhere_is_one_line_with_the_figures(error, blamed, capsys):
    assert exit_code(lambda: raised(DAMAGED, error) if blamed else raised(error)) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("merino: out of memory") and "damaged" not in err
    assert "this process has held up to" in err and "MB are available. Stop other programs" in err


def test_a_message_that_knows_more_stays_and_a_handled_lack_of_memory_is_no_reason(capsys):
    detailed = MerinoError("out of memory in a decode step: bundle 'a' needs 9 MB")
    assert exit_code(lambda: raised(detailed, MemoryError())) == 1
    assert capsys.readouterr()[1] == f"merino: {detailed}\n"

    def handled():
        try:
            raise MemoryError
        except MemoryError:
            raise MerinoError("give a smaller -n") from None

    assert exit_code(handled) == 1 and capsys.readouterr()[1] == "merino: give a smaller -n\n"
    with pytest.raises(AttributeError):
        exit_code(lambda: raised(AttributeError("a defect of ours")))


def test_a_package_that_memory_does_not_suffice_for_is_not_called_absent(tmp_path, monkeypatch):
    (tmp_path / "vast.py").write_text("raise ImportError('libvast.so: failed to map segment from shared object')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MerinoError, match="^out of memory in importing vast .libvast.so: failed to map.*MB are avail"):
        require("vast")


def test_a_small_file_takes_little_memory_to_read(tmp_path):
    """It took as much as the largest file that is allowed: `info` failed below 100 MB."""
    path = tmp_path / "small.json"
    path.write_text("[1, 2]")
    tracemalloc.start()
    assert read_json(str(path), "") == [1, 2]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 ** 20
