"""Arrays bound to a graph's inputs and outputs by pointer. The caller keeps them alive."""
from typing import Any, Dict, Sequence

import numpy as np

from merino_runtime.bundle import Bundle, Port
from merino_runtime.errors import MerinoError


def bind_input(binding: Any, name: str, array: np.ndarray, shape: Sequence[int] = ()) -> None:
    """shape: of the array's first elements; empty: the array's own."""
    binding.bind_input(name, "cpu", 0, element_type(array), list(shape or array.shape), array.ctypes.data)


def bind_output(binding: Any, name: str, array: np.ndarray) -> None:
    binding.bind_output(name, "cpu", 0, element_type(array), list(array.shape), array.ctypes.data)


def bind_caches(binding: Any, past: Dict[str, np.ndarray], present: Dict[str, np.ndarray]) -> None:
    """Both by the name of the input that reads the past; the same arrays where the graph writes the cache in place."""
    for name, cache in past.items():
        bind_input(binding, name, cache)
        bind_output(binding, name.replace("past_key_values", "present"), present[name])


def caches(bundle: Bundle, count: int) -> Dict[str, np.ndarray]:
    """Empty KV caches [count, heads, context, head_size], by the name of the input that reads each."""
    return {port.name: np.zeros((count, *_lengths(port)[1:]), dtype=port.dtype) for port in bundle.inputs
            if port.name.startswith("past_key_values.")}


def _lengths(port: Port) -> Sequence[int]:
    lengths = [axis for axis in port.shape if isinstance(axis, int)]
    if len(lengths) != len(port.shape):
        raise MerinoError(f"bundle.json gives {port.name} the shape {list(port.shape)}, expected lengths "
                          "only. Export the bundle again.")
    return lengths


def element_type(array: np.ndarray) -> Any:
    """onnxruntime 1.10 knows int64 only as `long long`; later versions know both names."""
    return np.longlong if array.dtype == np.int64 else array.dtype.type
