"""Memory of a process with several threads that runs for months: glibc's heap, and Python's search for cycles."""
import gc
import os
from typing import Any

ARENA_MAX, MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -8, -4, -3, -1  # of mallopt
LARGE_BYTES = 2 ** 20


def keep_one_heap() -> None:
    """Limit glibc to one heap; call it before threads start. By default each thread gets a heap, and no other thread
    reuses what it frees. A large block that was freed once also raises the size from which blocks are returned to the
    system, up to 32 MB: large request bodies would then stay in the heap. Do nothing without glibc."""
    mallopt = _of_glibc("mallopt")
    if mallopt:
        mallopt(ARENA_MAX, 1)
        mallopt(MMAP_THRESHOLD, LARGE_BYTES)


def keep_free_pages() -> None:
    """Keep freed memory, for a process that allocates the same large blocks repeatedly, as each training step does. By
    default glibc returns blocks above 32 MB to the system when they are freed, and the next step waits for new
    pages."""
    mallopt = _of_glibc("mallopt")
    if mallopt:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)


def return_free_pages() -> None:
    """Return free pages of glibc's heap to the system, in 0.3 ms for 30 MB: glibc itself returns only those at its end.
    Small blocks between freed ones let it grow by 2 % in ten minutes of 150 requests a second."""
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim:
        malloc_trim(0)


def _of_glibc(name: str) -> Any:
    """Return a function of glibc; None if there is no glibc."""
    try:
        import ctypes

        return getattr(ctypes.CDLL(None), name)
    except (ImportError, OSError, AttributeError, TypeError):
        return None


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
