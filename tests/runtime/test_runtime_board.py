"""Machines that are not this one, from what their kernels print: whether a bundle fits, thread counts, attention.
Memory that is short, or ends."""
import os
import platform
import struct
import subprocess
import sys
import tracemalloc

import pytest

import merino_runtime
from merino_runtime.backends import open_backend
from merino_runtime.backends.onnx_session import SWITCH, faster_attention
from merino_runtime.backends.threads import thread_counts
from merino_runtime.bundle import BackendNeed, Bundle, Golden, KvLayer, Threads
from merino_runtime.bundle.fit import check_bundle_fits, memory_need_mb
from merino_runtime.bundle.requirements import require
from merino_runtime.errors import MerinoError
from merino_runtime.io import board
from merino_runtime.io.json_file import read_json
from merino_runtime.io.streams import exit_code

PI_5 = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid lrcpc asimddp\n\n"
PI_4 = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU part\t: 0xd08\n\n"
PC = "flags\t\t: fpu sse4_2 avx avx2 avx512f avx512_vnni avx_vnni lm\n"
BUNDLE = Bundle(
    folder=".", schema=1, name="tiny", family="merino", architecture={}, precision="fp32", dialect="fused",
    weights="random", weights_source="a seed", context=64, vocab=260, stop_ids=(), kv_layers=(), inputs=(),
    outputs=(), params=1, flops_per_token=1, head_flops=1, weight_bytes=49 * 2 ** 20, decode_weight_bytes=1,
    kv_bytes=2 ** 20, boards=(), backends=(BackendNeed("onnxruntime", "1.18", ()),),
    threads=Threads(None, None), golden=Golden((), ()), chat=None,
    files=())
BOARD = board.Board("aarch64", 64, 4, 4, frozenset(["dotprod", "fp16"]), 512.0, 300.0)


@pytest.mark.parametrize("cpuinfo, expected", [
    (PI_5 * 4, {"dotprod", "fp16"}), (PI_4 * 4, set()), (PI_5 + PI_4, set()), ("", set()),
    (PC * 2, {"sse4_2", "avx", "avx2", "avx512f", "avx512_vnni", "avx_vnni"})])
def test_isa_is_what_every_core_has(cpuinfo, expected):
    assert board.read_isa(cpuinfo) == expected


# As a kernel gives them: floating point, SIMD, CRC and the like have bits too.
A53, A76 = 0x8FB, 0x119FFB


@pytest.mark.parametrize("hwcap, hwcap2, expected", [
    (A53, 0, set()), (A76, 0, {"dotprod", "fp16"}), (A53 | 1 << 9, 0, {"fp16"}), (A53 | 1 << 22, 0, {"sve"}),
    (A76 | 1 << 22, 1 << 1 | 1 << 13 | 1 << 14, {"dotprod", "fp16", "sve", "sve2", "i8mm", "bf16"}),
    (0, 1 << 13, {"i8mm"}), (0, 0, set())])
def test_isa_from_the_auxiliary_vector(hwcap, hwcap2, expected):
    assert board.arm64_isa(hwcap, hwcap2) == expected


@pytest.mark.parametrize("machine, pointer_bytes, hwcap, expected", [
    ("aarch64", 8, A76, {"dotprod", "fp16"}),  # believed before /proc/cpuinfo
    ("aarch64", 8, 0, set()),  # no answer
    ("aarch64", 4, A76, set()),  # a 32-bit userland, where the bits mean other things
    ("armv7l", 4, A76, set()), ("x86_64", 8, A76, set())])
def test_the_auxiliary_vector_is_asked_on_64_bit_arm_only(monkeypatch, machine, pointer_bytes, hwcap, expected):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(struct, "calcsize", lambda _: pointer_bytes)
    monkeypatch.setattr(board, "_auxiliary_value", lambda entry: hwcap if entry == board.AT_HWCAP else 0)
    monkeypatch.setattr(board, "read_text", lambda _: PI_4)
    assert board.this_isa() == expected


