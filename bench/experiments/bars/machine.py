"""`python -m machine`: the read bandwidth and the rate of float32 matrix products of this machine, as one JSON line."""

import json
import time

import numpy as np

from merino_bench.harness.run import best_read_gb_s

SIZE, SECONDS = 1024, 1.0


def sgemm_gflops() -> float:
    """Best rate of numpy's product of two square matrices, on all threads that its library starts."""
    left, right = np.ones((2, SIZE, SIZE), np.float32)
    best_s, deadline = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        left @ right
        best_s = min(best_s, time.perf_counter() - start)
    return 2 * SIZE**3 / best_s / 1e9


if __name__ == "__main__":
    print(json.dumps({"read_gb_s": best_read_gb_s(), "sgemm_gflops": sgemm_gflops()}))
