"""Thread counts on machines that are not this one: asked for, the bundle's, or by cores, cache and size."""
import pytest

from merino_runtime.backends.threads import thread_counts
from merino_runtime.bundle import BackendNeed, Bundle, Golden, Threads
from merino_runtime.errors import MerinoError
from merino_runtime.io import board

MB = 10 ** 6
BUNDLE = Bundle(
    folder=".", schema=1, name="tiny", family="merino", architecture={}, precision="fp32", dialect="fused", core=None,
    weights="random", weights_source="a seed", context=64, vocab=260, stop_ids=(), kv_layers=(), inputs=(),
    outputs=(), params=1, flops_per_token=1, head_flops=1, weight_bytes=1, decode_weight_bytes=1,
    kv_bytes=1, isa=(), boards=(), slower_on=(),
    backends=(BackendNeed("onnxruntime", "1.18", ()),), threads=Threads(None, None), golden=Golden((), ()),
    chat=None, files=())
ZERO_2_W, PI_5, PC, UNKNOWN = (4, 512 * 1024), (4, 2 * 2 ** 20), (6, 32 * 2 ** 20), (4, 0)


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
    on(*PC)
    large = of_size(1000 * MB, 3, 2)
    assert thread_counts(large, 4) == (4, 4) and thread_counts(large, None, 5) == (5, 2)
    assert thread_counts(large, 1, 8) == (8, 1)
    assert thread_counts(of_size(MB), 2) == (2, 2)


@pytest.mark.parametrize("option, count", [("threads", 0), ("threads", 25), ("prefill_threads", 100000)])
def test_more_threads_than_four_for_each_core_are_refused(on, option, count):
    on(*PC)
    with pytest.raises(MerinoError, match=f"{option} is {count}, allowed: 1 to 24, 4 for each of the 6 cores"):
        thread_counts(BUNDLE, **{option: count})
    assert thread_counts(BUNDLE, 24) == (24, 24)


def test_the_bundles_choice_is_limited_by_the_cores(on):
    on(*PC)
    assert thread_counts(of_size(1000 * MB, 3, 2)) == (3, 2)
    assert thread_counts(of_size(1000 * MB, 9, 8)) == (6, 6)
    assert thread_counts(of_size(1000 * MB, None, 2)) == (2, 2)
    assert thread_counts(of_size(1000 * MB, 5, None)) == (5, 4)
    assert thread_counts(of_size(MB, None, 2)) == (6, 2)


@pytest.mark.parametrize("machine, size_mb, expected", [
    (ZERO_2_W, 7.3, (4, 2)), (ZERO_2_W, 1.2, (4, 2)), (ZERO_2_W, 0.2, (4, 1)), (PI_5, 0.9, (4, 1)), (PI_5, 7.3, (4, 2)),
    (UNKNOWN, 0.2, (4, 2)), (PC, 7.3, (6, 1)), (PC, 20, (6, 4)), (PC, 400, (4, 4)), (ZERO_2_W, 100, (4, 4)),
    ((1, 512 * 1024), 7.3, (1, 1)), ((2, 0), 400, (2, 2))])
def test_without_a_choice_cores_cache_and_size_decide(on, machine, size_mb, expected):
    on(*machine)
    counts = thread_counts(of_size(size_mb * MB))
    assert counts == expected and counts.sessions == 1 + (expected[0] != expected[1])


@pytest.mark.parametrize("files, expected", [
    ({"index0": ("1", "32K"), "index2": ("2", "512K")}, 512 * 1024), ({"index3": ("3", "36M")}, 36 * 2 ** 20),
    ({}, 0), ({"index0": ("", "")}, 0), ({"index0": ("1", "unknown")}, 0)])
def test_the_last_cache_is_read_from_the_system(monkeypatch, files, expected):
    def read(path):
        level, size = files.get(path.split("/")[-2], ("", ""))
        return (level if path.endswith("level") else size) + "\n"

    monkeypatch.setattr(board, "read_text", read)
    assert board.last_level_cache_bytes() == expected