@pytest.mark.skipif(platform.system() != "Linux", reason="the auxiliary vector is Linux's")
def test_the_auxiliary_vector_answers_here():
    assert board._auxiliary_value(6) == os.sysconf("SC_PAGESIZE")  # AT_PAGESZ
    assert board._auxiliary_value(9999) == 0


def test_a_32_bit_userland_under_a_64_bit_kernel_is_refused():
    with pytest.raises(MerinoError, match="32-bit.*64-bit image"):
        check_bundle_fits(BUNDLE, BOARD._replace(pointer_bits=32))


@pytest.mark.parametrize("where", ["avx2", "avx2 avx512f"])
def test_products_that_would_overflow_on_x86_are_refused(where):
    bundle = BUNDLE._replace(precision="int8", dialect="portable")
    pc = BOARD._replace(architecture="x86_64", isa=frozenset(where.split()))
    with pytest.raises(MerinoError, match="neither avx512_vnni nor avx_vnni.*wrong.*--precision fp32"):
        check_bundle_fits(bundle, pc)
    for name in ("avx512_vnni", "avx_vnni"):
        assert check_bundle_fits(bundle, pc._replace(isa=pc.isa | {name})) == []


def test_memory_that_is_short_is_noted_and_that_does_not_exist_refused():
    need_mb = 50 + board.PROCESS_MB
    short = BOARD._replace(memory_available_mb=need_mb - 1.0)
    assert f"needs {need_mb} MB" in check_bundle_fits(BUNDLE, short)[0]
    enough = BOARD._replace(memory_available_mb=need_mb + 1.0)
    assert check_bundle_fits(BUNDLE, enough) == []
    assert f"needs {need_mb + 49} MB" in check_bundle_fits(BUNDLE, enough, sessions=2)[0]
    with pytest.raises(MerinoError, match=f"needs {need_mb} MB.*{need_mb - 1} MB in all"):
        check_bundle_fits(BUNDLE, BOARD._replace(memory_total_mb=need_mb - 1.0))
    assert check_bundle_fits(
        BUNDLE, BOARD._replace(memory_total_mb=None, memory_available_mb=None)) == []


def test_this_machine_is_described():
    here = board.this_board()
    assert here.architecture == platform.machine() and here.pointer_bits == 8 * struct.calcsize("P")
    assert 1 <= here.physical_cores <= here.logical_cores == len(board.usable_cpus())


MB = 10 ** 6
ZERO_2_W, PI5, PC6, NO_CACHE = (4, 512 * 1024), (4, 2 * 2 ** 20), (6, 32 * 2 ** 20), (4, 0)


def of_size(size, prefill=None, decode=None):
    return BUNDLE._replace(weight_bytes=int(size), decode_weight_bytes=int(size), threads=Threads(prefill, decode))


@pytest.fixture
def on(monkeypatch):
    def machine(cores, cache_bytes):
        monkeypatch.setattr(board, "usable_cpus", lambda: list(range(cores)))
        monkeypatch.setattr(board, "physical_core_count", lambda: cores)
        monkeypatch.setattr(board, "last_level_cache_bytes", lambda: cache_bytes)
    return machine


def test_what_was_asked_for_is_given_whatever_the_machine(on):
    on(*PC6)
    large = of_size(1000 * MB, 3, 2)
    assert thread_counts(large, 4) == (4, 4, 1) and thread_counts(large, None, 5) == (5, 2, 2)
    assert thread_counts(large, 1, 8) == (8, 1, 2)
    assert thread_counts(of_size(MB), 2) == (2, 2, 1)


@pytest.mark.parametrize("option, count", [("threads", 0), ("threads", 25), ("prefill_threads", 100000)])
def test_more_threads_than_four_for_each_core_are_refused(on, option, count):
    on(*PC6)
    with pytest.raises(MerinoError, match=f"{option} is {count}, allowed: 1 to 24, 4 for each of the 6 cores"):
        thread_counts(BUNDLE, **{option: count})
    assert thread_counts(BUNDLE, 24) == (24, 24, 1)


