"""libcudart and libcuda of the stand-in, as functions of C: a caller that sets no argtypes loses half of an address."""
import ctypes
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p

import numpy as np

from tests.tensorrt_stand_in.gpu import Fault

NAMES = {1: "cudaErrorInvalidValue", 2: "cudaErrorMemoryAllocation", 35: "cudaErrorInsufficientDriver",
         100: "cudaErrorNoDevice", 400: "cudaErrorInvalidResourceHandle", 700: "cudaErrorIllegalAddress",
         719: "cudaErrorLaunchFailure", 900: "cudaErrorStreamCaptureUnsupported",
         901: "cudaErrorStreamCaptureInvalidated"}
TO_DEVICE, TO_HOST, ON_DEVICE = 1, 2, 3
KINDS = {TO_DEVICE: ("device", "pinned"), TO_HOST: ("pinned", "device"), ON_DEVICE: ("device", "device")}


class _Foreign(ctypes._CFuncPtr):
    """As functions of a ctypes.CDLL are: without argtypes a number is passed as 32 bits."""
    _flags_ = ctypes._FUNCFLAG_CDECL
    _restype_ = c_int


class Library:
    """What ctypes.CDLL returns. functions: by name, each (types of its arguments, a Python function)."""

    def __init__(self, functions, result=c_int):
        self._kept = {name: ctypes.CFUNCTYPE(result if name not in TEXTS else c_void_p, *types)(function)
                      for name, (types, function) in functions.items()}

    def __getattr__(self, name):
        if name not in self._kept:
            raise AttributeError("undefined symbol: " + name)
        result = _Foreign(ctypes.cast(self._kept[name], c_void_p).value)
        setattr(self, name, result)
        return result


TEXTS = ("cudaGetErrorName", "cudaGetErrorString")


def runtime_library(gpu):
    texts = {code: ctypes.create_string_buffer(name.encode("ascii")) for code, name in NAMES.items()}
    unknown = ctypes.create_string_buffer(b"cudaErrorUnknown")

    def text(code):
        return ctypes.addressof(texts.get(code, unknown))

    functions = {name: (types, _checked(gpu, name, function)) for name, types, function in _calls(gpu)}
    functions.update((name, ([c_int], text)) for name in TEXTS)
    functions["cudaGetLastError"] = ([], lambda: gpu.lost)
    functions["cudaDriverGetVersion"] = ([POINTER(c_int)], lambda to: to.__setitem__(0, gpu.driver) or 0)
    functions["cudaRuntimeGetVersion"] = ([POINTER(c_int)], lambda to: to.__setitem__(0, gpu.runtime) or 0)
    return Library(functions)


def driver_library(gpu):
    def name_of(to, size, _):
        ctypes.memmove(to, gpu.name.encode("utf-8") + b"\0", len(gpu.name) + 1)
        return 0

    return Library({"cuInit": ([c_uint], lambda _: 0 if gpu.driver else 100),
                    "cuDeviceGet": ([POINTER(c_int), c_int], lambda to, number: to.__setitem__(0, number) or 0),
                    "cuDeviceGetName": ([c_void_p, c_int, c_int], name_of)})


def _checked(gpu, name, function):
    """A function of C: 0 or a code, never an exception."""
    def call(*arguments):
        with gpu.lock:
            try:
                gpu.entered(name)
                function(*arguments)
                return 0
            except Fault as fault:
                _note_free(gpu, name, arguments)
                return fault.code
            except Exception as error:
                gpu.violate("{}: {!r}".format(name, error))
                return 999

    return call


def _note_free(gpu, name, arguments):
    """A GPU that fails frees nothing, and the caller has done what it could; a capture ends in any case."""
    if name == "cudaStreamEndCapture" and arguments[0] in gpu.streams:
        gpu.streams[arguments[0]].captured = None
    if name in ("cudaFree", "cudaFreeHost") and arguments[0] in gpu.blocks:
        gpu.blocks[arguments[0]].free_tried = True
    for kind, table in (("cudaStreamDestroy", gpu.streams), ("cudaGraphDestroy", gpu.graphs),
                        ("cudaGraphExecDestroy", gpu.executables)):
        if name == kind:
            table.pop(arguments[0], None)


