"""Splits the repetitions of a row into blocks, runs each in a fresh worker process, and joins their results."""
from statistics import median
from typing import Any, Dict, List, Sequence

from merino_bench.fresh_process import run_apart
from merino_bench.harness.cases import Case
from merino_bench.harness.worker import request_of

BLOCKS = 5  # processes per row, at most


def block_sizes(repetitions: int) -> List[int]:
    """Repetitions of each block: 7 -> 2, 2, 1, 1, 1."""
    blocks = min(BLOCKS, repetitions)
    return [repetitions // blocks + (place < repetitions % blocks) for place in range(blocks)]


def measure_apart(path: str, case: Case, repetitions: int, seed: int, verify: bool,
                  timeout_s: float) -> Dict[str, Any]:
    """`worker.measure` in a fresh process. Raises MerinoError with the reason where it gives no result."""
    return run_apart("merino_bench.harness.worker", request_of(path, case, repetitions, seed, verify), timeout_s)


def joined(blocks: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """One result from those of a row's blocks: all samples in order, the median load time, the highest memory peak, the
    machine's state before the first block and after the last."""
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
