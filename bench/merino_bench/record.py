"""Benchmark records: what one row of `bench` says, derived from raw samples (fields: `RECORD_KEYS`).

A record of a failed measurement has the same keys, with null figures and the reason among its flags. How
records are shown and stored is `render`'s.
"""
import os
import statistics
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from merino_bench.workload import Case
from merino_runtime.bundle import Bundle, sha256_of

SCHEMA = 1
WEIGHTS = {"trained": "real", "random": "random"}
FAILED = "failed: "  # a flag that begins so gives the reason
TIMED = "model and argmax, without tokenising"
RECORD_KEYS = (
    "schema", "bundle", "bundle_sha256", "engine", "precision", "dialect", "weights", "weights_source",
    "test", "prompt_tokens", "repetitions", "threads",
    "tok_s",  # mean over repetitions; tg: without the first token, which the prefill gives
    "tok_s_sd",  # over repetitions; null where there was one
    "ms_p50", "ms_p90",  # of samples_ms
    "ttft_ms",  # p50 of the prefills of prompt_tokens ids, the choice of the first token included
    "load_ms", "verify_ms",
    "peak_rss_mb",  # MB of 2**20 bytes
    "bundle_bytes", "params",
    "bytes_per_token",  # tg: weights and KV read by a step at the mean cache length; pp: weights, per prefill
    "ceiling_share",  # of read_gb_s. Above 1 where the weights stay in the CPU's cache; null for pp
    "read_gb_s",  # probed on this machine, 10**9 bytes
    "samples_ms",  # pp: one per repetition; tg: one per step, repetitions one after another
    "timed", "environment", "flags", "notes",
)


def identity_of(path: str, bundle: Optional[Bundle]) -> Dict[str, Any]:
    """What all rows of a bundle share; no more than the folder's name where it cannot be read."""
    if bundle is None:
        return {"bundle": os.path.basename(os.path.abspath(path))}
    description = os.path.join(bundle.folder, "bundle.json")
    return {
        "bundle": bundle.name, "bundle_sha256": sha256_of(description), "precision": bundle.precision,
        "dialect": bundle.dialect, "weights": WEIGHTS[bundle.weights],
        "weights_source": bundle.weights_source, "params": bundle.params,
        "bundle_bytes": os.path.getsize(description) + sum(file.bytes for file in bundle.files),
    }


def record_of(identity: Dict[str, Any], bundle: Bundle, case: Case, measured: Dict[str, Any],
              read_gb_s: Optional[float]) -> Dict[str, Any]:
    """identity: of `identity_of`; measured: of `measure`."""
    rounds = measured["step_ms"] if case.steps else [[one] for one in measured["prefill_ms"]]
    samples_ms = [sample for one in rounds for sample in one]
    tokens = case.steps or case.prompt  # of a round
    speeds = [1000 * tokens / sum(one) for one in rounds]
    record = _empty(identity, case)
    record.update(
        engine=measured["engine"], threads=measured["threads"], repetitions=len(rounds),
        tok_s=statistics.mean(speeds), tok_s_sd=statistics.stdev(speeds) if len(speeds) > 1 else None,
        ms_p50=float(np.percentile(samples_ms, 50)), ms_p90=float(np.percentile(samples_ms, 90)),
        ttft_ms=statistics.median(measured["prefill_ms"]), load_ms=measured["load_ms"],
        verify_ms=measured["verify_ms"], peak_rss_mb=measured["peak_rss_mb"],
        bytes_per_token=bytes_per_token(bundle, case), read_gb_s=read_gb_s, samples_ms=samples_ms,
        environment=measured["environment"], flags=list(measured["flags"]), notes=list(measured["notes"]))
    if case.steps and read_gb_s:
        record["ceiling_share"] = record["bytes_per_token"] * record["tok_s"] / (read_gb_s * 1e9)
    return record


def failed_record(identity: Dict[str, Any], case: Case, reason: str) -> Dict[str, Any]:
    return dict(_empty(identity, case), flags=[FAILED + reason])


def failures(records: Sequence[Dict[str, Any]]) -> List[str]:
    """Which rows failed, and why."""
    return [f"{record['bundle']} {record['test']} {flag}" for record in records for flag in record["flags"]
            if flag.startswith(FAILED)]


def bytes_per_token(bundle: Bundle, case: Case) -> int:
    """The least that must be read: a `portable` graph reads the whole cache at each step, and pays for it.

    Step i of a round finds prompt + i cached entries, so the mean of i = 0 .. steps - 1 counts.
    """
    if not case.steps:
        return bundle.decode_weight_bytes
    mean_length = case.prompt + (case.steps - 1) / 2
    return round(bundle.decode_weight_bytes + bundle.kv_bytes / bundle.context * mean_length)


def add_ratios(records: Sequence[Dict[str, Any]], baseline_records: Sequence[Dict[str, Any]]) -> None:
    """ratio_to_baseline: this row's tok_s over the baseline's at the same test. params_ratio likewise."""
    base = {record["test"]: record for record in baseline_records}
    for record in records:
        other = base.get(record["test"], {})
        record["ratio_to_baseline"] = _ratio(record["tok_s"], other.get("tok_s"))
        record["params_ratio"] = _ratio(record["params"], other.get("params"))


def _ratio(value: Optional[float], base: Optional[float]) -> Optional[float]:
    return value / base if value is not None and base else None


def _empty(identity: Dict[str, Any], case: Case) -> Dict[str, Any]:
    record: Dict[str, Any] = dict.fromkeys(RECORD_KEYS)
    record.update(identity, schema=SCHEMA, test=case.name, prompt_tokens=case.prompt, timed=TIMED, flags=[],
                  notes=[])
    return record
