"""Benchmark records: the statistics of one row of `bench`, derived from raw samples, and its speed ratio to a baseline,
of equal format or as shipped.

The record of a failed measurement has the same keys: nulls, and the reason among its flags. A ratio is of pairs:
processes of both rows that ran side by side. Disturbed pairs are dropped if three others remain; otherwise all count,
and the ratio is marked with what disturbed them. Only a row that failed has no ratio.
"""

import os
import time
from statistics import mean, median, stdev
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from merino_bench.harness.cases import Case
from merino_bench.harness.pairs import Place, flags_by_place, paired_ratio, rounds_by_place, select_processes
from merino_bench.sensors.environment import Load
from merino_runtime.backends import TENSORRT
from merino_runtime.bundle import Bundle, quantized_cache, sha256_of
from merino_runtime.io.streams import as_text

SCHEMA = 3
WEIGHTS = {"trained": "real", "random": "random"}
FAILED = "failed: "  # a flag that begins so gives the reason
TIMED = "model and argmax; tokenizing apart"
# docs/formats.md says what each is. `add_ratios` adds more where there is a baseline.
RECORD_KEYS = (
    "schema", "bundle", "bundle_sha256", "engine", "precision", "dialect", "weights", "weights_source", "kv", "family",
    "architecture", "test", "prompt_tokens", "depth", "context", "repetitions", "threads", "prefill_threads", "tok_s",
    "tok_s_sd", "ms_mean", "ms_sd", "ms_p50", "ms_p90", "ms_p95", "ms_p99", "tpot_ms", "prefill_ms", "tokenize_ms",
    "ttft_ms", "load_ms", "verify_ms", "peak_rss_mb", "bundle_bytes", "params", "flops_per_token", "bytes_per_token",
    "mbu", "read_gb_s", "j_per_token", "energy", "rounds_ms", "processes", "run", "ratio_interval", "ratio_turns",
    "ratio_flags", "timed", "date", "command", "environment", "flags", "notes",
)
EQUAL, AS_SHIPPED = "equal format", "as shipped"
Record = Dict[str, Any]


def identity_of(path: str, bundle: Optional[Bundle]) -> Dict[str, Any]:
    """Return the keys that all rows of a bundle share; if it cannot be read, only the folder's name."""
    if bundle is None:
        return {"bundle": as_text(os.path.basename(os.path.abspath(path)))}
    description = os.path.join(bundle.folder, "bundle.json")
    return {
        "bundle": bundle.name, "bundle_sha256": sha256_of(description), "precision": bundle.precision,
        "dialect": bundle.dialect, "kv": quantized_cache(bundle), "weights": WEIGHTS[bundle.weights],
        "family": bundle.family, "architecture": bundle.architecture, "context": bundle.context,
        "weights_source": bundle.weights_source, "params": bundle.params,
        "bundle_bytes": os.path.getsize(description) + sum(file.bytes for file in bundle.files),
    }


def format_words(precision: Optional[str], dialect: Optional[str], kv: Optional[str]) -> str:
    """Return a bundle's format for people; empty if it is not known."""
    return " ".join(filter(None, [precision, dialect, kv and f"{kv} cache"]))


