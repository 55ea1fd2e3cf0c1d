"""A published model's speed and memory beside llama.cpp on the same weights, format by format, behind a filling cache.

    python bench/experiments/real_model_speed.py --model FILE.gguf --cache DIR \\
        -o bench/results/real-model-speed-x86-2cores.json

Needs the extra `peers`, and a machine on which nothing else runs. Each row is `bench --peers --peers-file`: fresh
processes that take turns, llama.cpp with its default cache and with one of Q8_0, ours with one of float32 and, beside
quantised weights, one of int8. Ours in float32 meets a copy of the file in F32, int8 one in Q8_0, int4 the file as it
is. DIR keeps bundles (those of quality.py are taken where their
context is long enough), copies and the rows of each format: a format that is there is not measured again. `--short`
shows in minutes whether it all runs.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from llama_cpp import write_copy
from write_record import write_record

from merino_bench.harness.cases import BenchRequest
from merino_bench.sensors.environment import machine
from merino_edge.benchmarking.run import run_benchmark
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source
from merino_edge.records.compare import row_ratio
from merino_edge.records.reading import read_records
from merino_edge.records.schema import Record
from merino_runtime.bundle import load_bundle

CONTEXT, DEPTHS, STEPS, PROMPT = 2048, (64, 448, 1984), 32, 512
THEIRS = {"fp32": "F32", "int8": "Q8_0", "int4": None}  # None: the file as it is
CACHES = {"fp32": (None,), "int8": (None, "int8"), "int4": (None, "int8")}  # of ours; None: float32
PEERS = "llama.cpp,llama.cpp-q8_0-cache"
BAR = 1.3
TIMEOUT_S = 3600.0


def bundle_of(model: Path, precision: str, kv: str | None, cache: Path) -> Path:
    folder = cache / (f"{precision}-kv-{kv}" if kv else precision)
    if not (folder / "bundle.json").exists() or load_bundle(str(folder), verify=False).context < CONTEXT:
        export(load_source(str(model)), folder, ExportRequest(precision=precision, context=CONTEXT, kv=kv))
    return folder


def measured(model: Path, precision: str, folders: list[Path], cache: Path, short: bool) -> list[Record]:
    """The rows of one format of weights: decode behind each depth, and prefill into an empty cache, which is all that
    other engines are measured at."""
    kind = THEIRS[precision]
    file = write_copy(model, cache / f"{model.stem}.{kind}-{kind}.gguf", kind, kind) if kind else model
    repetitions = 1 if short else 5
    requests = {
        "decode": BenchRequest((), (8 if short else STEPS,), repetitions, depths=DEPTHS),
        "prefill": BenchRequest((PROMPT,), (), repetitions),
    }
    saved = []
    for phase, request in requests.items():
        saved.append(cache / f"speed-{precision}-{phase}{'-short' if short else ''}.json")
        if not saved[-1].exists():
            bundles = [str(folder) for folder in folders]
            failed = run_benchmark(
                bundles, request, None, None, "md", saved[-1], TIMEOUT_S, PEERS, None, say, file
            )
            if failed:
                sys.exit(f"{precision}, {phase}: a row failed")
    return read_records(saved)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def pairs(precision: str, rows: list[Record]) -> list[dict[str, Any]]:
    """Per test each of our rows beside llama.cpp's, by the cache that is faster there."""
    found = []
    for ours in [row for row in rows if row.runs_on_onnxruntime]:
        others = [row for row in rows if row.test == ours.test and not row.runs_on_onnxruntime]
        theirs = max(others, key=lambda row: row.tok_s or 0)
        ratio = row_ratio(ours, theirs)
        found.append({
            "test": ours.test, "ours": precision, "our_cache": ours.kv or "fp32",
            "theirs": theirs.precision, "engine": theirs.engine,
            "our_tok_s": ours.tok_s, "their_tok_s": theirs.tok_s,
            "ratio": ratio.value, "interval": [ratio.low, ratio.high], "flags": list(ratio.flags),
            "our_peak_rss_mb": ours.peak_rss_mb, "their_peak_rss_mb": theirs.peak_rss_mb,
            "our_bytes_per_token": ours.bytes_per_token, "their_bytes_per_token": theirs.bytes_per_token,
            "our_processes": ours.process_speeds and list(ours.process_speeds.values()),
            "their_processes": list(theirs.process_speeds.values()),
        })  # fmt: skip
    return found


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| test | ours / llama.cpp | our cache | tok/s | ratio | 95 % | peak MB | 10^6 bytes read | bar 1.3 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high = row["interval"]
        between = "-" if low is None else f"{low:.2f} to {high:.2f}"
        met = ("yes" if row["ratio"] >= BAR else "NO") + (f" ({', '.join(row['flags'])})" if row["flags"] else "")
        read = [row[f"{side}_bytes_per_token"] for side in ("our", "their")]
        lines.append(
            f"| {row['test']} | {row['ours']} / {row['theirs']} | {row['our_cache']} |"
            f" {row['our_tok_s']:.1f} / {row['their_tok_s']:.1f} | {row['ratio']:.2f}x | {between} |"
            f" {row['our_peak_rss_mb']:.0f} / {row['their_peak_rss_mb']:.0f} |"
            f" {' / '.join('-' if one is None else f'{one / 1e6:.1f}' for one in read)} | {met} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--precision", action="append", choices=list(THEIRS), help="default: all; may be repeated")
    parser.add_argument("--short", action="store_true", help="few steps and repetitions: whether it all runs")
    parser.add_argument("-o", type=Path, dest="out", required=True)
    asked = parser.parse_args()
    asked.cache.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for precision in asked.precision or THEIRS:
        folders = [bundle_of(asked.model, precision, kv, asked.cache) for kv in CACHES[precision]]
        rows += pairs(precision, measured(asked.model, precision, folders, asked.cache, asked.short))
        record = {"schema": 1, "machine": machine(), "model": asked.model.name, "short": asked.short, "rows": rows}
        write_record(asked.out, record)
    print(table(rows))


if __name__ == "__main__":
    main()
