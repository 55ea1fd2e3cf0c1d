"""What runs a graph. A backend knows ids and arrays only: text, sampling and time are others' work."""
from typing import Optional

from merino_runtime.backends.backend import Backend
from merino_runtime.bundle import Bundle
from merino_runtime.errors import MerinoError

BACKENDS = ("onnxruntime",)


def open_backend(bundle: Bundle, threads: Optional[int] = None) -> Backend:
    """threads: None leaves it to the bundle, and then to the machine."""
    if threads is not None and threads < 1:
        raise MerinoError(f"threads is {threads}, allowed: 1 or more. Leave it out to let the bundle choose.")
    if bundle.backend.name == "onnxruntime":
        from merino_runtime.backends.onnx import OnnxBackend, open_model

        return OnnxBackend(open_model(bundle, threads))
    raise MerinoError(f"bundle {bundle.name!r} wants the backend {bundle.backend.name!r}, this runtime has "
                      f"{', '.join(BACKENDS)}. "
                      "Use the merino.pyz that lies in the bundle, or export it again.")
