"""Memory that TensorRT takes before any model: `python -m merino_bench.probe.gpu_memory PLAN` prints one JSON line.

Resident MB after the imports, after CUDA was started and a small engine was run, at the peak; and `gpu_mb`, what the
whole machine lost meanwhile beyond what became resident here. On a Jetson, whose GPU shares the memory, that is the
CUDA context. MB are 2^20 bytes.
"""
import contextlib
import json
import sys
from typing import Dict

from merino_bench.probe.memory import resident_mb

COLUMNS = 64  # of the small engine


def main() -> int:
    import numpy  # noqa: F401 - counts as an import

    from merino_bench.probe.bandwidth import available_bytes
    from merino_bench.probe.gpu_timing import opened
    from merino_runtime.backends.cuda import MB
    from merino_runtime.backends.gpu import open_cuda
    from merino_runtime.backends.tensorrt_versions import open_tensorrt
    from merino_runtime.bundle.requirements import version_tuple

    with contextlib.suppress(ImportError):
        import tokenizers  # noqa: F401 - text needs it, so its memory counts
    trt = open_tensorrt()
    with open(sys.argv[1], "rb") as file:
        plan = file.read()
    before: Dict[str, float] = {"resident": resident_mb(), "free": available_bytes() / MB}
    cuda = open_cuda(version_tuple(trt.version))
    with opened(trt, cuda, plan, COLUMNS) as calls:
        calls[0][1]()
        open_mb, lost_mb = resident_mb(), before["free"] - available_bytes() / MB
    print(json.dumps({"imports_mb": before["resident"], "open_mb": open_mb, "peak_mb": resident_mb("VmHWM"),
                      "gpu_mb": max(0.0, lost_mb - (open_mb - before["resident"]))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