def _calls(gpu):
    """(name, types, function) of the calls that go to the driver."""
    def set_to(to, value):
        to[0] = value

    def attribute(to, wanted, device):
        set_to(to, {75: gpu.capability[0], 76: gpu.capability[1], 18: int(gpu.integrated)}[wanted])

    def memory(free, total):
        set_to(free, gpu.total - gpu.used)
        set_to(total, gpu.total)

    def allocate(kind):
        def call(to, size, *_):
            gpu.forbid_in_capture("an allocation")
            set_to(to, gpu.allocate(size, kind))
        return call

    def release(kind):
        def call(address):
            gpu.forbid_in_capture("a free")
            if address:
                gpu.release(address, kind)
        return call

    def copy(to, source, size, kind, stream):
        copy_2d(to, size, source, size, size, 1, kind, stream)

    def copy_2d(to, to_pitch, source, pitch, width, height, kind, stream):
        if width > pitch or width > to_pitch:
            raise Fault(1)
        kinds = KINDS[kind]
        target = gpu.view(to, (height - 1) * to_pitch + width, kinds[0], "the target of a copy")
        origin = gpu.view(source, (height - 1) * pitch + width, kinds[1], "the source of a copy")
        if np.shares_memory(target, origin):
            gpu.violate("a copy whose source and target overlap")

        def work():
            if gpu.speeds and kind == TO_HOST:
                gpu.elapsed_s += gpu.speeds.copy_s(width * height)
            for row in range(height):
                target[row * to_pitch:row * to_pitch + width] = origin[row * pitch:row * pitch + width]

        pending = [target[row * to_pitch:row * to_pitch + width] for row in range(height)]
        # Device memory is seen by later work alone, and that comes behind it.
        gpu.put(stream, "a copy", work, pending if kinds[0] == "pinned" else ())

    def fill(address, value, size, stream):
        fill_2d(address, size, value, size, 1, stream)

    def fill_2d(address, pitch, value, width, height, stream):
        if width > pitch:
            raise Fault(1)
        if not height or not width:
            return
        target = gpu.view(address, (height - 1) * pitch + width, "device", "a memset")

        def work():
            for row in range(height):
                target[row * pitch:row * pitch + width] = value

        gpu.put(stream, "a memset", work)

    def new_stream(to, flags):
        if flags != 1:
            gpu.violate("a stream that waits for the default stream")
        set_to(to, gpu.new_handle())
        from tests.tensorrt_stand_in.gpu import Stream

        gpu.streams[to[0]] = Stream()

    def end_stream(handle):
        if gpu.stream(handle, "destroy").work:
            gpu.violate("a stream was destroyed with work on it")
        del gpu.streams[handle]

    def begin(handle, mode):
        stream = gpu.stream(handle, "a capture")
        if stream.captured is not None or mode not in (0, 1, 2):
            raise Fault(1)
        stream.captured, stream.capture_broken = [], False

    def end(handle, to):
        stream = gpu.stream(handle, "a capture's end")
        if stream.captured is None:
            raise Fault(1)
        captured, stream.captured = stream.captured, None
        if stream.capture_broken:
            set_to(to, None)
            raise Fault(901)
        set_to(to, gpu.new_handle())
        gpu.graphs[to[0]] = captured

    def instantiate(to, graph, *rest):
        if graph not in gpu.graphs:
            raise Fault(400)
        set_to(to, gpu.new_handle())
        gpu.executables[to[0]] = list(gpu.graphs[graph])

    def launch(executable, handle):
        if executable not in gpu.executables:
            gpu.violate("launch of a graph that is not there")
            raise Fault(400)
        for work, pending in gpu.executables[executable]:
            gpu.put(handle, "a graph", work, pending)

    def destroy(table, what):
        def call(handle):
            if table.pop(handle, None) is None:
                gpu.violate("{} destroyed twice".format(what))
                raise Fault(400)
        return call

    rest = [c_ulonglong] if gpu.runtime >= 12000 else [POINTER(c_void_p), c_char_p, c_size_t]
    return [
        ("cudaGetDevice", [POINTER(c_int)], lambda to: set_to(to, 0)),
        ("cudaDeviceGetAttribute", [POINTER(c_int), c_int, c_int], attribute),
        ("cudaMemGetInfo", [POINTER(c_size_t), POINTER(c_size_t)], memory),
        ("cudaMalloc", [POINTER(c_void_p), c_size_t], allocate("device")),
        ("cudaFree", [c_void_p], release("device")),
        ("cudaHostAlloc", [POINTER(c_void_p), c_size_t, c_uint], allocate("pinned")),
        ("cudaFreeHost", [c_void_p], release("pinned")),
        ("cudaMemcpyAsync", [c_void_p, c_void_p, c_size_t, c_int, c_void_p], copy),
        ("cudaMemcpy2DAsync", [c_void_p, c_size_t, c_void_p, c_size_t, c_size_t, c_size_t, c_int, c_void_p], copy_2d),
        ("cudaMemsetAsync", [c_void_p, c_int, c_size_t, c_void_p], fill),
        ("cudaMemset2DAsync", [c_void_p, c_size_t, c_int, c_size_t, c_size_t, c_void_p], fill_2d),
        ("cudaStreamCreateWithFlags", [POINTER(c_void_p), c_uint], new_stream),
        ("cudaStreamSynchronize", [c_void_p], gpu.synchronize),
        ("cudaStreamDestroy", [c_void_p], end_stream),
        ("cudaStreamBeginCapture", [c_void_p, c_int], begin),
        ("cudaStreamEndCapture", [c_void_p, POINTER(c_void_p)], end),
        ("cudaGraphInstantiate", [POINTER(c_void_p), c_void_p, *rest], instantiate),
        ("cudaGraphLaunch", [c_void_p, c_void_p], launch),
        ("cudaGraphExecDestroy", [c_void_p], destroy(gpu.executables, "an executable graph")),
        ("cudaGraphDestroy", [c_void_p], destroy(gpu.graphs, "a graph")),
    ]
