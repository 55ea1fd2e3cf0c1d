"""Memory of a process with several threads that runs for months: glibc's heap, and Python's search for cycles."""
import gc
import os
from typing import Any

ARENA_MAX, MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -8, -4, -3, -1  # of mallopt
LARGE_BYTES = 2 ** 20


def keep_one_heap() -> None:
    """Call before threads begin; changes nothing where there is no glibc. By default each thread gets a heap of its
    own, and what one frees no other one uses. And a large block that was freed once raises the size from which blocks
    are given back to the system, up to 32 MB: large bodies of requests would then stay in the heap."""
    mallopt = _of_glibc("mallopt")
    if mallopt:
        mallopt(ARENA_MAX, 1)
        mallopt(MMAP_THRESHOLD, LARGE_BYTES)


def keep_free_pages() -> None:
    """For a process that allocates the same large blocks again and again, as each step of a training does. By default
    glibc gives blocks above 32 MB back to the system when they are freed, and the next step waits for new pages."""
    mallopt = _of_glibc("mallopt")
    if mallopt:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)


def give_back_free_pages() -> None:
    """Of glibc's heap, in 0.3 ms where it has 30 MB: glibc itself gives back only those at its end. Small blocks that
    stay between freed ones let it grow by 2 % in ten minutes of 150 requests a second."""
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim:
        malloc_trim(0)


def _of_glibc(name: str) -> Any:
    """The function; None where there is no glibc."""
    try:
        import ctypes

        return getattr(ctypes.CDLL(None), name)
    except (ImportError, OSError, AttributeError, TypeError):
        return None


def keep_small_pages() -> None:
    """Call before numpy is imported, which asks the system for pages of 2 MB for its large arrays: the first token in a
    KV cache would then make all of it resident, and parts of its neighbors' beside it."""
    os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")


def leave_out_what_is_loaded() -> None:
    """Of the search for cycles, which comes when the objects since the last one are a quarter of all: it then comes
    before megabytes of closed connections wait for it, and holds nobody up."""
    gc.collect()
    if hasattr(gc, "freeze"):  # not in Python 3.6
        gc.freeze()
