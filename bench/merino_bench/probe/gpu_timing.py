"""Runs a chain of products as the TensorRT backend runs a decoder: one copy in, the network, one copy back, replayed
as a CUDA graph where it is a decode step; one strided copy on the device; one wait.
"""
import contextlib
import ctypes
from typing import Any, Callable, Iterator, List, Tuple

import numpy as np

from merino_bench.probe.gpu_plan import ENTRY_BYTES, TOKENS
from merino_bench.probe.timing import repeat_ms
from merino_runtime.backends.cuda import ON_DEVICE, TO_DEVICE, TO_HOST, Cuda
from merino_runtime.backends.engine_build import DECODE
from merino_runtime.backends.tensorrt_model import NotLoadedError, bind, captured, engine_of, released
from merino_runtime.backends.tensorrt_versions import TensorRt
from merino_runtime.errors import MerinoError

FLOAT_BYTES = 4  # of an engine's inputs and outputs, in each precision


@contextlib.contextmanager
def opened(trt: TensorRt, cuda: Cuda, plan: Any, columns: int) -> Iterator[List[Tuple[int, Callable[[], None]]]]:
    """-> (tokens, a call that runs the chain over them and waits) of both profiles. Raises MerinoError, CudaError."""
    row, size = FLOAT_BYTES * columns, FLOAT_BYTES * columns * TOKENS
    with contextlib.ExitStack() as stack:
        try:
            engine = engine_of(stack, trt, plan)
        except NotLoadedError as error:
            raise MerinoError(f"TensorRT {trt.version} does not load a plan that it has just built: {error}. Stop "
                              "programs that use the GPU.") from error
        loaded = bind(stack, trt, cuda, engine, TOKENS)
        stream = loaded.stream
        source, target, entries = (_allocated(stack, cuda.malloc, cuda.free, each) for each in (size, size, row))
        pinned = _allocated(stack, cuda.host_alloc, cuda.free_host, 2 * row)
        stack.callback(released, cuda.synchronize, stream)  # first of all
        cuda.memset(source, 0, size, stream)
        ctypes.memset(pinned, 0, row)
        addresses = {name: source if tensor.is_input else target for name, tensor in loaded.tensors.items()}

        def enqueue(number: int) -> None:
            cuda.memcpy(source, pinned, row, TO_DEVICE, stream)
            loaded.bound[number].enqueue(stream)
            cuda.memcpy(pinned + row, target, row, TO_HOST, stream)

        def run(number: int, graph: int) -> None:
            if graph:
                cuda.launch(graph, stream)
            else:
                enqueue(number)
            cuda.memcpy_2d(entries, ENTRY_BYTES, target, ENTRY_BYTES, ENTRY_BYTES, row // ENTRY_BYTES, ON_DEVICE,
                           stream)
            cuda.synchronize(stream)

        calls: List[Tuple[int, Callable[[], None]]] = []
        for number, tokens in enumerate((1, TOKENS)):
            loaded.bound[number].set_addresses(addresses)
            run(number, 0)
            graph = captured(cuda, stream, lambda: enqueue(DECODE)) if number == DECODE else 0
            if graph:
                stack.callback(released, cuda.exec_destroy, graph)
            calls.append((tokens, lambda number=number, graph=graph: run(number, graph)))  # type: ignore[misc]
        yield calls


def copy_ms(cuda: Cuda, size: int, seconds: float) -> List[float]:
    """Samples of bringing `size` bytes to where a sampler reads them: to pinned memory, and from there to an array."""
    with contextlib.ExitStack() as stack:
        stream = cuda.stream_create()
        stack.callback(released, cuda.stream_destroy, stream)
        source = _allocated(stack, cuda.malloc, cuda.free, size)
        pinned = _allocated(stack, cuda.host_alloc, cuda.free_host, size)
        stack.callback(released, cuda.synchronize, stream)  # first of all
        cuda.memset(source, 0, size, stream)
        array = np.zeros(size, np.uint8)
        shown = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pinned))

        def call() -> None:
            cuda.memcpy(pinned, source, size, TO_HOST, stream)
            cuda.synchronize(stream)
            np.copyto(array, shown)

        return repeat_ms(call, seconds)


def _allocated(stack: contextlib.ExitStack, allocate: Callable[[int], int], free: Callable[[int], None],
               size: int) -> int:
    address = allocate(size)
    stack.callback(released, free, address)
    return address
