"""glibc's heap, for a process with several threads that runs for months. Changes nothing where there is no glibc."""

ARENA_MAX, MMAP_THRESHOLD = -8, -3  # of mallopt
LARGE_BYTES = 2 ** 20


def keep_one_heap() -> None:
    """Call before threads begin. By default each thread gets a heap of its own, and what one frees no other one uses.
    And a large block that was freed once raises the size from which blocks are given back to the system, up to 32 MB:
    large bodies of requests would then stay in the heap."""
    try:
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, AttributeError, TypeError):
        return
    mallopt(ARENA_MAX, 1)
    mallopt(MMAP_THRESHOLD, LARGE_BYTES)
