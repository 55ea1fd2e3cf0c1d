"""Memory and time of a fresh process with one bundle, phase by phase, up to 64 decode steps; and from the start of
`python3 merino.pyz generate` to its first token.

    python bench/experiments/process.py -o FILE [BUNDLE...]

Bars: 90 MB above weights and KV cache; a first token of a 66 M decoder in int4 within 1 s. Without bundles it exports
the geometry below in fp32, int8 and int4, and OPT-350M in int4 (minutes). The files are in the page cache, as after a
first run. Peak is VmHWM, and RSS is split into anonymous memory and pages of files; MB are 2^20 bytes. fp32 is measured
once more without ONNX Runtime's packed copies. A bundle of random weights has no tokenizer: for the first token it gets
a made-up byte-level BPE of its whole vocabulary, as slow to load as a real one, and another row for its phases.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from write_record import write_record

BLOCK = {"width": 640, "ffn_ratio": 1, "depth": 14, "shared": False}
GEOMETRY = {"blocks": [BLOCK], "vocab": 50257, "head_size": 64, "context": 512}
PROMPT, STEPS, TIMED_PREFILLS, REPETITIONS = 64, 64, 5, 7
ALLOWED_MB, ALLOWED_MS = 90, 1000.0
TEXT = "Once upon a time, there was a little girl named Lily."
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


def made_up_tokenizer(vocab):
    """GPT-2's form: 256 bytes, then merges of pairs of earlier tokens, drawn."""
    import tokenizers

    from merino_runtime.generation.text import byte_table

    draw, tokens, merges = random.Random(0), list(byte_table()), []
    known = set(tokens)
    while len(tokens) < vocab:
        left, right = draw.choice(tokens), draw.choice(tokens)
        if len(left + right) <= 8 and left + right not in known:
            known.add(left + right)
            tokens.append(left + right)
            merges.append((left, right))
    made = tokenizers.Tokenizer(tokenizers.models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return made.to_str()


def with_tokenizer(bundle, folder):
    """A copy of the bundle that can generate text."""
    copy = folder / f"{bundle.name}-text"
    shutil.copytree(bundle, copy)
    description = json.loads((copy / "bundle.json").read_text())
    if not (copy / "tokenizer.json").exists():
        text = made_up_tokenizer(description["vocab"]).encode()
        (copy / "tokenizer.json").write_bytes(text)
        digest = hashlib.sha256(text).hexdigest()
        description["files"].append({"path": "tokenizer.json", "bytes": len(text), "sha256": digest})
        (copy / "bundle.json").write_text(json.dumps(description))
    return copy


def process_mb():
    status = Path("/proc/self/status").read_text()
    fields = {"peak": "VmHWM", "rss": "VmRSS", "anonymous": "RssAnon", "file": "RssFile"}
    return {name: round(int(re.search(rf"{key}:\s*(\d+)", status)[1]) / 1024, 1) for name, key in fields.items()}


def in_this_process(folder, started, packed):
    """A row. started: time.time() before this process. What is imported, and when, is as in `generate`."""
    phases, begun = {}, started

    def ends(name):
        nonlocal begun
        phases[name] = {"ms": 1e3 * (time.time() - begun), **process_mb()}
        begun = time.time()

    ends("python")
    sys.path.insert(0, f"{folder}/merino.pyz")
    from merino_runtime.bundle import load_bundle
    from merino_runtime.bundle.fit import check_bundle_fits

    bundle = load_bundle(folder, verify=False)
    check_bundle_fits(bundle, allow_slow=True)
    ends("bundle.json")
    import numpy as np

    ends("numpy")
    ids = np.random.default_rng(0).integers(0, bundle.vocab, PROMPT).tolist()
    if (Path(folder) / "tokenizer.json").exists():
        from merino_runtime.generation.text import open_tokenizer

        tokenizer = open_tokenizer(bundle)
        ends("tokenizer")
        ids = tokenizer.encode(TEXT)
    import onnxruntime

    ends("onnxruntime")
    if not packed:
        options_of = onnxruntime.SessionOptions

        def unpacked():
            options = options_of()
            options.add_session_config_entry("session.disable_prepacking", "1")
            return options

        onnxruntime.SessionOptions = unpacked
    from merino_runtime.backends import open_backend

    backend = open_backend(bundle)
    ends("backend")
    logits = backend.prefill(ids)
    ends("prefill")
    step_ms, prefill_ms = [], []
    for _ in range(STEPS):
        token, start = int(logits.argmax()), time.perf_counter()
        logits = backend.step(token)
        step_ms.append(1e3 * (time.perf_counter() - start))
    ends("steps")
    for _ in range(TIMED_PREFILLS):
        backend.truncate(0)
        start = time.perf_counter()
        backend.prefill(ids)
        prefill_ms.append(1e3 * (time.perf_counter() - start))
    need_mb = (bundle.weight_bytes + bundle.kv_bytes) / MB
    peak_mb = phases["steps"]["peak"]
    return {
        "bundle": bundle.name, "precision": bundle.precision, "dialect": bundle.dialect, "packed": packed,
        "onnxruntime": onnxruntime.__version__, "threads": backend.threads,
        "weights_mb": round(bundle.weight_bytes / MB, 1), "kv_mb": round(bundle.kv_bytes / MB, 1), "peak_mb": peak_mb,
        "above_weights_and_kv_mb": round(peak_mb - need_mb, 1), "within": peak_mb <= need_mb + ALLOWED_MB,
        "prompt": len(ids), "prefill_ms": statistics.median(prefill_ms), "step_ms": statistics.median(step_ms),
        "phases": phases,
    }  # fmt: skip


def row_of(folder, packed=True):
    """The phases' median times of several processes; all else of the last one."""
    rows = []
    for _ in range(REPETITIONS):
        call = [sys.executable, __file__, "--measure", str(folder), str(time.time()), *([] if packed else ["unpacked"])]
        done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True, env=environment())
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    for name, phase in rows[-1]["phases"].items():
        phase["ms"] = round(statistics.median(row["phases"][name]["ms"] for row in rows), 1)
    return rows[-1]


