"""Recognizes errors that mean memory ran out, and makes their message. Standard library only.

`bundle.fit` makes the message for a bundle.
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