def test_the_bundles_choice_is_limited_by_the_cores(on):
    on(*PC6)
    assert thread_counts(of_size(1000 * MB, 3, 2)) == (3, 2, 2)
    assert thread_counts(of_size(1000 * MB, 9, 8)) == (6, 6, 1)
    assert thread_counts(of_size(1000 * MB, None, 2)) == (2, 2, 1)
    assert thread_counts(of_size(1000 * MB, 5, None)) == (5, 4, 2)
    assert thread_counts(of_size(MB, None, 2)) == (6, 2, 2)


@pytest.mark.parametrize("machine, size_mb, expected", [
    (ZERO_2_W, 7.3, (4, 2)), (ZERO_2_W, 1.2, (4, 2)), (ZERO_2_W, 0.2, (4, 1)), (PI5, 0.9, (4, 1)), (PI5, 7.3, (4, 2)),
    (NO_CACHE, 0.2, (4, 2)), (PC6, 7.3, (6, 1)), (PC6, 20, (6, 4)), (PC6, 400, (4, 4)), (ZERO_2_W, 100, (4, 4)),
    ((1, 512 * 1024), 7.3, (1, 1)), ((2, 0), 400, (2, 2))])
def test_without_a_choice_cores_cache_and_size_decide(on, machine, size_mb, expected):
    on(*machine)
    assert thread_counts(of_size(size_mb * MB)) == (*expected, 1 + (expected[0] != expected[1]))


def test_with_own_kernels_prefill_has_all_cores_in_decodes_session(on):
    on(*PC6)
    large = of_size(1000 * MB, None, 2)._replace(kernels=("MatMul8",))
    assert thread_counts(large) == (6, 2, 1)
    assert thread_counts(large, 4, 3) == (3, 4, 2)  # a step cannot take more threads than its session has


@pytest.mark.parametrize("files, expected", [
    ({"index0": ("1", "32K"), "index2": ("2", "512K")}, 512 * 1024), ({"index3": ("3", "36M")}, 36 * 2 ** 20),
    ({}, 0), ({"index0": ("", "")}, 0), ({"index0": ("1", "unknown")}, 0)])
def test_the_last_cache_is_read_from_the_system(monkeypatch, files, expected):
    def read(path):
        level, size = files.get(path.split("/")[-2], ("", ""))
        return (level if path.endswith("level") else size) + "\n"

    monkeypatch.setattr(board, "read_text", read)
    assert board.last_level_cache_bytes() == expected


A53_INFO, A72_INFO = "CPU part\t: 0xd03\n", "CPU part\t: 0xd08\n"
BOTH = A53_INFO + A72_INFO


class Cached:
    """A bundle, as far as the choice asks."""
    def __init__(self, form):
        self.kv_layers = (KvLayer(2, 32, form),)


@pytest.mark.parametrize("machine, cpuinfo, form, switch", [
    ("x86_64", "", "int8", "1"), ("x86_64", "", "int4", "1"), ("x86_64", "", "fp32", None),
    ("aarch64", A53_INFO, "fp32", "1"), ("aarch64", BOTH, "fp32", "1"), ("aarch64", A53_INFO, "int8", None),
    ("aarch64", A72_INFO, "fp32", None), ("aarch64", "", "fp32", None), ("riscv64", A53_INFO, "fp32", None)])
def test_the_kernel_that_is_faster_is_asked_for(monkeypatch, machine, cpuinfo, form, switch):
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(board, "read_text", lambda path: cpuinfo if path == "/proc/cpuinfo" else "")
    with pytest.raises(KeyError), faster_attention(Cached(form)):
        assert os.environ.get(SWITCH) == switch
        raise KeyError
    assert SWITCH not in os.environ


@pytest.mark.parametrize("wish", ["0", "1"])
def test_a_wish_of_the_users_stands(monkeypatch, wish):
    monkeypatch.setenv(SWITCH, wish)
    with faster_attention(Cached("int8")):
        assert os.environ[SWITCH] == wish
    assert os.environ[SWITCH] == wish


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
