"""What the runtime adds to ONNX Runtime: a decode step against a bare loop on the same graph, and the cost of sampling.

    python bench/experiments/overhead.py BUNDLE... -o bench/results/overhead-x86-2cores.json

Bundles of dialect `fused` without position_ids. One process per run of this script; the two loops alternate, round by
round, over the same cache positions, each with a session of its own; medians over all steps.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
from write_record import write_record

from merino_runtime.backends import open_backend
from merino_runtime.backends.threads import thread_counts
from merino_runtime.bundle import load_bundle
from merino_runtime.generation.sampler import Sampler
from merino_runtime.sampling import Sampling

PROMPT, STEPS, ROUNDS = 64, 64, 10


class BareLoop:
    """ONNX Runtime with everything bound once; a step changes the id and the mask's length, and runs."""

    def __init__(self, bundle, threads):
        import onnxruntime  # behind merino_runtime, which switches its telemetry off

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_mem_pattern = False
        self.session = onnxruntime.InferenceSession(f"{bundle.folder}/model.onnx", options, ["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        self.mask = np.ones((1, bundle.context), np.int64)
        self.token = np.zeros((1, 1), np.int64)
        self.logits = np.zeros((1, 1, bundle.vocab), np.float32)
        self.caches = []
        self.bind("input_ids", self.token)
        self.binding.bind_output("logits", "cpu", 0, np.float32, self.logits.shape, self.logits.ctypes.data)
        for layer, (heads, size, _) in enumerate(bundle.kv_layers):
            for part in ("key", "value"):
                cache = np.zeros((1, heads, bundle.context, size), np.float32)
                self.bind(f"past_key_values.{layer}.{part}", cache)
                name = f"present.{layer}.{part}"
                self.binding.bind_output(name, "cpu", 0, np.float32, cache.shape, cache.ctypes.data)
                self.caches.append(cache)

    def bind(self, name, array, shape=None):
        kind = array.dtype.type
        self.binding.bind_input(name, "cpu", 0, kind, list(shape or array.shape), array.ctypes.data)

    def step(self, token, cached):
        self.token[0, 0] = token
        self.bind("attention_mask", self.mask, (1, cached + 1))
        self.session.run_with_iobinding(self.binding)
        return self.logits[0, 0]


def measure(folder):
    bundle = load_bundle(folder)
    threads = thread_counts(bundle).decode
    backend, bare = open_backend(bundle, threads), BareLoop(bundle, threads)
    ids = np.random.default_rng(0).integers(0, bundle.vocab, PROMPT + STEPS).tolist()
    step_ms, bare_ms, sample_ms = [], [], []
    for _ in range(ROUNDS + 1):
        backend.truncate(0)
        backend.prefill(ids[:PROMPT])
        for token in ids[PROMPT:]:
            start = time.perf_counter()
            logits = backend.step(token)
            step_ms.append(1e3 * (time.perf_counter() - start))
        for cached, token in enumerate(ids[:PROMPT]):
            bare.step(token, cached)
        for cached, token in enumerate(ids[PROMPT:], PROMPT):
            start = time.perf_counter()
            expected = bare.step(token, cached)
            bare_ms.append(1e3 * (time.perf_counter() - start))
        assert np.square(logits - expected).mean() < 0.05**2 * np.square(expected).mean()  # the same model
        sampler = Sampler(Sampling(seed=0), ids)
        for _ in range(STEPS):
            start = time.perf_counter()
            sampler.sample(logits)
            sample_ms.append(1e3 * (time.perf_counter() - start))
    backend.close()
    step, plain, sample = (statistics.median(values[STEPS:]) for values in (step_ms, bare_ms, sample_ms))
    return {
        "bundle": bundle.name, "precision": bundle.precision, "vocab": bundle.vocab, "threads": threads,
        "step_ms": step, "bare_step_ms": plain, "overhead": step / plain - 1,
        "sample_ms": sample, "sampling_share": sample / step,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("-o", type=Path, dest="out")
    arguments = parser.parse_args()
    rows = [measure(folder) for folder in arguments.bundles]
    for row in rows:
        print(json.dumps(row), flush=True)
    if arguments.out:
        claim = "A decode step against a bare ONNX Runtime loop; the cost of sampling"
        write_record(arguments.out, {"rows": rows}, claim, "python bench/experiments/overhead.py BUNDLE...")


if __name__ == "__main__":
    main()
