"""Chooses the numbers of threads for prefill and decode. Standard library only."""
from typing import NamedTuple, Optional

from merino_runtime.bundle import Bundle
from merino_runtime.errors import MerinoError
from merino_runtime.io import board

MOST_DECODE_THREADS = 4  # decode is bound by memory reads, and four cores saturate the memory of every known board
# A step over so few bytes is short against waking a thread per operator. By the boards' cost models (1 to 15 MB of
# float32, not measured on boards) two threads are 3 to 13 % faster than four on Raspberry Pis, 6 to 18 % slower on
# Jetsons, and up to 26 % faster than one.
TWO_THREADS_BELOW_BYTES = 16 * 10 ** 6
# Without this project's kernels different counts need two sessions, which hold the weights twice: worth it only for so
# little memory.
TWO_SESSIONS_BELOW_BYTES = 32 * 10 ** 6
MOST_PER_CORE = 4  # more only wait for each other, and tens of thousands end the process before it can report why


class ThreadCounts(NamedTuple):
    prefill: int
    decode: int
    sessions: int  # of ONNX Runtime, each with one thread pool and its own copy of the weights


def check_threads(option: str, count: Optional[int]) -> None:
    """Raise MerinoError unless a count is from 1 to MOST_PER_CORE for each core, or None, the bundle's choice."""
    cores = len(board.usable_cpus())
    integer = isinstance(count, int) and not isinstance(count, bool)
    if count is not None and not (integer and 1 <= count <= MOST_PER_CORE * cores):
        raise MerinoError(f"{option} is {count!r}, allowed: 1 to {MOST_PER_CORE * cores}, {MOST_PER_CORE} for each of "
                          f"the {cores} cores here. Omit it to let the bundle choose.")


def thread_counts(bundle: Bundle, threads: Optional[int] = None,
                  prefill_threads: Optional[int] = None) -> ThreadCounts:
    """Return the caller's counts, otherwise the bundle's, limited to this machine's cores, otherwise the machine's.
    `threads` counts for prefill too if `prefill_threads` is None. Raise MerinoError if a count is not allowed."""
    check_threads("threads", threads)
    check_threads("prefill_threads", prefill_threads)
    cores = len(board.usable_cpus())
    decode = threads or min(bundle.threads.decode or _decode_choice(bundle), cores)
    own, all_cores = bool(bundle.kernels), board.physical_core_count()
    prefill = prefill_threads or threads or min(
        bundle.threads.prefill or prefill_choice(bundle.weight_bytes, decode, all_cores, own), cores)
    return ThreadCounts(prefill, decode, sessions_of(prefill, decode, own))


def sessions_of(prefill: int, decode: int, own_kernels: bool) -> int:
    """Return the number of ONNX Runtime's sessions for two thread counts: this project's kernels take fewer threads
    than their session has where decode wants fewer."""
    return 1 if prefill == decode or (own_kernels and decode < prefill) else 2


def _decode_choice(bundle: Bundle) -> int:
    """Return one thread for weights that fit in the last-level cache: one core reads them from there in less time than
    waking another one per operator takes. An unknown cache counts as none."""
    size = bundle.decode_weight_bytes
    if size < TWO_THREADS_BELOW_BYTES:
        return 1 if size <= board.last_level_cache_bytes() // 2 else min(2, board.physical_core_count())
    return min(MOST_DECODE_THREADS, board.physical_core_count())


def prefill_choice(weight_bytes: int, decode: int, cores: int, own_kernels: bool) -> int:
    """Return all cores, because prefill is bound by arithmetic; the count of decode if that would take an expensive
    second session."""
    return max(decode, cores) if own_kernels or weight_bytes < TWO_SESSIONS_BELOW_BYTES else decode
