"""What runs a graph. A backend knows ids and arrays only: text, sampling and time are others' work."""
from typing import Optional, Sequence

import numpy as np

from merino_runtime.bundle import Bundle
from merino_runtime.errors import MerinoError

BACKENDS = ("onnxruntime",)


class Backend:
    """A model with its KV cache, allocated once.

    Logits are a view that the next call overwrites: copy them to keep them. After a call that failed or was
    interrupted the cache still holds what `length` says, and the backend can be used.
    """
    context = 0  # KV slots
    vocab = 0

    @property
    def length(self) -> int:
        """Filled cache slots."""
        raise NotImplementedError

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Adds ids [n] to the cache -> logits [vocab] after the last one."""
        raise NotImplementedError

    def step(self, token_id: int) -> np.ndarray:
        """Decode: adds one id to the cache -> logits [vocab]."""
        raise NotImplementedError

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` slots, at no cost."""
        raise NotImplementedError

    def close(self) -> None:
        """Gives the memory back; the backend cannot be used after."""
        raise NotImplementedError


def open_backend(bundle: Bundle, threads: Optional[int] = None) -> Backend:
    """threads: None leaves it to the bundle, and then to the machine."""
    if threads is not None and threads < 1:
        raise MerinoError(f"threads is {threads}, allowed: 1 or more. Leave it out to let the bundle choose.")
    if bundle.backend.name == "onnxruntime":
        from merino_runtime.backends.onnx import OnnxBackend

        return OnnxBackend(bundle, threads)
    raise MerinoError(f"bundle {bundle.name!r} wants the backend {bundle.backend.name!r}, this runtime has "
                      f"{', '.join(BACKENDS)}. "
                      "Use the merino.pyz that lies in the bundle, or export it again.")
