"""Runs on a board's Python, from 3.6 on, with merino.pyz on the path: logits.py BUNDLE STEPS OUT

STEPS is JSON, a list of pairs: ["prompt", ids] keeps what it shares with the cache and prefills the rest, ["step", id]
decodes, ["truncate", length] forgets. OUT gets the logits of each prompt and step, float32 [prompts and steps, vocab];
stdout gets, as JSON, how many ids each of them computed, what the cache holds in the end, and the versions.
"""
import json
import platform
import sys

import numpy as np

from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.generation.generate import reuse_prefix


def main(folder, steps, out):
    import onnxruntime  # behind merino_runtime, which switches its telemetry off

    backend = open_backend(load_bundle(folder))
    logits, computed = [], []
    for verb, argument in json.loads(steps):
        if verb == "truncate":
            backend.truncate(argument)
            continue
        rest = reuse_prefix(backend, argument) if verb == "prompt" else [argument]
        logits.append((backend.prefill(rest) if verb == "prompt" else backend.step(argument)).copy())
        computed.append(len(rest))
    np.save(out, np.array(logits, dtype=np.float32))
    print(json.dumps({"computed": computed, "ids": backend.ids, "python": platform.python_version(),
                      "onnxruntime": onnxruntime.__version__}))


main(*sys.argv[1:])
