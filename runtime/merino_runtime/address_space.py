"""The limit on this process's address space (`ulimit -v`), and imports that do not end well within it.

numpy and scipy each bring an OpenBLAS, which reserves a buffer for each of its threads while it is loaded. Where that
fails, some versions try again for ever, some end the process and some crash (docs/decisions/bounds.md). So they are not
loaded without room: an import hook raises MemoryError. Standard library only.
"""
import os
import sys
from typing import Any, Optional

MB = 2 ** 20
BLAS = ("numpy", "scipy")
# Of address space, as measured; what the importing program then needs is more, so nothing is refused that would do.
LOADED_MB = 90  # with one thread
THREAD_MB = 40 if sys.version_info >= (3, 8) else 130  # each further one; of numpy 1.19 with an arena of malloc's
THREADS = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")  # OpenBLAS takes the first that is set


def limit_mb() -> Optional[float]:
    """None where there is no limit."""
    try:
        import resource  # Windows has no such module
    except ImportError:
        return None
    found = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if found == resource.RLIM_INFINITY else found / MB


def refuse_blas_without_room() -> None:
    """Installs the hook where there is a limit."""
    if limit_mb() is not None:
        sys.meta_path.insert(0, _Room())


class _Room:
    """A finder that finds nothing, and raises MemoryError for what there is no room for."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:  # noqa: ARG002
        limit = limit_mb()
        if name not in BLAS or limit is None:
            return
        threads = _blas_threads()
        need, free = LOADED_MB + THREAD_MB * (threads - 1), limit - _used_mb()
        if need > free:
            fewer = " (OPENBLAS_NUM_THREADS=1 takes less)" if threads > 1 else ""
            raise MemoryError(f"{name} takes {need} MB of address space{fewer}, {free:.0f} MB are left")


def _used_mb() -> float:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") / MB
    except (OSError, ValueError, IndexError):
        return 0.0


def _blas_threads() -> int:
    given = [os.environ[name] for name in THREADS if os.environ.get(name, "").isdigit()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(given[0]) if given else cores))