def environment():
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def first_token_ms(bundle, *options):
    """Seen from outside, by a pipe."""
    call = [sys.executable, "merino.pyz", "generate", ".", TEXT, "-n", "1", "--json", "--ignore-eos", *options]
    start = time.perf_counter()
    process = subprocess.Popen(call, cwd=bundle, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    first = process.stdout.readline()
    spent = 1e3 * (time.perf_counter() - start)
    process.communicate()
    assert process.returncode == 0 and "id" in json.loads(first)
    return spent


def first_token(bundle):
    first_token_ms(bundle)  # not counted: fills the page cache
    samples = {"--no-verify": [], "hashing first": []}
    for _ in range(REPETITIONS):
        samples["--no-verify"].append(first_token_ms(bundle, "--no-verify"))
        samples["hashing first"].append(first_token_ms(bundle))
    median_ms = {name: statistics.median(values) for name, values in samples.items()}
    return {"first_token_ms": median_ms, "in_time": median_ms["--no-verify"] <= ALLOWED_MS, "samples_ms": samples}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("-o", type=Path, dest="out")
    parser.add_argument("--measure", nargs="+", metavar="WORD", help="BUNDLE STARTED: in this process, and print a row")
    given = parser.parse_args()
    if given.measure:
        folder, started, *unpacked = given.measure
        print(json.dumps(in_this_process(folder, float(started), not unpacked)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        usual = [*((GEOMETRY, precision) for precision in ("fp32", "int8", "int4")), ("opt-350m", "int4")]
        for bundle in given.bundles or [exported(Path(folder), *one) for one in usual]:
            rows.append(row_of(bundle))
            if rows[-1]["precision"] == "fp32":
                rows.append(row_of(bundle, packed=False))
            text = with_tokenizer(bundle, Path(folder))
            rows.append({**row_of(text), **first_token(text)})
    for row in rows:
        print(json.dumps({key: value for key, value in row.items() if key not in ("phases", "samples_ms")}))
    if given.out:
        write_record(given.out, {"rows": rows})


if __name__ == "__main__":
    main()
