"""A KV cache on disk: the ids and the filled slots, so that a long prompt is computed once (docs/formats.md).

Only the bundle that wrote a file reads it, because other weights compute other keys and values for the same ids.
"""
import contextlib
import hashlib
import json
import os
from typing import Any, BinaryIO, Dict, Iterator, List, Tuple

import numpy as np

from merino_runtime.backends.backend import Backend
from merino_runtime.bundle import Bundle, sha256_of
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import value_of
from merino_runtime.io.json_shape import shown
from merino_runtime.io.outputs import open_output

MAGIC = b"merino-cache\n"
SCHEMA = 2
LONGEST_HEADER_BYTES = 64 * 2 ** 20
KEYS = {"schema", "bundle_sha256", "adapter", "ids", "arrays", "sha256"}


def save_cache(bundle: Bundle, backend: Backend, path: str) -> None:
    """Write the backend's cache to a file, whole or not at all. Raise MerinoError if it cannot be written."""
    ids, arrays = backend.filled()
    write_cache(bundle, ids, arrays, path, backend.adapter)


def write_cache(bundle: Bundle, ids: List[int], arrays: Dict[str, np.ndarray], path: str, adapter: int) -> None:
    """arrays [1, heads, len(ids), head_size] by name. adapter: index of the one that computed them; -1: none."""
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array).tobytes())
    header = {"schema": SCHEMA, "bundle_sha256": identity(bundle), "ids": ids, "sha256": digest.hexdigest(),
              "adapter": bundle.adapters[adapter] if adapter >= 0 else None,
              "arrays": [{"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
                         for name, array in arrays.items()]}
    start = MAGIC + json.dumps(header).encode("utf-8") + b"\n"
    with open_output(path, size_bytes=len(start) + sum(array.nbytes for array in arrays.values())) as file:
        file.write(start)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())


def load_cache(bundle: Bundle, backend: Backend, path: str) -> None:
    """Replace the backend's cache by a file. Raise MerinoError if the file is damaged or of another bundle; the cache
    is then empty. The adapter that computed the file is selected."""
    backend.truncate(0)
    with _opened(bundle, path) as (file, header):
        backend.select(header["adapter"])
        _check_arrays(header, backend, path)
        backend.fill(header["ids"], _arrays(file, header, path))


def cached_ids(bundle: Bundle, path: str) -> List[int]:
    """Read the ids in a file's header. Raise MerinoError as `load_cache`."""
    with _opened(bundle, path) as (_, header):
        return header["ids"]


@contextlib.contextmanager
def _opened(bundle: Bundle, path: str) -> Iterator[Tuple[BinaryIO, Dict[str, Any]]]:
    try:
        with open(path, "rb") as file:
            yield file, _header(bundle, file, path)
    except OSError as error:
        raise MerinoError(f"cannot read the cache {path}: {error.strerror}. Check the file's permissions.") from error


def identity(bundle: Bundle) -> str:
    """Return the sha256 of bundle.json, which holds the hashes of the weights."""
    return sha256_of(os.path.join(bundle.folder, "bundle.json"))


def _header(bundle: Bundle, file: BinaryIO, path: str) -> Dict[str, Any]:
    if file.read(len(MAGIC)) != MAGIC:
        raise MerinoError(f"{path} is not a cache that merino wrote. Name another file.")
    line = file.readline(LONGEST_HEADER_BYTES)
    try:
        header = value_of(line.decode("utf-8"))
    except ValueError as error:
        raise _damaged(path, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        schema = header.get("schema") if isinstance(header, dict) else None
        raise MerinoError(f"the cache {path} has schema {shown(schema)}, this runtime reads schema {SCHEMA}. Delete it "
                          "to have it written again.")
    if set(header) != KEYS or not isinstance(header["ids"], list) or not isinstance(header["arrays"], list):
        raise _damaged(path, "its header has other keys than expected")
    if header["bundle_sha256"] != identity(bundle):
        raise MerinoError(f"the cache {path} was written by another bundle than {bundle.name!r} in "
                          f"{bundle.folder}. Name another file, or delete this one to have it written again.")
    return header


def _check_arrays(header: Dict[str, Any], backend: Backend, path: str) -> None:
    """backend: with an empty cache."""
    ids: List[Any] = header["ids"]
    known = all(type(token_id) is int and 0 <= token_id < backend.vocab for token_id in ids)
    if not known or len(ids) > backend.context:
        raise _damaged(path, "its ids are not the model's")
    expected = [{"name": name, "dtype": str(array.dtype), "shape": [*array.shape[:2], len(ids), *array.shape[3:]]}
                for name, array in backend.filled()[1].items()]
    if header["arrays"] != expected:
        raise _damaged(path, "its arrays are not the bundle's")


def _arrays(file: BinaryIO, header: Dict[str, Any], path: str) -> Iterator[np.ndarray]:
    """Yield the arrays; raise after the last one if their hash is not the header's."""
    digest = hashlib.sha256()
    for array in header["arrays"]:
        dtype = np.dtype(array["dtype"])
        size = int(np.prod(array["shape"])) * dtype.itemsize
        data = file.read(size)
        if len(data) != size:
            raise _damaged(path, "it ends too early")
        digest.update(data)
        yield np.frombuffer(data, dtype).reshape(array["shape"])
    if digest.hexdigest() != header["sha256"] or file.read(1):
        raise _damaged(path, "its contents have another sha256 than its header states")


def _damaged(path: str, reason: str) -> MerinoError:
    return MerinoError(f"the cache {path} is damaged: {reason}. Delete it to have it written again.")
