"""Backends run the graph of a bundle. They know ids and arrays; text, sampling and timing lie elsewhere."""
from typing import TYPE_CHECKING, Callable, Optional

from merino_runtime.backends.choice import TENSORRT, choose_backend
from merino_runtime.bundle import Bundle

if TYPE_CHECKING:
    from merino_runtime.backends.backend import Backend  # imports numpy


def open_backend(bundle: Bundle, threads: Optional[int] = None, prefill_threads: Optional[int] = None,
                 backend: Optional[str] = None, say: Callable[[str], None] = lambda _: None) -> "Backend":
    """threads: of decode, and of prefill if prefill_threads is None. None: the bundle's choice, else by the machine.

    backend: as of `choose_backend`. say: gets notes, such as that an engine is built. Raises MerinoError if the
    backend is not installed, its version is refused, a thread count is not allowed, or the graph cannot be opened.
    """
    if choose_backend(bundle, backend, say) == TENSORRT:
        return _open_tensorrt(bundle, threads or prefill_threads, say)
    from merino_runtime.backends.onnx import OnnxBackend
    from merino_runtime.backends.onnx_session import open_model

    return OnnxBackend(open_model(bundle, threads, prefill_threads))


def _open_tensorrt(bundle: Bundle, threads: Optional[int], say: Callable[[str], None]) -> "Backend":
    from merino_runtime.backends.tensorrt import TensorRtBackend
    from merino_runtime.backends.tensorrt_model import open_model

    if threads:
        say("thread counts are of the CPU; TensorRT computes on the GPU and ignores them")
    model = open_model(bundle, say)
    try:
        return TensorRtBackend(model)
    except BaseException:
        model.close()
        raise
