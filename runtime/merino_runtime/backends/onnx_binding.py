"""Arrays bound to a graph's inputs and outputs by pointer. The caller keeps them alive."""
from typing import Any, Dict, Sequence

import numpy as np

from merino_runtime.bundle import Bundle


def bind_input(binding: Any, name: str, array: np.ndarray, shape: Sequence[int] = ()) -> None:
    """Bind an array as an input. shape: of its first elements; empty: the array's own."""
    binding.bind_input(name, "cpu", 0, element_type(array), list(shape or array.shape), array.ctypes.data)


def bind_output(binding: Any, name: str, array: np.ndarray) -> None:
    binding.bind_output(name, "cpu", 0, element_type(array), list(array.shape), array.ctypes.data)


def bind_caches(binding: Any, past: Dict[str, np.ndarray], present: Dict[str, np.ndarray]) -> None:
    """Bind the caches as inputs and outputs, both by the name of the input that reads the past. They are the same
    arrays if the graph writes the cache in place."""
    for name, cache in past.items():
        bind_input(binding, name, cache)
        bind_output(binding, name.replace("past_key_values", "present"), present[name])


def caches(bundle: Bundle, count: int) -> Dict[str, np.ndarray]:
    """Return empty KV caches [count, heads, context, head_size], by the name of the input that reads each. The schema
    of bundle.json ensures that their shapes are lengths."""
    return {port.name: np.zeros((count, *map(int, port.shape[1:])), dtype=port.dtype) for port in bundle.inputs
            if port.name.startswith("past_key_values.")}


def element_type(array: np.ndarray) -> Any:
    """Return the type for a binding: onnxruntime 1.10 only knows int64 as `long long`; later versions know both
    names."""
    return np.longlong if array.dtype == np.int64 else array.dtype.type
