"""Runs on an emulated board's Python, with merino_runtime on the path: counted.py BUNDLE PROMPT STEPS [PAST...]

Calls getsid(0), at which the emulator's plugin notes its count, before and after a prefill of PROMPT ids into an empty
cache and around each of STEPS decode steps behind it, or behind each PAST positions, whose keys and values are whatever
the memory holds: that takes as many instructions. One thread, so that nothing waits for another. At the end it prints
where code lies.
"""
import os
import sys

from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle


def main(folder, prompt, steps, *pasts):
    backend = open_backend(load_bundle(folder, verify=False), 1)
    for _ in range(2):  # the first run allocates
        backend.truncate(0)
        os.getsid(0)
        backend.prefill([(2 + 7 * place) % backend.vocab for place in range(int(prompt))])
    for past in pasts or (prompt,):
        backend.ids.extend([1] * (int(past) - backend.length))
        os.getsid(0)
        for step in range(int(steps)):
            backend.step(step % backend.vocab)
            os.getsid(0)
    with open("/proc/self/maps") as maps:
        print("".join(line for line in maps if "x" in line.split()[1]))


main(*sys.argv[1:])
