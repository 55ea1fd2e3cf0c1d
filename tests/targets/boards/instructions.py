"""Runs on 64-bit Arm, nothing but Python's own library: which instructions does this CPU execute?

`instructions.py NAME` executes one here and prints its result: the process dies of SIGILL where the CPU has it not.
`instructions.py` alone tries each in a child and prints {"NAME": whether it ran} as JSON.
"""

import ctypes
import json
import mmap
import os
import resource
import signal
import struct
import sys

RETURN = 0xD65F03C0  # ret
# Operands of dotprod, so that its result can be told from nothing: 4 x (2 x 3) in each lane.
DOTPROD = [
    0x4F00E400,  # movi v0.16b, #0
    0x4F00E441,  # movi v1.16b, #2
    0x4F00E462,  # movi v2.16b, #3
    0x4E829420,  # sdot v0.4s, v1.16b, v2.16b
    0x1E260000,  # fmov w0, s0
]
CODE = {
    "none": [0x52800300],  # mov w0, #24: that code runs at all
    "dotprod": DOTPROD,
    "fp16": [0x4E421420],  # fadd v0.8h, v1.8h, v2.8h
    "i8mm": [0x4E82A420],  # smmla v0.4s, v1.16b, v2.16b
    "bf16": [0x6E42FC20],  # bfdot v0.4s, v1.8h, v2.8h
    "sve": [0x0420E3E0],  # cntb x0
    "sve2": [0x04226020],  # mul z0.b, z1.b, z2.b
}


def execute(words):
    """-> w0. mmap'ed and never freed: the process is about to end."""
    code = struct.pack(f"<{len(words) + 1}I", *words, RETURN)
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)()


def runs(words):
    child = os.fork()
    if not child:
        execute(words)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGILL, status
    return not os.WIFSIGNALED(status)


resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # to die is the expected thing here: leave no core file
if len(sys.argv) > 1:
    print(execute(CODE[sys.argv[1]]))
else:
    print(json.dumps({name: runs(words) for name, words in CODE.items()}))
