"""What runs a graph. A backend knows ids and arrays only: text, sampling and time are others' work."""
from typing import Optional

from merino_runtime.backends.backend import Backend
from merino_runtime.bundle import Bundle
from merino_runtime.errors import MerinoError

BACKENDS = ("onnxruntime",)


def open_backend(bundle: Bundle, threads: Optional[int] = None, prefill_threads: Optional[int] = None) -> Backend:
    """threads: of decode, and of prefill where prefill_threads is None; None leaves it to the bundle, and then to the
    machine."""
    for name, count in (("threads", threads), ("prefill_threads", prefill_threads)):
        if count is not None and count < 1:
            raise MerinoError(f"{name} is {count}, allowed: 1 or more. Leave it out to let the bundle choose.")
    if bundle.backend.name == "onnxruntime":
        from merino_runtime.backends.onnx import OnnxBackend
        from merino_runtime.backends.onnx_session import open_model

        return OnnxBackend(open_model(bundle, threads, prefill_threads))
    raise MerinoError(f"bundle {bundle.name!r} wants the backend {bundle.backend.name!r}, this runtime has "
                      f"{', '.join(BACKENDS)}. "
                      "Use the merino.pyz that lies in the bundle, or export it again.")