def record_of(identity: Dict[str, Any], bundle: Bundle, case: Case, processes: Sequence[Dict[str, Any]],
              read_gb_s: Optional[float] = None, energy: Optional[Dict[str, Any]] = None,
              command: Optional[str] = None) -> Dict[str, Any]:
    """Return the record of one row. identity: from `identity_of`; processes: from `measure`, each with its turn and
    attempt; energy: from `energy_of`.

    `processes`, `rounds_ms` and `verify_ms` cover all processes, all else those that count: the median load time, the
    highest load and memory peak, the machine's state before the first and after the last.
    """
    counting = counting_processes(processes)
    first, states = counting[0], [process["environment"] for process in counting]
    # 1. What is copied or joined.
    record = empty_record(identity, case, command)
    record.update({key: first[key] for key in ("engine", "threads", "prefill_threads")})
    record.update(
        processes=[{"turn": process["turn"], "attempt": process["attempt"], "repetitions": len(process["prefill_ms"]),
                    "flags": process["flags"]} for process in processes],
        rounds_ms=rounds_of(processes, case), verify_ms=processes[0]["verify_ms"],
        load_ms=median(process["load_ms"] for process in counting),
        peak_rss_mb=max(process["peak_rss_mb"] for process in counting),
        environment=dict(first["environment"], after=states[-1]["after"], **{
            key: max((state[key] for state in states if state[key] is not None), default=None)
            for key in Load._fields}),
        flops_per_token=flops_per_token(bundle, case), bytes_per_token=bytes_per_token(bundle, case),
        read_gb_s=read_gb_s, energy=energy,
        **{key: list(dict.fromkeys(joined(counting, key))) for key in ("flags", "notes")})
    # 2. Times.
    rounds_ms = rounds_of(counting, case)
    samples_ms = [sample for samples in rounds_ms for sample in samples]
    speeds = speeds_of(rounds_ms, case.steps or case.prompt)
    record["prefill_ms"] = median(joined(counting, "prefill_ms"))
    tokenize_ms = [process["tokenize_ms"] for process in counting if process.get("tokenize_ms") is not None]
    if tokenize_ms:
        record["tokenize_ms"] = median(tokenize_ms)
        record["ttft_ms"] = record["tokenize_ms"] + record["prefill_ms"]
    record.update({f"ms_p{share}": float(np.percentile(samples_ms, share)) for share in (50, 90, 95, 99)},
                  ms_mean=mean(samples_ms), ms_sd=stdev(samples_ms) if len(samples_ms) > 1 else None,
                  repetitions=len(rounds_ms), tok_s=mean(speeds), tok_s_sd=stdev(speeds) if len(speeds) > 1 else None)
    # 3. What follows from them.
    if case.steps:
        record["tpot_ms"] = record["ms_mean"]  # rounds are of equal length
        if read_gb_s and not record["engine"].startswith(TENSORRT):  # read_gb_s is the CPU's
            record["mbu"] = record["bytes_per_token"] * record["tok_s"] / (read_gb_s * 1e9)
    joules = (energy or {}).get("decode_j" if case.steps else "prefill_j")
    if joules is not None:
        record["j_per_token"] = joules / ((case.steps or case.prompt) * len(rounds_ms))
    return record


def counting_processes(processes: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    places = select_processes(flags_by_place(processes)).places
    return [process for process in processes if (process["turn"], process["attempt"]) in places]


def joined(processes: Sequence[Dict[str, Any]], key: str) -> List[Any]:
    return [entry for process in processes for entry in process[key]]


def rounds_of(processes: Sequence[Dict[str, Any]], case: Case) -> List[List[float]]:
    """Return the samples in ms, a list per repetition."""
    return joined(processes, "step_ms") if case.steps else [[ms] for ms in joined(processes, "prefill_ms")]


def process_speeds(record: Dict[str, Any]) -> Dict[Place, float]:
    """Return the tok/s of each process, the mean over its repetitions."""
    rounds = rounds_by_place(record["processes"], record["rounds_ms"])
    steps = len(record["rounds_ms"][0]) if record["test"].startswith("tg") else 0
    return {place: mean(speeds_of(ms, steps or record["prompt_tokens"])) for place, ms in rounds.items()}


def speeds_of(rounds_ms: Sequence[Sequence[float]], tokens: int) -> List[float]:
    """Return the tok/s of each repetition, which processes `tokens` tokens."""
    return [1000 * tokens / sum(samples_ms) for samples_ms in rounds_ms]


def failed_record(identity: Dict[str, Any], case: Case, reason: str,
                  command: Optional[str] = None) -> Dict[str, Any]:
    return dict(empty_record(identity, case, command), flags=[FAILED + as_text(reason)])


def failures(records: Sequence[Dict[str, Any]]) -> List[str]:
    """Return which rows failed, and why."""
    return [f"{record['bundle']} {record['test']} {flag}" for record in records for flag in record["flags"]
            if flag.startswith(FAILED)]


def bytes_per_token(bundle: Bundle, case: Case) -> int:
    """Return the bytes that a step (tg) or a prefill (pp) must read at least: weights, and the filled part of the
    cache. A `portable` graph reads the whole cache, which this does not count.

    Step i of a repetition finds decode_start + i cached entries, so the mean over i = 0 .. steps - 1 is taken.
    """
    if not case.steps:
        return bundle.decode_weight_bytes
    mean_length = case.decode_start + (case.steps - 1) / 2
    return round(bundle.decode_weight_bytes + bundle.kv_bytes / bundle.context * mean_length)


def flops_per_token(bundle: Bundle, case: Case) -> int:
    """Multiply-adds times 2, of a step (tg) or per id of the prompt (pp). bundle.json counts one step over an empty
    cache; each cached entry adds a multiplication with its key and one with its value. A prefill computes the head
    once, not per id."""
    per_entry = sum(4 * layer.heads * layer.head_size for layer in bundle.kv_layers)
    if case.steps:
        return round(bundle.flops_per_token + per_entry * (case.decode_start + (case.steps - 1) / 2))
    mean_length = case.untimed + (case.prompt - 1) / 2
    return round(bundle.flops_per_token - bundle.head_flops * (1 - 1 / case.prompt) + per_entry * mean_length)


def empty_record(identity: Dict[str, Any], case: Case, command: Optional[str] = None) -> Dict[str, Any]:
    """Return a record with every key: what is known before measuring, and nulls."""
    record: Dict[str, Any] = dict.fromkeys(RECORD_KEYS)
    record.update(identity, schema=SCHEMA, test=case.name, prompt_tokens=case.prompt, depth=case.depth, timed=TIMED,
                  date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), command=command, flags=[], notes=[])
    return record


