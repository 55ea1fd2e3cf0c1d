"""One case of one bundle, measured in this process, which should be a fresh one: nothing of an earlier run is
then in its memory, its caches or its peak.

`python -m merino_bench.measure REQUEST`, a JSON object in, one JSON object out; `bench` starts it. A timed
prefill begins with an empty cache and ends with the choice of the first token; a timed decode step is one run
of the model and the choice of the next token, greedy, batch 1, going on after an end-of-text token. So the
choice (argmax) is inside, tokenising is outside: prompts are random ids. The first, untimed round warms up.
Statistics are `record`'s.
"""
import json
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from merino_bench import environment
from merino_bench.workload import Case
from merino_runtime import board
from merino_runtime.backends import open_backend
from merino_runtime.backends.backend import Backend
from merino_runtime.bundle import Bundle, check_files, load_bundle
from merino_runtime.errors import MerinoError

WARM_UP_STEPS = 8
DIGITS = 4  # of milliseconds: 0.1 microseconds, the finest a clock tells


def request_of(bundle_path: str, case: Case, repetitions: int, threads: Optional[int], seed: int) -> str:
    return json.dumps({"bundle": bundle_path, "case": list(case), "repetitions": repetitions,
                       "threads": threads, "seed": seed})


def measure(bundle_path: str, case: Case, repetitions: int, threads: Optional[int] = None,
            seed: int = 0) -> Dict[str, Any]:
    """load_ms: reading bundle.json, importing the backend, opening the session and the KV cache. Hashing the
    files (verify_ms) comes before, so the weights are read from the page cache then."""
    bundle, read_ms = _timed(lambda: load_bundle(bundle_path, verify=False))
    _, verify_ms = _timed(lambda: check_files(bundle))
    # What a format costs where its instructions lack is a thing to measure; the record has the note.
    notes = board.check_bundle_fits(bundle, allow_slow=True)
    before = environment.state()
    backend, open_ms = _timed(lambda: open_backend(bundle, threads))
    try:
        ids = np.random.RandomState(seed).randint(0, bundle.vocab, case.prompt).tolist()
        one_round(backend, ids, min(case.steps, WARM_UP_STEPS))  # allocates, pages in, raises the clocks
        began = environment.cpu_moment()
        rounds = [one_round(backend, ids, case.steps) for _ in range(repetitions)]
        ended = environment.cpu_moment()
        peak_rss_mb = board.peak_rss_mb()  # before anything else is started
        after = environment.state()
        here = environment.machine()
        share = environment.others_share(began, ended, here["cpus"] or 1)
        return {
            "engine": engine_name(bundle), "threads": getattr(backend, "threads", threads),
            "load_ms": round(read_ms + open_ms, DIGITS), "verify_ms": verify_ms, "peak_rss_mb": peak_rss_mb,
            "prefill_ms": [prefill_ms for prefill_ms, _ in rounds],  # per repetition
            "step_ms": [step_ms for _, step_ms in rounds],  # per repetition, one per step
            "environment": dict(here, before=before, after=after, others_cpu_share=share),
            "flags": environment.flags_of(before, after, share), "notes": notes,
        }
    finally:
        backend.close()


def one_round(backend: Backend, ids: Sequence[int], steps: int) -> Tuple[float, List[float]]:
    """-> ms of the prefill and of each step."""
    backend.truncate(0)
    start = time.perf_counter()
    logits = backend.prefill(ids)  # [vocab]
    token_id = int(logits.argmax())
    prefill_ms = _ms_since(start)
    step_ms = []
    for _ in range(steps):
        start = time.perf_counter()
        logits = backend.step(token_id)
        token_id = int(logits.argmax())
        step_ms.append(_ms_since(start))
    if not np.isfinite(logits).all():
        raise MerinoError("the model's logits are not finite, so its speed means nothing. Check with "
                          "`selftest`, export in another --precision.")
    return prefill_ms, step_ms


def engine_name(bundle: Bundle) -> str:
    module = sys.modules.get(bundle.backend.name)
    return f"{bundle.backend.name} {getattr(module, '__version__', 'unknown')} CPU"


def main() -> int:
    request = json.loads(sys.argv[1])
    try:
        result = measure(request["bundle"], Case(*request["case"]), request["repetitions"],
                         request["threads"], request["seed"])
    except MerinoError as error:
        result = {"error": str(error)}
    print(json.dumps(result))
    return 1 if "error" in result else 0


def _timed(call: Callable[[], Any]) -> Tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, _ms_since(start)


def _ms_since(start: float) -> float:
    return round(1000 * (time.perf_counter() - start), DIGITS)


if __name__ == "__main__":
    sys.exit(main())
