"""Backends run the graph of a bundle, on ids and arrays. Text, sampling and timing are elsewhere."""
from typing import TYPE_CHECKING, Callable, Optional

from merino_runtime.backends.choice import TENSORRT, choose_backend
from merino_runtime.bundle import Bundle

if TYPE_CHECKING:
    from merino_runtime.backends.backend import Backend  # imports numpy


def open_backend(bundle: Bundle, threads: Optional[int] = None, prefill_threads: Optional[int] = None,
                 backend: Optional[str] = None, say: Callable[[str], None] = lambda _: None) -> "Backend":
    """Open a bundle.

    threads: of decode, and of prefill if prefill_threads is None; None: the bundle's choice, otherwise the machine's.
    backend: as in `choose_backend`. say: receives notes, such as that an engine is built. Raise MerinoError if the
    backend is not installed, its version is rejected, a thread count is not allowed, or the graph cannot be opened.
    """
    if choose_backend(bundle, backend, say) == TENSORRT:
        from merino_runtime.backends import tensorrt, tensorrt_model

        if threads or prefill_threads:
            say("thread counts are of the CPU; TensorRT computes on the GPU and ignores them")
        return tensorrt.TensorRtBackend(tensorrt_model.open_model(bundle, say))
    from merino_runtime.backends.onnx import OnnxBackend
    from merino_runtime.backends.onnx_session import open_model

    return OnnxBackend(open_model(bundle, threads, prefill_threads))
