"""Records as the harness writes them, from a few words: for tests of what reads them."""

import random

OPT = {"width": 1024, "layers": 24, "heads": 16, "ffn_width": 4096, "embed_width": 512, "vocab": 50272,
       "context": 2048, "pre_norm": False}  # fmt: skip
OURS = {"blocks": [{"width": 512, "ffn_ratio": 1.0, "depth": 6, "shared": False},
                   {"width": 640, "ffn_ratio": 1.0, "depth": 8, "shared": False}],
        "vocab": 50257, "head_size": 64, "context": 2048}  # fmt: skip
STATE = {"governor": "performance", "clocks_mhz": [2400.0, 2400.0], "clocks_max_mhz": [2400.0], "temperatures_c":
         {"cpu": 51.5}, "cpu_cooling": 0, "gpu_cooling": None, "throttle_bits": "0x0", "power_mode": None,
         "swap_used_mb": 0.0, "swapped_pages": 0, "load_1m": 0.3}  # fmt: skip
ENVIRONMENT = {"board": "Test board", "kernel": "6.1", "arch": "x86_64", "cpus": 2, "versions": {"python": "3.11.7",
               "numpy": "2.4.6", "tensorrt": None}, "before": STATE, "after": STATE, "others_cpu_share": 0.01}
RECORD = {
    "schema": 3, "bundle": "ours", "bundle_sha256": "0" * 64, "engine": "onnxruntime 1.32.0 CPU", "precision": "fp32",
    "dialect": "fused", "weights": "random", "weights_source": "random, seed 0", "test": "tg32", "prompt_tokens": 8,
    "repetitions": 5, "threads": 2, "tok_s": 1.0, "tok_s_sd": 0.5, "ms_p50": 1.0, "ms_p90": 1.1, "prefill_ms": 20.0,
    "load_ms": 100.0, "verify_ms": 50.0, "peak_rss_mb": 420.0, "bundle_bytes": 200_000_000, "params": 50_000_000,
    "bytes_per_token": 190_000_000, "mbu": 0.7, "read_gb_s": 35.0, "timed": "all",
    "environment": ENVIRONMENT, "flags": [], "notes": [], "depth": 0, "context": 2048, "ms_mean": 1.0, "ms_sd": 0.1,
    "ms_p95": 1.2, "ms_p99": 1.3, "tpot_ms": 1.0, "flops_per_token": 100_000_000, "prefill_threads": 2,
    "rounds_ms": None, "processes": None, "run": None, "tokenize_ms": None, "ttft_ms": None, "j_per_token": None,
    "energy": None, "date": "2026-11-24T10:00:00Z", "command": "bench ours",
    "family": "merino", "architecture": OURS,
}  # fmt: skip


def record(step_ms=10.0, spread=0.02, seed=0, disturbed=(), **keys):
    """A row of today's schema, one sample per step (tg) or repetition (pp) around `step_ms`.

    Each repetition is in a process of its own. disturbed: flags of the process of each turn, in order. `keys` replace
    keys."""
    row = {**RECORD, **keys}
    tokens = int(row["test"][2:])
    row["test"] += f" @ d{row['depth']}" if row["depth"] else ""
    draw = random.Random(f"{seed} {row['bundle']} {row['test']} {row['depth']} {row['precision']}")
    kind = row["test"][:2]
    steps = tokens if kind == "tg" else 1
    rounds = [[step_ms * draw.uniform(1 - spread, 1 + spread) for _ in range(steps)] for _ in range(row["repetitions"])]
    rounds = keys.get("rounds_ms") or rounds
    flags = [*disturbed, *[[]] * (len(rounds) - len(disturbed))]
    if "flags" in keys:  # of all processes
        flags = [list(keys["flags"])] * len(rounds)
    processes = [{"turn": turn, "attempt": 0, "repetitions": 1, "flags": result} for turn, result in enumerate(flags)]
    samples = sorted(sample for one in rounds for sample in one)
    speeds = [1000 * tokens / sum(one) for one in rounds]
    if row["depth"] or kind == "pp":
        row["prompt_tokens"] = row["depth"] if kind == "tg" else tokens
    rank = {key: samples[min(len(samples) - 1, int(share * len(samples)))]
            for key, share in (("ms_p50", 0.5), ("ms_p90", 0.9), ("ms_p95", 0.95), ("ms_p99", 0.99))}  # fmt: skip
    row.update(rank, tok_s=sum(speeds) / len(speeds), rounds_ms=rounds, processes=processes,
               ms_mean=sum(samples) / len(samples))  # fmt: skip
    if kind == "pp":
        row["prefill_ms"] = row["ms_p50"]
    return {**row, **{key: value for key, value in keys.items() if key in ("tok_s", "ms_p50", "processes")}}


def opt(step_ms=50.0, spread=0.02, **keys):
    """The reference's row."""
    return record(step_ms, spread, **{"bundle": "opt-350m", "params": 331_196_416, "bundle_bytes": 1_324_933_710,
                              "peak_rss_mb": 1750.0, "family": "opt", "architecture": OPT, **keys})  # fmt: skip


def failed(**keys):
    empty = dict.fromkeys(RECORD)
    return {**empty, "schema": 3, "bundle": "ours", "test": "tg32", "flags": ["failed: out of memory"], "notes": [],
            "timed": "all", "prompt_tokens": 8, **keys}  # fmt: skip


def many():
    """Engines, formats, depths, prompts, a disturbed row and a failed one."""
    rows = []
    for precision, faster in (("fp32", 1), ("int8", 2.6), ("int4", 3.7)):
        size = {"peak_rss_mb": 190 + 200 / faster, "precision": precision, "bundle_bytes": int(2e8 / faster)}
        large = {"peak_rss_mb": 300 + 1300 / faster, "precision": precision, "bundle_bytes": int(1.3e9 / faster)}
        for depth in (0, 512, 1024, 1900):
            rows.append(record((7 + depth / 400) / faster ** (1 - depth / 6000), 0.06, depth=depth, **size))
            rows.append(opt((48 + depth / 60) / faster ** (1 - depth / 9000), 0.06, depth=depth, **large))
        for tokens in (64, 256, 1024):
            rows.append(record(tokens * 0.28 / faster**0.3, test=f"pp{tokens}", mbu=None, **size))
            rows.append(opt(tokens * 3.1 / faster**0.3, test=f"pp{tokens}", mbu=None, **large))
    peer = {"dialect": None, "load_ms": None, "verify_ms": None, "mbu": None}
    for precision, step_ms in (("F32", 50.9), ("Q4_0, table Q8_0", 10.7)):
        rows.append(record(step_ms / 6.3, engine="llama.cpp 2026.10", precision=precision, **peer))
        rows.append(opt(step_ms, engine="llama.cpp 2026.10", precision=precision, **peer))
    rows.append(opt(32.0, engine="ctranslate2 4.6", precision="int8", **peer))
    rows.append(opt(85.0, 0.2, engine="transformers 5.24 eager", **peer))
    rows.append(record(15.0, bundle="small", params=12_000_000, flags=["busy"], architecture=None, family=None))
    return [*rows, failed(bundle="broken", precision="int4")]
