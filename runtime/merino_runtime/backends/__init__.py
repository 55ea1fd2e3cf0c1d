"""Backends run the graph of a bundle. They know ids and arrays; text, sampling and timing lie elsewhere."""
from typing import Optional

from merino_runtime.backends.backend import Backend
from merino_runtime.bundle import Bundle, need_of
from merino_runtime.errors import MerinoError

BACKENDS = ("onnxruntime",)


def open_backend(bundle: Bundle, threads: Optional[int] = None, prefill_threads: Optional[int] = None,
                 huge_pages: bool = True) -> Backend:
    """threads: of decode, and of prefill if prefill_threads is None. None: the bundle's choice, else by the machine.

    huge_pages False: the weights stay in small pages. Raises MerinoError if the backend is not installed, its version
    is refused, a thread count is not allowed, or the graph cannot be opened.
    """
    if need_of(bundle, "onnxruntime"):
        from merino_runtime.backends.onnx import OnnxBackend
        from merino_runtime.backends.onnx_session import open_model

        return OnnxBackend(open_model(bundle, threads, prefill_threads, huge_pages))
    named = " or ".join(repr(need.name) for need in bundle.backends)
    raise MerinoError(f"bundle {bundle.name!r} needs the backend {named}, this runtime has "
                      f"{', '.join(BACKENDS)}. Use the merino.pyz of the bundle's folder, or export it again.")
