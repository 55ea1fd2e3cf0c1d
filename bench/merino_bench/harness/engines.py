"""Has a bundle's TensorRT engine built before anything is timed, in a process of its own: a builder leaves memory held.

`python -m merino_bench.harness.engines REQUEST` takes a JSON object and prints one, as `worker` does.
"""
import json
import sys
from typing import Any, Dict, Optional

from merino_bench.fresh_process import run_apart
from merino_runtime.backends.choice import TENSORRT, choose_backend
from merino_runtime.bundle import Bundle, load_bundle
from merino_runtime.errors import MerinoError
from merino_runtime.io.streams import say

BUILD_TIMEOUT_S = 7200.0  # a Jetson Nano builds a large model for a quarter of an hour and more


def make_ready(path: str, bundle: Bundle, backend: Optional[str]) -> None:
    """Nothing where the bundle runs on the CPU. Raises MerinoError where it does not run on the backend that was asked
    for, or no engine can be built."""
    if choose_backend(bundle, backend, say) == TENSORRT:
        run_apart("merino_bench.harness.engines", json.dumps({"bundle_path": path}), BUILD_TIMEOUT_S)


def main() -> int:
    result: Dict[str, Any] = {}
    try:
        from merino_runtime.backends.tensorrt_model import open_model

        open_model(load_bundle(json.loads(sys.argv[1])["bundle_path"], verify=False), say).close()
    except MerinoError as error:
        result = {"error": str(error)}
    print(json.dumps(result))
    return 1 if result else 0


if __name__ == "__main__":
    sys.exit(main())
