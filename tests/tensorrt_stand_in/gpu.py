"""The stand-in's machine: memory, streams, and the list of what a real one would not forgive."""
import bisect
import threading
from typing import NamedTuple

import numpy as np

GARBAGE = 0xFF  # as bytes of a float32 or float16 it is NaN, as an integer -1
FIRST_ADDRESS = 0x7F3412345000  # of which the lower half alone is another address
SPACING = 4096  # between blocks: an overrun hits none


class Block:
    """One allocation. kind: device, pinned, or trt (TensorRT's own)."""

    def __init__(self, address, size, kind, data):
        self.address, self.size, self.kind, self.data = address, size, kind, data
        self.free_tried = False


class Fault(Exception):  # noqa: N818 - what CUDA calls it
    """What a call returns: a cudaError code."""

    def __init__(self, code):
        super().__init__(code)
        self.code = code


class Stream:
    def __init__(self):
        self.work = []  # functions without arguments, in order
        self.captured = None  # a list while a capture runs
        self.capture_broken = False


class Speeds(NamedTuple):
    """A device of known times, for graphs whose only operators are matmuls with square matrices."""
    read_gb_s: float
    fp32_gflops: float
    fp16_gflops: float
    launch_us: float
    step_us: float
    host_copy_gb_s: float

    def run_s(self, plan, tokens):
        """Seconds of a run of an engine, up to the wait for its end."""
        half = "FP16" in plan["flags"]
        rate = self.fp16_gflops if half else self.fp32_gflops
        reading = plan["weight_bytes"] / (2 if half else 1) / self.read_gb_s
        computing = 2 * plan["weight_bytes"] / 4 * tokens / rate
        return 1e-9 * max(reading, computing) + 1e-6 * (self.step_us + plan["matmuls"] * self.launch_us)

    def copy_s(self, size):
        """Seconds of a copy to the host, and of the sampler's from there."""
        return 2e-9 * size / self.host_copy_gb_s


class Gpu:
    """name, capability, total: what the device says of itself. driver 0: none is loaded.

    fail_at: number of the call, from 0, that fails with `fail_code`; None: none does. Lost codes stay.
    """

    def __init__(self, name="NVIDIA Stand-In X1", capability=(5, 3), total=2 ** 32, integrated=True, driver=12060):
        self.name, self.capability, self.total, self.integrated = name, capability, total, integrated
        self.driver, self.runtime = driver, 12060
        self.violations, self.calls = [], []
        self.fail_at, self.fail_code, self.lost = None, 700, 0
        self.blocks, self.freed, self.streams, self.graphs, self.executables = {}, {}, {}, {}, {}
        self.builds = 0
        self.speeds, self.elapsed_s = None, 0.0  # of work that took effect
        self._next, self._handle = FIRST_ADDRESS, 0x10
        self.lock = threading.RLock()

    # what a test asks

    @property
    def used(self):
        """Bytes of device memory that are allocated."""
        return sum(block.size for block in self.blocks.values() if block.kind != "pinned")

    def left(self):
        """What was allocated, and nobody tried to free."""
        results = ["{} {}".format(block.kind, block.size) for block in self.blocks.values() if not block.free_tried]
        return results + [name for name, kind in (("stream", self.streams), ("graph", self.graphs),
                                                ("executable", self.executables)) for _ in kind]

    def violate(self, text):
        self.violations.append(text)

    # calls

    def entered(self, name):
        """Each call into the driver comes through here first. Raises Fault where it is to fail."""
        number = len(self.calls)
        self.calls.append(name)
        if self.lost:
            raise Fault(self.lost)
        if not self.driver:
            raise Fault(35)
        if self.fail_at is not None and number == self.fail_at:
            if self.fail_code >= 400:
                self.lost = self.fail_code
            raise Fault(self.fail_code)

    def new_handle(self):
        self._handle += 0x10
        return self._handle

    # memory

    def allocate(self, size, kind):
        if kind != "pinned" and self.used + size > self.total:
            raise Fault(2)
        data = np.empty(max(1, size), np.uint8)
        if kind != "trt":  # TensorRT's own, of which nobody reads a byte: untouched, it costs nothing
            data[:] = GARBAGE
        address = data.ctypes.data if kind == "pinned" else self._next
        if kind != "pinned":
            self._next += -(-size // SPACING) * SPACING + SPACING
        self.blocks[address] = Block(address, size, kind, data)
        self.freed.pop(address, None)
        return address

    def release(self, address, kind):
        block = self.blocks.get(address)
        if block is None or block.kind != kind:
            self.violate("free of {:#x}, which is no {} memory{}".format(
                address or 0, kind, " any more" if address in self.freed else ""))
            raise Fault(1)
        if any(stream.work for stream in self.streams.values()):
            self.violate("free of {} memory while work is on a stream".format(kind))
        del self.blocks[address]
        if kind != "trt":
            block.data[:] = GARBAGE
        self.freed[address] = block  # kept: a late reader of pinned memory finds garbage, not a crash

    def view(self, address, size, kind, what):
        """The bytes at an address. Raises Fault where they are not all in one live block of the kind."""
        addresses = sorted(self.blocks)
        place = bisect.bisect_right(addresses, address) - 1
        block = self.blocks[addresses[place]] if place >= 0 else None
        if block is None or block.kind != kind or address + size > block.address + block.size:
            dead = any(old.address <= address < old.address + old.size for old in self.freed.values())
            self.violate("{}: {} bytes at {:#x} are not in {} memory{}".format(
                what, size, address or 0, kind, ", which was freed" if dead else ""))
            raise Fault(700 if kind == "device" else 1)
        start = address - block.address
        return block.data[start:start + size]

    # streams

    def stream(self, handle, what):
        if not handle or handle not in self.streams:
            self.violate("{} on {}".format(what, "the default stream" if not handle else "a stream that is not there"))
            raise Fault(400)
        return self.streams[handle]

    def put(self, handle, what, work, pending=()):
        """Puts work on a stream. pending: views that it will write, and that hold garbage until then."""
        stream = self.stream(handle, what)
        if stream.captured is not None:
            stream.captured.append((work, pending))
            return
        for view in pending:
            view[:] = GARBAGE
        stream.work.append(work)

    def synchronize(self, handle):
        stream = self.stream(handle, "synchronize")
        if stream.captured is not None:
            stream.capture_broken = True
            raise Fault(900)
        work, stream.work = stream.work, []
        for task in work:
            task()

    def forbid_in_capture(self, what):
        """Allocations and frees are not allowed while this thread captures."""
        for stream in self.streams.values():
            if stream.captured is not None:
                stream.capture_broken = True
                self.violate(what + " within a capture")
                raise Fault(900)
