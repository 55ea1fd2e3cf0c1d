"""The memory of a process: errors that mean it ran out, glibc's heap in a process that runs for months, and Python's
search for cycles. `bundle.fit` makes the message for a bundle that does not fit. Standard library only.
"""
import gc
import os
import re
from typing import Optional

from merino_runtime.errors import MerinoError
from merino_runtime.io import board

# The words of C++ allocators, onnxruntime's arena, numpy, torch, the dynamic loader and the C library. A thread that
# cannot be started lacks memory for its stack.
OUT_OF_MEMORY_WORDS = re.compile(
    r"bad_alloc|bad allocation|[Ff]ailed to allocate|[Uu]nable to allocate|[Cc]annot allocate memory|MemoryError"
    r"|can't allocate memory|failed to map segment|ENOMEM|can't start new thread|pthread_create", re.ASCII)

LONGEST_CHAIN = 10  # of errors, each raised from the next
ARENA_MAX, MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -8, -4, -3, -1  # of mallopt
LARGE_BYTES = 2 ** 20


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, numpy, onnxruntime or the dynamic loader reports that memory ran out."""
    return isinstance(error, MemoryError) or bool(OUT_OF_MEMORY_WORDS.search(str(error)))


def lack_of_memory(error: BaseException) -> Optional[BaseException]:
    """Return the first of the errors behind this one, or itself, that reports that memory ran out; None if none does. A
    reader reports "the file is damaged" for whatever a library raises, MemoryError included."""
    cause, lack = error, None  # type: Optional[BaseException], Optional[BaseException]
    for _ in range(LONGEST_CHAIN):
        if cause is None:
            break
        if is_out_of_memory(cause):
            lack = cause
        deliberate = isinstance(cause, MerinoError)  # what it was raised within, it was not raised for
        cause = cause.__cause__ or (None if deliberate else cause.__context__)
    return lack


def ran_out(error: BaseException, doing: str = "") -> str:
    """Return the message. doing: as in "importing numpy"; empty if it is unknown."""
    text = " ".join(str(error).split())[:200]
    return (f"out of memory{' in ' + doing if doing else ''}{f' ({text})' if text else ''}{memory_figures()}. "
            "Stop other programs, raise the limit if there is one, or run less: a smaller model, a shorter context or "
            "a smaller batch.")


def memory_figures() -> str:
    """Return what the process used and what the machine has; nothing if memory does not suffice to read that."""
    try:
        peak_mb, mb = board.peak_rss_mb(), board.read_memory_mb(board.read_text("/proc/meminfo"))
    except MemoryError:
        return ""
    there = f"; this process has held up to {peak_mb:.0f} MB"
    if "MemAvailable" in mb:
        there += f", {mb['MemAvailable']:.0f} of this machine's {mb['MemTotal']:.0f} MB are available"
    return there


def keep_one_heap() -> None:
    """Limit glibc to one heap; call it before threads start. By default each thread gets a heap, and no other thread
    reuses what it frees. A large block that was freed once also raises the size from which blocks are returned to the
    system, up to 32 MB: large request bodies would then stay in the heap. Do nothing without glibc."""
    mallopt = board.libc_function("mallopt")
    if mallopt:
        mallopt(ARENA_MAX, 1)
        mallopt(MMAP_THRESHOLD, LARGE_BYTES)


def keep_free_pages() -> None:
    """Keep freed memory, for a process that allocates the same large blocks repeatedly, as each training step does. By
    default glibc returns blocks above 32 MB to the system when they are freed, and the next step waits for new
    pages."""
    mallopt = board.libc_function("mallopt")
    if mallopt:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)


def return_free_pages() -> None:
    """Return free pages of glibc's heap to the system, in 0.3 ms for 30 MB: glibc itself returns only those at its end.
    Small blocks between freed ones let it grow by 2 % in ten minutes of 150 requests a second."""
    malloc_trim = board.libc_function("malloc_trim")
    if malloc_trim:
        malloc_trim(0)


def keep_small_pages() -> None:
    """Keep numpy from requesting pages of 2 MB for its large arrays; call it before numpy is imported. The first token
    in a KV cache would otherwise make all of it resident, and parts of its neighbors' too."""
    os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")


def freeze_loaded_objects() -> None:
    """Exclude what is loaded from the search for cycles, which starts when the objects since the last search are a
    quarter of all. It then starts before megabytes of closed connections wait for it, and delays nobody."""
    gc.collect()
    if hasattr(gc, "freeze"):  # not in Python 3.6
        gc.freeze()