def add_ratios(records: Sequence[Record], baselines: Sequence[Record]) -> None:
    """Add the ratio's keys to the rows of one case that took turns: `baseline` (which, and its format), `ratio_kind`,
    `ratio_to_baseline` (this row's speed over the baseline's), `ratio_interval`, `ratio_turns`, `ratio_flags` and
    `params_ratio`.

    baselines: rows of this case; a row is compared with the first one of its own format, else with the first.
    """
    for record in records:
        record.update(baseline=None, ratio_kind=None, ratio_to_baseline=None, params_ratio=None)
        base = baseline_for(record, baselines)
        if base is None:
            continue
        form = format_words(base["precision"], base["dialect"], base.get("kv"))
        record["baseline"] = " ".join(filter(None, [base["bundle"], form]))
        record["ratio_kind"] = EQUAL if same_format(record, base) else AS_SHIPPED
        if record["params"] and base["params"]:
            record["params_ratio"] = record["params"] / base["params"]
        failed = [name for row, name in ((record, "this row"), (base, f"the baseline {base['bundle']}"))
                  if any(flag.startswith(FAILED) for flag in row["flags"])]
        if failed:
            record["notes"] = [*record["notes"], f"no ratio: {failed[0]} failed"]
        elif record is base:
            record["ratio_to_baseline"] = 1.0  # it has no interval
        else:
            selection = select_processes(flags_by_place(record["processes"]), flags_by_place(base["processes"]))
            speeds, base_speeds = process_speeds(record), process_speeds(base)
            ratio = paired_ratio([speeds[place] for place in selection.places],
                                 [base_speeds[place] for place in selection.places])
            record.update(ratio_to_baseline=ratio.value, ratio_interval=ratio.interval, ratio_flags=selection.flags,
                          ratio_turns=[len(selection.places), selection.turns])


def baseline_for(record: Record, baselines: Sequence[Record]) -> Optional[Record]:
    alike = [base for base in baselines if same_format(record, base)]
    return next(iter([*alike, *baselines]), None)


def same_format(record: Record, base: Record) -> bool:
    """Return whether weights, dialect and cache are equal. Another engine's row has no dialect, so only its precision
    counts. The precision of a bundle that cannot be read is unknown, and equals no other."""
    graphs = {(row["dialect"], row.get("kv")) for row in (record, base) if row.get("dialect")}
    return record.get("precision") is not None and record["precision"] == base.get("precision") and len(graphs) < 2


