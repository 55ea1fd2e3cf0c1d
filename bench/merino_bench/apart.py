"""Runs `measure` in fresh processes and puts the blocks of one row together. What fails becomes a MerinoError that
gives the reason: a bundle that does not load, memory that is not there, a process that dies or takes too long.
"""
import json
import os
import re
import signal
import subprocess
import sys
from statistics import median
from typing import Any, Dict, List, Optional, Sequence

import merino_bench
import merino_runtime
from merino_bench.measure import OUT_OF_MEMORY, request_of
from merino_bench.workload import Case
from merino_runtime import board
from merino_runtime.errors import MerinoError

BLOCKS = 5  # processes per row at most, in turn with those of the other bundles
# What allocators say: the C++ runtime's, onnxruntime's and the dynamic loader's words for the same lack.
_NO_MEMORY = re.compile(r"bad_alloc|bad allocation|[Ff]ailed to allocate|[Cc]annot allocate memory|MemoryError"
                        r"|failed to map segment|ENOMEM", re.ASCII)


def block_sizes(repetitions: int) -> List[int]:
    """How the repetitions are shared out: (7) -> 2, 2, 1, 1, 1."""
    blocks = min(BLOCKS, repetitions)
    return [repetitions // blocks + (place < repetitions % blocks) for place in range(blocks)]


def measure_apart(path: str, case: Case, repetitions: int, seed: int, verify: bool,
                  timeout_s: float) -> Dict[str, Any]:
    """`measure` in a fresh process; MerinoError with the reason where it gives no result."""
    return run_apart("merino_bench.measure", request_of(path, case, repetitions, seed, verify), timeout_s)


def run_apart(module: str, request: str, timeout_s: float, variables: Optional[Dict[str, str]] = None
              ) -> Dict[str, Any]:
    """A module in a fresh process: a JSON object as its argument, another one as the last line of what it prints.
    variables: of the environment, on top of this process's. MerinoError with the reason where none comes."""
    process = subprocess.Popen([sys.executable, "-m", module, request],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=dict(child_environment(), **(variables or {})))
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise MerinoError(f"no result in the time left to the row, {timeout_s:.3g} s (--timeout)") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    lines = out.decode("utf-8", "replace").splitlines()
    try:
        result: Dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise MerinoError(reason_of(process.returncode, err.decode("utf-8", "replace"))) from None
    if "error" in result:
        raise MerinoError(_with_memory_named(result["error"]))
    return result


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


def child_environment() -> Dict[str, str]:
    """So that the child imports the packages that this process did, from a folder or from a zip."""
    board.prepare_environment()
    roots = [os.path.dirname(os.path.dirname(os.path.abspath(package.__file__ or "")))
             for package in (merino_runtime, merino_bench)]
    before = os.environ.get("PYTHONPATH")
    paths = sorted(set(roots), key=roots.index) + ([before] if before else [])
    return dict(os.environ, PYTHONPATH=os.pathsep.join(paths))


def reason_of(return_code: int, err: str) -> str:
    """Why a process ended without a result."""
    if return_code == -signal.SIGKILL:
        return f"killed by signal 9: most likely {OUT_OF_MEMORY}"
    if return_code < 0:
        said = f"ended by signal {-return_code} ({signal.Signals(-return_code).name})"
        return f"{OUT_OF_MEMORY}: {said}" if _NO_MEMORY.search(err) else said
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    return _with_memory_named(f"ended with code {return_code}: {lines[-1] if lines else 'it said nothing'}")


def _with_memory_named(reason: str) -> str:
    return f"{OUT_OF_MEMORY}: {reason}" if _NO_MEMORY.search(reason) else reason
