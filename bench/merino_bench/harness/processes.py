"""One row's repetitions shared out to fresh processes of the worker, and their results put together again."""
from statistics import median
from typing import Any, Dict, List, Sequence

from merino_bench.fresh_process import run_apart
from merino_bench.harness.cases import Case
from merino_bench.harness.worker import request_of

BLOCKS = 5  # processes per row at most, in turn with those of the other bundles


def block_sizes(repetitions: int) -> List[int]:
    """How the repetitions are shared out: (7) -> 2, 2, 1, 1, 1."""
    blocks = min(BLOCKS, repetitions)
    return [repetitions // blocks + (place < repetitions % blocks) for place in range(blocks)]


def measure_apart(path: str, case: Case, repetitions: int, seed: int, verify: bool,
                  timeout_s: float) -> Dict[str, Any]:
    """`measure` in a fresh process; MerinoError with the reason where it gives no result."""
    return run_apart("merino_bench.harness.worker", request_of(path, case, repetitions, seed, verify), timeout_s)


def joined(blocks: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """The blocks of one row, each of `measure`, as one: samples in order, the median load, the highest peak, the
    state before the first and after the last."""
    first = dict(blocks[0])
    for key in ("prefill_ms", "step_ms", "prefill_phases_s", "decode_phases_s"):
        first[key] = [one for block in blocks for one in block[key]]
    for key in ("flags", "notes"):
        said = [one for block in blocks for one in block[key]]
        first[key] = sorted(set(said), key=said.index)
    first["load_ms"] = median(block["load_ms"] for block in blocks)
    first["peak_rss_mb"] = max(block["peak_rss_mb"] for block in blocks)
    shares = [block["environment"]["others_cpu_share"] for block in blocks]
    first["environment"] = dict(
        first["environment"], after=blocks[-1]["environment"]["after"],
        others_cpu_share=max((share for share in shares if share is not None), default=None))
    return first
