"""That the stand-in is strict: each kind of misuse, and a backend that is made to commit it, is found. And the layout
of device memory, against numpy."""

import numpy as np
import pytest

from merino_runtime.backends import tensorrt_session
from merino_runtime.backends.cuda import ON_DEVICE, TO_DEVICE, TO_HOST, CudaError, device_of, open_cuda
from merino_runtime.backends.tensorrt_session import Field, aligned, cache_copies, laid_out
from merino_runtime.bundle import load_bundle
from tests.tensorrt_stand_in import VERSIONS, Gpu, put_in

try:
    from hypothesis import given
    from hypothesis import strategies as st
except ImportError:  # a board's Python may have none
    given = None


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


def host(cuda, size):
    address = cuda.host_alloc(size)
    return address, tensorrt_session._bytes_at(address, size)


def test_work_takes_effect_when_the_stream_is_synchronized(gpu, cuda):
    stream, device, (address, pinned) = cuda.stream_create(), cuda.malloc(64), host(cuda, 64)
    pinned[:] = 7
    cuda.memcpy(device, address, 64, TO_DEVICE, stream)
    cuda.memcpy(address, device, 64, TO_HOST, stream)
    assert set(pinned) == {255}, "before that it holds garbage"
    cuda.synchronize(stream)
    assert gpu.violations == []


def test_addresses_reach_the_library_whole(gpu, cuda):
    """Without argtypes ctypes would pass 32 bits of them."""
    assert cuda.malloc(10) > 2 ** 32
    cuda.free(cuda.malloc(1))
    assert gpu.violations == [] and device_of(cuda).name == gpu.name
    bare = gpu.__class__()
    from tests.tensorrt_stand_in.cuda_runtime import runtime_library

    function = runtime_library(bare).cudaFree
    function(bare.allocate(64, "device"))
    assert len(bare.violations) == 1 and "no device memory" in bare.violations[0]


@pytest.mark.parametrize("misuse, message", [
    (lambda cuda, stream, device, pinned: cuda.memcpy(device, PAGEABLE.ctypes.data, 64, TO_DEVICE, stream),
     "not in pinned memory"),
    (lambda cuda, stream, device, pinned: cuda.memcpy(device, pinned, 65, TO_DEVICE, stream), "65 bytes"),
    (lambda cuda, stream, device, pinned: cuda.memset(device, 0, 64, 0), "default stream"),
    (lambda cuda, stream, device, pinned: (cuda.free(device), cuda.memset(device, 0, 64, stream)), "was freed"),
    (lambda cuda, stream, device, pinned: (cuda.free(device), cuda.free(device)), "any more"),
    (lambda cuda, stream, device, pinned: cuda.memcpy(device + 8, device, 16, ON_DEVICE, stream), "overlap"),
    (lambda cuda, stream, device, pinned: (cuda.memset(device, 0, 64, stream), cuda.free(device)), "work is on"),
    (lambda cuda, stream, device, pinned: (cuda.begin_capture(stream), cuda.malloc(8)), "within a capture"),
    (lambda cuda, stream, device, pinned: cuda.launch(123, stream), "not there"),
])
def test_misuse_of_cuda_is_found(gpu, cuda, misuse, message):
    stream, device, pinned = cuda.stream_create(), cuda.malloc(64), cuda.host_alloc(64)
    try:
        misuse(cuda, stream, device, pinned)
    except CudaError:
        pass
    assert any(message in violation for violation in gpu.violations), gpu.violations


def moved(shapes, context, count, position, dtype):
    """The copies of a layout, done by numpy on one buffer -> caches before and after, new entries, number of copies."""
    caches = [Field(str(index), dtype, (1, heads, context, size)) for index, (heads, size) in enumerate(shapes)]
    new = [Field(field.name, dtype, (1, field.shape[1], count, field.shape[3])) for field in caches]
    at = laid_out(caches)
    fresh = laid_out(new, aligned(at.size))
    buffer = np.random.RandomState(0).randint(0, 255, fresh.size).astype(np.uint8)

    def part(field, offset):
        return buffer[offset:offset + field.size].reshape(field.shape[1:3] + (-1,))  # [heads, ids, bytes]

    before = [part(field, at.offsets[field.name]).copy() for field in caches]
    entries = [part(field, fresh.offsets[field.name]).copy() for field in new]
    copies = cache_copies(caches, at.offsets, fresh.offsets, count)
    for copy in copies:
        for row in range(copy.rows):
            to = copy.to + row * copy.to_pitch + position * copy.entry
            source = copy.source + row * copy.pitch
            buffer[to:to + count * copy.entry] = buffer[source:source + count * copy.entry]
    assert all(offset % 256 == 0 for layout in (at, fresh) for offset in layout.offsets.values())
    return before, [part(field, at.offsets[field.name]) for field in caches], entries, len(copies)


if given is not None:
    layers = st.lists(st.tuples(st.integers(1, 5), st.sampled_from([32, 64, 96])), min_size=1, max_size=6)

    @given(shapes=layers, context=st.integers(1, 9), data=st.data(), dtype=st.sampled_from(["float16", "float32"]))
    def test_the_copies_write_each_new_entry_to_its_place_and_nothing_else(shapes, context, data, dtype):
        count = data.draw(st.integers(1, context))
        position = data.draw(st.integers(0, context - count))
        before, after, entries, copies = moved(shapes, context, count, position, dtype)
        for old, now, new in zip(before, after, entries):
            np.testing.assert_array_equal(now[:, position:position + count], new)
            now = now.copy()
            now[:, position:position + count] = old[:, position:position + count]
            np.testing.assert_array_equal(now, old)
        assert copies <= len(shapes)


def test_layers_whose_heads_have_one_size_need_one_copy():
    assert moved([(heads, 64) for heads in (4, 4, 6, 6, 2, 2)], 16, 1, 3, "float32")[3] == 1
    assert moved([(3, 64), (3, 64), (3, 32), (3, 32)], 16, 4, 3, "float32")[3] == 2
