"""Measure some repetitions of one case of one bundle in this process. It should be a fresh process, so that no earlier
run has left anything in its memory, its caches or its peak.

`python -m merino_bench.harness.worker REQUEST` takes a JSON object and prints one; `turns` starts it. Without a case it
builds the bundle's TensorRT engine, in a separate process because a builder leaves memory held. A timed prefill begins
with the case's depth cached and ends with the argmax of the first token. A timed decode step is the time from one token
to the next: one run of the model and the argmax, batch 1, also after an end-of-text token. Prompts are random ids; the
time to tokenize the text of such a prompt is measured once, separately. `record` derives the statistics. The parent
process integrates energy over the times of the phases.
"""
import json
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from merino_bench.fresh_process import OUT_OF_MEMORY
from merino_bench.harness.cases import Case
from merino_bench.sensors import environment
from merino_bench.sensors.environment import CpuMoment, cpu_moment, load_between
from merino_runtime.backends import choose_backend, open_backend
from merino_runtime.backends.backend import Backend
from merino_runtime.bundle import Bundle, check_files, load_bundle
from merino_runtime.bundle.fit import check_bundle_fits
from merino_runtime.bundle.verified import check_files_once
from merino_runtime.errors import MerinoError
from merino_runtime.generation.text import open_tokenizer
from merino_runtime.io import board
from merino_runtime.io.streams import say

WARM_UP_S = 0.3  # a governor raises the clock after 0.1 s of work or later
DIGITS = 4  # of milliseconds: 0.1 microseconds, the resolution of the clock
# The repetitions, between the CPU's counters before the warm-up and after the last repetition. A repetition is its
# start and the times at which a token was chosen, in seconds of `time.perf_counter`, which all processes of a Linux
# machine share. The first token ends the prefill.
Timed = Tuple[CpuMoment, List[List[float]], CpuMoment]


def measure(bundle_path: str, case: Case, repetitions: int, verify: bool = True,
            backend_name: Optional[str] = None) -> Dict[str, Any]:
    """Return the samples in ms, the times of the phases in s, memory, and the state of the machine.

    `load_ms`: reading bundle.json, importing the backend, opening the session and the KV cache. `verify_ms`: hashing
    the files, None without `verify`; it comes before loading, which then finds the weights in the page cache.
    """
    bundle, read_ms = _timed(lambda: load_bundle(bundle_path, verify=False))
    verify_ms = _timed(lambda: check_files(bundle))[1] if verify else None
    notes: List[str] = []
    chosen = choose_backend(bundle, backend_name)
    notes += check_bundle_fits(bundle, backend=chosen)
    before = environment.state()
    backend, open_ms = _timed(lambda: open_backend(bundle, case.threads, backend=chosen, say=notes.append))
    try:
        if case.untimed and not backend.extends_fast:
            notes.append("behind cached ids this version of the backend prefills them one by one")
        timed = timed_rounds(backend, case, repetitions)
        threads = getattr(backend, "decode_threads", getattr(backend, "threads", case.threads))
        prefill_threads = getattr(backend, "prefill_threads", threads)
        result = summarized(before, timed, max(threads or 1, prefill_threads or 1))
        if not getattr(backend, "replays_graph", True) and case.steps:
            notes.append("decode steps were enqueued one by one: this TensorRT could not capture them")
        tokenizing_ms = None
        if not case.steps:
            try:
                tokenizing_ms = tokenize_ms(bundle, prompt_ids(bundle.vocab, case.decode_start)[case.untimed:])
            except MerinoError as error:
                notes.append(f"no time to first token: {error}")
        return dict(result, engine=backend.engine, threads=threads, prefill_threads=prefill_threads,
                    load_ms=round(read_ms + open_ms, DIGITS), verify_ms=verify_ms, tokenize_ms=tokenizing_ms,
                    notes=notes)
    finally:
        backend.close()


