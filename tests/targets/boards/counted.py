"""Runs on an emulated board's Python, with merino_runtime on the path: counted.py BUNDLE PROMPT STEPS

Calls getsid(0), at which the emulator's plugin notes its count, before and after a prefill of PROMPT ids into an empty
cache and around each of STEPS decode steps behind it. One thread, so that nothing waits for another.
"""
import os
import sys

from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle


def main(folder, prompt, steps):
    backend = open_backend(load_bundle(folder, verify=False), 1)
    for _ in range(2):  # the first run allocates
        backend.truncate(0)
        os.getsid(0)
        backend.prefill([(2 + 7 * place) % backend.vocab for place in range(int(prompt))])
    os.getsid(0)
    for step in range(int(steps)):
        backend.step(step % backend.vocab)
        os.getsid(0)


main(*sys.argv[1:])
