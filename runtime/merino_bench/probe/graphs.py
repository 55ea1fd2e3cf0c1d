"""Read the graphs that the probe times from `graphs.tar.xz`: models without weights, which the exporter built.

The archive's `index.json` describes each graph. All of them read their weights from one file of random bytes, which
`write_weights` writes. `tasks` lists which graphs a machine times. `bench/probe_graphs`, which is not installed, builds
the archive.
"""
import io
import json
import os
import pkgutil
import tarfile
from functools import lru_cache
from typing import Any, Dict, List, NamedTuple, Tuple, Union

import numpy as np

from merino_runtime.bundle import BackendNeed, Bundle, BundleFile, KvLayer, Port, Threads
from merino_runtime.bundle.fit import OPERATORS

ARCHIVE, INDEX = "graphs.tar.xz", "index.json"
WEIGHTS_FILE = "model.onnx.data"  # the name that the graphs refer to
PAGE = 4096
LIMIT = 0.05  # of the random weights, both signs
FINITE_HALVES = np.uint32(0xFFFFBFFF)  # without the highest bit of the exponent of what would be a second float16


class Kernel(NamedTuple):
    """A graph of the archive. Meanings of the fields up to `kv`: as in a row of probe.json (docs/formats.md), but
    `kv_heads` is 0 where there are as many as `heads`."""
    file: str
    dialects: Tuple[str, ...]  # several where both write the same operators
    kind: str
    format: str
    rows: int
    columns: int
    heads: int
    count: int  # type: ignore[assignment] # of operators, or of layers
    uses: int
    kv_heads: int
    kv: str
    by_groups: bool
    inputs: Tuple[Port, ...]
    outputs: Tuple[Port, ...]
    weight_bytes: int  # of the weights' file that it reads
    layer_bytes: int  # of the matrices of one layer of a decoder, else 0
    own_kernels: bool  # it has operators of `merino_runtime.bundle.fit`
    in_place: bool  # outputs `present.*` are written to the memory of `past_key_values.*`

    @property
    def model(self) -> bytes:
        """Return the bytes of an .onnx file."""
        return members()[self.file]


@lru_cache(maxsize=1)
def members() -> Dict[str, bytes]:
    """Return the archive's files by name, 4 MB in all; a stream of xz cannot be read out of order."""
    content = pkgutil.get_data("merino_bench.probe", ARCHIVE)
    assert content is not None
    content_of = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:xz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            content_of[member.name] = file.read()
    return content_of


@lru_cache(maxsize=1)
def kernels() -> Tuple[Kernel, ...]:
    """Return the graphs that the archive's index describes."""
    graphs = []
    for entry in json.loads(members()[INDEX].decode("utf-8")):
        ports = {key: tuple(Port(name, dtype, tuple(shape)) for name, dtype, shape in entry[key])
                 for key in ("inputs", "outputs")}
        graphs.append(Kernel(**dict(entry, dialects=tuple(entry["dialects"]), **ports)))
    return tuple(graphs)


def kernels_of(dialect: str, kind: str, form: str, **fields: Union[int, str]) -> List[Kernel]:
    """Return the graphs of a kind and format whose `fields` (rows, columns, heads, count, uses, kv_heads, kv) have
    these values."""
    return [kernel for kernel in kernels() if (kernel.kind, kernel.format) == (kind, form)
            and dialect in kernel.dialects and all(getattr(kernel, name) == value for name, value in fields.items())]


def kernel_of(dialect: str, kind: str, form: str, **fields: Union[int, str]) -> Kernel:
    """Return the only graph that has these `fields`."""
    kernels = kernels_of(dialect, kind, form, **fields)
    assert len(kernels) == 1, (dialect, kind, form, fields, len(kernels))
    return kernels[0]


def bundle_of(folder: str, kernel: Kernel) -> Bundle:
    """Describe the graph in `folder` as bundle.json would, as far as a backend or the builder of engines reads it."""
    context = int(kernel.inputs[2].shape[2]) if kernel.kind == "decoder" else 1  # of a cache [1, heads, context, size]
    layers = kernel.count * kernel.uses if kernel.heads else 0
    layer = KvLayer(kernel.kv_heads or kernel.heads, kernel.columns // (kernel.heads or 1), kernel.kv)
    fields: Dict[str, Any] = dict.fromkeys(Bundle._fields)
    fields.update(
        kernels=tuple(OPERATORS) if kernel.own_kernels else (), files=(BundleFile(WEIGHTS_FILE, 0, ""),),
        folder=folder, name="probe", precision=kernel.format,
        dialect="portable" if kernel.kind == "chain" else "fused", vocab=kernel.outputs[-1].shape[-1], context=context,
        kv_layers=(layer,) * layers,
        inputs=kernel.inputs, outputs=kernel.outputs, weight_bytes=kernel.weight_bytes,
        decode_weight_bytes=kernel.weight_bytes, kv_bytes=0, threads=Threads(None, None),
        backends=(BackendNeed("onnxruntime", "1.18", ()),))
    return Bundle(**fields)


def write_weights(work: str, size: int, written: int) -> int:
    """Append to the weights' file until it has `size` bytes, and return its size. `written`: its size before.

    Small random float32, which read as bytes are random codes, and read as float16 scales below 2. All matrices differ,
    because ONNX Runtime would store equal ones once.
    """
    random = np.random.RandomState(written // PAGE)
    with open(os.path.join(work, WEIGHTS_FILE), "ab") as file:
        while written < size:
            piece = random.uniform(-LIMIT, LIMIT, 2 ** 18).astype(np.float32)
            piece.view(np.uint32)[:] &= FINITE_HALVES
            file.write(piece.tobytes())
            written += piece.nbytes
    return written
