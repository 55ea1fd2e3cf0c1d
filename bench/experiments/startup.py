"""From the start of a process to its first token: `python3 merino.pyz generate . PROMPT -n 1`, the median of seven.

    python bench/experiments/startup.py -o bench/results/startup-x86-2cores.json [BUNDLE]

Without a bundle it exports the 66 M geometry of memory.py in int4. A bundle with random weights has no tokenizer:
it gets a made-up byte-level BPE of its whole vocabulary, as slow to load as a real one of that size. The files are in
the page cache, as after a first run. `first_token_ms` is seen from outside, by a pipe; the phases are of the same
calls in the same order, in processes of their own.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from write_record import write_record

REPETITIONS, ALLOWED_MS = 7, 1000.0
PROMPT = "Once upon a time, there was a little girl named Lily."


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
    copy = folder / "bundle"
    shutil.copytree(bundle, copy)
    description = json.loads((copy / "bundle.json").read_text())
    if not (copy / "tokenizer.json").exists():
        text = made_up_tokenizer(description["vocab"]).encode()
        (copy / "tokenizer.json").write_bytes(text)
        digest = hashlib.sha256(text).hexdigest()
        description["files"].append({"path": "tokenizer.json", "bytes": len(text), "sha256": digest})
        (copy / "bundle.json").write_text(json.dumps(description))
    return copy


def first_token_ms(bundle, *options):
    call = [sys.executable, "merino.pyz", "generate", ".", PROMPT, "-n", "1", "--json", "--ignore-eos", *options]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    start = time.perf_counter()
    process = subprocess.Popen(call, cwd=bundle, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    first = process.stdout.readline()
    spent = 1e3 * (time.perf_counter() - start)
    process.communicate()
    assert process.returncode == 0 and "id" in json.loads(first)
    return spent


def phases_here(bundle_path, started):
    """The same calls as `generate`'s. started: time.time() before this process."""
    times = [("python", started), ("", time.time())]  # (what begins, when)

    def begin(name):
        times.append((name, time.time()))

    begin("import merino_runtime")
    sys.path.insert(0, f"{bundle_path}/merino.pyz")
    from merino_runtime.bundle import load_bundle
    from merino_runtime.bundle.fit import check_bundle_fits

    begin("read bundle.json")
    bundle = load_bundle(bundle_path, verify=False)
    check_bundle_fits(bundle, allow_slow=True)
    begin("import numpy")
    import numpy  # noqa: F401

    begin("import tokenizers")
    import tokenizers  # noqa: F401

    begin("open the tokenizer")
    from merino_runtime.generation.text import open_tokenizer

    tokenizer = open_tokenizer(bundle)
    begin("import onnxruntime")
    import onnxruntime  # noqa: F401

    begin("open the backend")
    from merino_runtime.backends import open_backend

    backend = open_backend(bundle)
    begin("tokenise, prefill, choose")
    from merino_runtime.generation.generate import generate

    next(generate(backend, tokenizer.encode(PROMPT), max_new_tokens=1))
    begin("")
    ends = [time_s for _, time_s in times[1:]]
    return {name: 1e3 * (end - start) for (name, start), end in zip(times, ends, strict=False) if name}


def phases_apart(bundle):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    call = [sys.executable, __file__, "--phases", str(bundle), str(time.time())]
    done = subprocess.run(call, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measure(bundle):
    first_token_ms(bundle)  # not counted: fills the page cache
    samples = {"--no-verify": [], "hashing first": []}
    phases = []
    for _ in range(REPETITIONS):
        samples["--no-verify"].append(first_token_ms(bundle, "--no-verify"))
        samples["hashing first"].append(first_token_ms(bundle))
        phases.append(phases_apart(bundle))
    median_ms = {name: statistics.median(values) for name, values in samples.items()}
    description = json.loads((bundle / "bundle.json").read_text())
    return {
        "bundle": description["name"], "precision": description["precision"],
        "file_mb": round(sum(file["bytes"] for file in description["files"]) / 2**20, 1),
        "first_token_ms": median_ms, "within": median_ms["--no-verify"] <= ALLOWED_MS,
        "phases_ms": {name: round(statistics.median(one[name] for one in phases), 1) for name in phases[0]},
        "samples_ms": samples,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("-o", type=Path, dest="out")
    parser.add_argument("--phases", nargs=2, metavar=("BUNDLE", "STARTED"), help="in this process, and print them")
    arguments = parser.parse_args()
    if arguments.phases:
        print(json.dumps(phases_here(arguments.phases[0], float(arguments.phases[1]))))
        return
    from memory import GEOMETRY, exported  # here, so that what is measured does not import numpy before its time

    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle or exported(Path(folder), GEOMETRY, "int4")
        result = measure(with_tokenizer(bundle, Path(folder)))
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_record(arguments.out, result)


if __name__ == "__main__":
    main()