def summarized(before: Dict[str, Any], timed: Timed, threads: int) -> Dict[str, Any]:
    """Return the samples in ms, the times of the phases in s, the memory peak, and the state of the machine, right
    after the repetitions. before: the state before the model was opened. threads: of the phase that has most."""
    began, rounds, ended = timed
    peak_rss_mb = board.peak_rss_mb()  # before anything else is started
    after, here = environment.state(), environment.machine()
    load = load_between(began, ended, here["cpus"] or 1)
    if threads > len(board.usable_cpus()):
        load = load._replace(waiting_share=None)  # its own threads wait for each other
    return {
        "peak_rss_mb": peak_rss_mb,
        "prefill_ms": [_ms(times_s[1] - times_s[0]) for times_s in rounds],
        "step_ms": [[_ms(after_s - before_s) for before_s, after_s in zip(times_s[1:], times_s[2:])]
                    for times_s in rounds],
        "prefill_phases_s": [times_s[:2] for times_s in rounds],
        "decode_phases_s": [[times_s[1], times_s[-1]] for times_s in rounds if len(times_s) > 2],
        "environment": dict(here, before=before, after=after, **load._asdict()),
        "flags": environment.flags_of(before, after, load),
    }


def timed_rounds(backend: Backend, case: Case, repetitions: int) -> Timed:
    """Fill the depth, warm up, then run the repetitions. Raise MerinoError if the logits are not finite."""
    clock = time.perf_counter
    # 1. The ids that are cached before the timing, then the prompt's.
    ids = prompt_ids(backend.vocab, case.decode_start)
    if case.untimed:
        backend.prefill(ids[:case.untimed])
    prompt = ids[case.untimed:]
    # 2. Untimed rounds allocate memory, read pages in and let the governor raise the clock.
    began, end_s = cpu_moment(), clock() + WARM_UP_S
    while True:
        backend.truncate(case.untimed)
        token_id = int(backend.prefill(prompt).argmax())
        for _ in range(case.steps):
            token_id = int(backend.step(token_id).argmax())
            if clock() >= end_s:
                break
        if clock() >= end_s:
            break
    # 3. The repetitions.
    rounds: List[List[float]] = []
    for _ in range(repetitions):
        backend.truncate(case.untimed)
        times_s = [clock()]
        logits = backend.prefill(prompt)  # [vocab]
        token_id = int(logits.argmax())
        times_s.append(clock())
        for _ in range(case.steps):
            logits = backend.step(token_id)
            token_id = int(logits.argmax())
            times_s.append(clock())
        if not np.isfinite(logits).all():
            raise MerinoError("the model's logits are not finite, so its speed means nothing. Check with "
                              "`selftest`, export in another --precision.")
        rounds.append(times_s)
    return began, rounds, cpu_moment()


def prompt_ids(vocab: int, count: int) -> List[int]:
    """Return random ids, the same ones in each process: those cached before the timing, then the prompt's."""
    return list(np.random.RandomState(0).randint(0, vocab, count).tolist())


def tokenize_ms(bundle: Bundle, ids: Sequence[int]) -> float:
    """Return the ms of tokenizing the text of these ids, the first text of the process. Raise MerinoError without a
    tokenizer.

    The text gives about as many ids again, but not the same ones: the tokenizer seldom chooses random ids.
    """
    tokenizer = open_tokenizer(bundle)
    text = b"".join(tokenizer.bytes_of(token_id) for token_id in ids).decode("utf-8", "replace")
    return _timed(lambda: tokenizer.encode(text))[1]


def main() -> int:
    request = json.loads(sys.argv[1])
    try:
        if "case" in request:
            request["case"] = Case(*request["case"])
            result = measure(**request)
        else:
            from merino_runtime.backends.tensorrt_model import open_model

            bundle = load_bundle(request["bundle_path"], verify=False)
            check_files_once(bundle)
            open_model(bundle, say).close()
            result = {}
    except MerinoError as error:
        result = {"error": str(error)}
    except MemoryError:
        result = {"error": OUT_OF_MEMORY}
    print(json.dumps(result))
    return 1 if "error" in result else 0


def _timed(call: Callable[[], Any]) -> Tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, _ms(time.perf_counter() - start)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, DIGITS)


if __name__ == "__main__":
    sys.exit(main())
