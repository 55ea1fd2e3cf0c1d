"""Memory of a fresh process with one bundle, phase by phase, against weights + KV cache + 90 MB.

    python bench/experiments/memory.py -o bench/results/memory-x86-2cores.json [BUNDLE...]

Without bundles it exports the 66 M geometry below in fp32, int8 and int4, and OPT-350M in int4 (minutes).
Each row is a process of its own: imports, the backend, a prefill of 64 ids, 64 greedy steps. Peak is VmHWM, and RSS is
split into anonymous memory and pages of files; MB are 2^20 bytes. fp32 is measured once more without ONNX Runtime's
packed copies, for the trade between memory and time.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from write_record import write_record

BLOCK = {"width": 640, "ffn_ratio": 1, "depth": 14, "shared": False}
GEOMETRY = {"blocks": [BLOCK], "vocab": 50257, "head_size": 64, "context": 512}
PROMPT, STEPS, TIMED_PREFILLS = 64, 64, 5
ALLOWED_MB = 90  # above weights and KV cache: the interpreter, the libraries, activations
MB = 2**20


def exported(folder: Path, source: dict | str, precision: str) -> Path:
    """The bundle of a geometry or of a name, exported in a process of its own."""
    if isinstance(source, dict):
        path = folder / "geometry.json"
        path.write_text(json.dumps(source))
        source = str(path)
    bundle = folder / f"{Path(source).stem}-{precision}"
    command = [sys.executable, "-m", "merino_edge", "export", source, "--precision", precision, "-o", bundle]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return bundle


def process_mb():
    status = Path("/proc/self/status").read_text()
    fields = {"peak": "VmHWM", "rss": "VmRSS", "anonymous": "RssAnon", "file": "RssFile"}
    return {name: round(int(re.search(rf"{key}:\s*(\d+)", status)[1]) / 1024, 1) for name, key in fields.items()}


def timed(call):
    start = time.perf_counter()
    result = call()
    return result, 1e3 * (time.perf_counter() - start)


def in_this_process(folder, packed):
    phases = {"python": process_mb()}
    import numpy as np

    import merino_runtime  # noqa: F401, switches onnxruntime's telemetry off

    phases["numpy"] = process_mb()
    import onnxruntime

    phases["onnxruntime"] = process_mb()
    if not packed:
        options_of = onnxruntime.SessionOptions

        def unpacked():
            options = options_of()
            options.add_session_config_entry("session.disable_prepacking", "1")
            return options

        onnxruntime.SessionOptions = unpacked
    from merino_runtime.backends import open_backend
    from merino_runtime.bundle import load_bundle

    bundle = load_bundle(folder, verify=False)
    backend = open_backend(bundle)
    phases["open"] = process_mb()
    ids = np.random.default_rng(0).integers(0, bundle.vocab, PROMPT).tolist()
    logits = backend.prefill(ids)
    phases["prefill"] = process_mb()
    step_ms = []
    for _ in range(STEPS):
        token = int(logits.argmax())
        logits, spent = timed(lambda token=token: backend.step(token))
        step_ms.append(spent)
    phases["steps"] = process_mb()
    prefill_ms = []
    for _ in range(TIMED_PREFILLS):
        backend.truncate(0)
        prefill_ms.append(timed(lambda: backend.prefill(ids))[1])
    need_mb = (bundle.weight_bytes + bundle.kv_bytes) / MB
    peak_mb = phases["steps"]["peak"]
    return {
        "bundle": bundle.name, "precision": bundle.precision, "dialect": bundle.dialect, "packed": packed,
        "onnxruntime": onnxruntime.__version__, "threads": backend.threads,
        "weights_mb": round(bundle.weight_bytes / MB, 1), "kv_mb": round(bundle.kv_bytes / MB, 1), "peak_mb": peak_mb,
        "above_weights_and_kv_mb": round(peak_mb - need_mb, 1), "within": peak_mb <= need_mb + ALLOWED_MB,
        "prefill_ms": statistics.median(prefill_ms), "step_ms": statistics.median(step_ms), "phases_mb": phases,
    }  # fmt: skip


def in_a_fresh_process(folder, packed=True):
    call = [sys.executable, __file__, "--measure", str(folder), *([] if packed else ["--unpacked"])]
    return json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("-o", type=Path, dest="out")
    parser.add_argument("--measure", metavar="BUNDLE", help="in this process, and print the row")
    parser.add_argument("--unpacked", action="store_true", help="with --measure: without packed copies")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(in_this_process(arguments.measure, not arguments.unpacked)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        usual = [*((GEOMETRY, precision) for precision in ("fp32", "int8", "int4")), ("opt-350m", "int4")]
        for bundle in arguments.bundles or [exported(Path(folder), *one) for one in usual]:
            rows.append(in_a_fresh_process(bundle))
            if rows[-1]["precision"] == "fp32":
                rows.append(in_a_fresh_process(bundle, packed=False))
    for row in rows:
        print(json.dumps({key: value for key, value in row.items() if key != "phases_mb"}))
    if arguments.out:
        write_record(arguments.out, {"rows": rows})


if __name__ == "__main__":
    main()
