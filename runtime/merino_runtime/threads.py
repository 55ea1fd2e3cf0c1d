"""How many threads prefill and decode use. Standard library only."""
from typing import NamedTuple, Optional

from merino_runtime import board
from merino_runtime.bundle import Bundle

ONE_THREAD_BELOW_BYTES = 8 * 10 ** 6  # below it, waking a second thread costs more than it saves
MOST_THREADS = 4  # decode is bound by memory reads, and four cores saturate the memory of every known board


class ThreadCounts(NamedTuple):
    prefill: int
    decode: int

    @property
    def sessions(self) -> int:
        """Sessions of ONNX Runtime: each has one thread pool and packs the weights for itself."""
        return 1 if self.prefill == self.decode else 2


def thread_counts(bundle: Bundle, threads: Optional[int] = None,
                  prefill_threads: Optional[int] = None) -> ThreadCounts:
    """The caller's counts, else the bundle's, limited to this machine's cores, else our own choice. `threads` counts
    for prefill too if `prefill_threads` is None."""
    cores = len(board.usable_cpus())
    decode = threads or min(bundle.threads.decode or _own_choice(bundle), cores)
    return ThreadCounts(prefill_threads or threads or min(bundle.threads.prefill or decode, cores), decode)


def _own_choice(bundle: Bundle) -> int:
    if bundle.decode_weight_bytes < ONE_THREAD_BELOW_BYTES:
        return 1
    return min(MOST_THREADS, board.physical_core_count())
