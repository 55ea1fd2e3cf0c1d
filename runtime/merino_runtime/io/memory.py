"""Recognizes errors that mean memory ran out, and makes the message where no bundle is at hand. Standard library only.

Where one is: `bundle.fit`.
"""
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, numpy, onnxruntime or the dynamic loader reports that memory ran out."""
    return isinstance(error, MemoryError) or bool(OUT_OF_MEMORY_WORDS.search(str(error)))


def lack_of_memory(error: BaseException) -> Optional[BaseException]:
    """The first of the errors behind this one, or itself, that reports that memory ran out; None where none does.

    A reader makes "the file is damaged" of whatever a library raises, and of MemoryError too.
    """
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
    """The message. doing: as in "importing numpy", nothing where it is not known."""
    text = " ".join(str(error).split())[:200]
    return (f"out of memory{' in ' + doing if doing else ''}{f' ({text})' if text else ''}{present()}. Stop other "
            "programs, raise the limit if there is one, or run less: a smaller model, a shorter context or a "
            "smaller batch.")


def present() -> str:
    """What the process holds, may hold and the machine has; nothing if memory does not suffice to read that."""
    try:
        peak_mb, mb = board.peak_rss_mb(), board.read_memory_mb(board.read_text("/proc/meminfo"))
    except MemoryError:
        return ""
    there = f"; this process has held up to {peak_mb:.0f} MB"
    if "MemAvailable" in mb:
        there += f", {mb['MemAvailable']:.0f} of this machine's {mb['MemTotal']:.0f} MB are available"
    return there
