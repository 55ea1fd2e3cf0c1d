"""Runs on an emulated board's Python, of any version: runs_by_c.py LIBRARY OFFSET ROWS COLUMNS MODEL...

LIBRARY is ONNX Runtime's module for another Python, of which none is called: OFFSET is how far its OrtGetApiBase lies
behind its PyInit_onnxruntime_pybind11_state. Of each model, x float32 [ROWS, COLUMNS] -> y, it calls getsid(0), at
which the emulator's plugin notes its count, before each of three runs and behind the last. One thread.
"""

import ctypes
import os
import sys

API_VERSION, FLOAT, DEVICE_ALLOCATOR, DEFAULT_MEMORY = 10, 1, 0, 0
# Places in the table of functions, OrtApi in onnxruntime_c_api.h: only ever appended to.
ERROR_MESSAGE, CREATE_ENV, CREATE_SESSION, RUN, CREATE_OPTIONS = 2, 3, 7, 9, 10
INTRA_THREADS, TENSOR_OF_DATA, CPU_MEMORY = 24, 49, 69


def api_of(library, offset):
    """A function: (place in the table, arguments) -> nothing; it ends the program where ONNX Runtime has a fault."""
    module = ctypes.CDLL(library, os.RTLD_LAZY)
    known = ctypes.cast(module.PyInit_onnxruntime_pybind11_state, ctypes.c_void_p).value
    base = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p))(known + offset)()
    table = ctypes.cast(
        ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(base[0])(API_VERSION), ctypes.POINTER(ctypes.c_void_p)
    )

    def call(place, *arguments):
        status = ctypes.CFUNCTYPE(ctypes.c_void_p, *map(type, arguments))(table[place])(*arguments)
        if status:
            sys.exit(ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(table[ERROR_MESSAGE])(status))

    return call


def made(call, place, *arguments):
    """What a function of the table makes, by its last argument."""
    found = ctypes.c_void_p()
    call(place, *arguments, ctypes.pointer(found))
    return found


def main(library, offset, rows, columns, *models):
    call = api_of(library, int(offset))
    environment = made(call, CREATE_ENV, ctypes.c_int(3), ctypes.c_char_p(b"count"))
    options = made(call, CREATE_OPTIONS)
    call(INTRA_THREADS, options, ctypes.c_int(1))
    memory = made(call, CPU_MEMORY, ctypes.c_int(DEVICE_ALLOCATOR), ctypes.c_int(DEFAULT_MEMORY))
    rows, columns = int(rows), int(columns)
    data = (ctypes.c_float * (rows * columns))(*((7 * place % 100 - 50) / 25 for place in range(rows * columns)))
    shape = (ctypes.c_int64 * 2)(rows, columns)
    x = made(
        call, TENSOR_OF_DATA, memory, ctypes.cast(data, ctypes.c_void_p), ctypes.c_size_t(ctypes.sizeof(data)),
        ctypes.pointer(shape), ctypes.c_size_t(2), ctypes.c_int(FLOAT),
    )
    names = (ctypes.c_char_p * 1)(b"x"), (ctypes.c_char_p * 1)(b"y")
    for model in models:
        session = made(call, CREATE_SESSION, environment, ctypes.c_char_p(os.fsencode(model)), options)
        for _ in range(3):
            os.getsid(0)
            y = (ctypes.c_void_p * 1)()
            call(
                RUN, session, ctypes.c_void_p(), ctypes.pointer(names[0]), ctypes.pointer(ctypes.c_void_p(x.value)),
                ctypes.c_size_t(1), ctypes.pointer(names[1]), ctypes.c_size_t(1), ctypes.pointer(y),
            )
        os.getsid(0)


main(*sys.argv[1:])
