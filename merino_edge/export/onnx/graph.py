"""An ONNX graph under construction: nodes, constants, inputs and outputs, and its file with external data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from merino_edge.export.quantize import MatrixError, Quantized, matrix_error, quantize
from merino_edge.families.graph_ops import KvLayer, Weights
from merino_edge.families.operators import FORMATS, HEAD_SLICE_BYTES

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
EXTERNAL_BYTES = 1024  # smaller constants stay inside the graph
PAGE = 4096  # weights begin at a page, so that they can be mapped
PIECE_BYTES = 64 << 10  # of the data file, written at once
TYPES = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


class Port(NamedTuple):
    """An input or output of the graph; a shape's entry is a number or the name of what varies."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Place(NamedTuple):
    """Memory that the data file holds from `offset` on."""

    address: int
    nbytes: int
    offset: int


class Graph:
    """What both dialects have in common. A constant is stored once, whatever the number of its uses."""

    opsets: dict[str, int]
    ir_version = 8

    def __init__(self, weights: Weights, kv_layers: Sequence[KvLayer], context: int, precision: str):
        self.weights = weights
        self.form = FORMATS[precision]
        self.real = "float16" if precision == "fp16" else "float32"  # of activations, cache and plain weights
        self._real_weights: dict[str, np.ndarray] = {}
        self.quantized: dict[tuple[str, ...], Quantized] = {}  # by the names of the matrices that were joined
        self.decode_weight_bytes = 0  # read by one decode step, at each use
        self._weight_bytes: dict[int, int] = {}  # stored, by address: another shape of the same memory is the same
        self.kv_layers = kv_layers
        self.context = context
        self.inputs: list[Port] = []
        self.outputs: list[Port] = []
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}

    def node(self, kind: str, inputs: Sequence[str], *, domain: str = "", outputs: int = 1, **attributes: Any) -> str:
        """Add a node; returns its first output's name. The others end in `.1`, `.2`, ..."""
        name = f"{kind}_{len(self._nodes)}"
        names = [name, *(f"{name}.{index}" for index in range(1, outputs))]
        self._nodes.append(helper.make_node(kind, inputs, names, name=name, domain=domain, **attributes))
        return name

    def node_into(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> None:
        """Add a node whose outputs have given names; an empty name is an output left out."""
        name = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))

    def constant(self, name: str, value: np.ndarray) -> str:
        self._constants.setdefault(name, value)
        return name

    @property
    def weight_bytes(self) -> int:
        """Of all weights stored, each once; tables of sines are no weights."""
        return sum(self._weight_bytes.values())

    def stored(self, name: str, value: np.ndarray, read_bytes: int | None = None) -> str:
        """A constant that holds weights; a decode step reads all of it, or `read_bytes`."""
        self._weight_bytes[value.ctypes.data] = value.nbytes
        self.decode_weight_bytes += value.nbytes if read_bytes is None else read_bytes
        return self.constant(name, value)

    def real_weight(self, name: str) -> np.ndarray:
        """A weight of the state dict in the graph's own float type; the same array at each call."""
        if name not in self._real_weights:
            self._real_weights[name] = self.weights[name].astype(self.real, copy=False)
        return self._real_weights[name]

    def weight(self, name: str) -> str:
        """A vector or table of the state dict, read as a whole."""
        return self.stored(name, self.real_weight(name))

    def table(self, name: str) -> str:
        """A table of which a decode step reads one row."""
        value = self.real_weight(name)
        return self.stored(name, value, value[0].nbytes)

    def matrix(self, names: Sequence[str]) -> str:
        """One or several matrices of the state dict, side by side, as the right side of x @ W; [in, sum of out]."""
        joined = "+".join(names)
        if joined not in self._constants:
            stacked = np.concatenate([self.real_weight(name) for name in names])  # [out, in]
            self.constant(joined, np.ascontiguousarray(stacked.T))
        return self.stored(joined, self._constants[joined])

    def quantized_table(self, name: str) -> Quantized:
        """A table of the state dict in blocks. [rows, columns]"""
        if (name,) not in self.quantized:
            self.quantized[(name,)] = self.quantize(name, self.weights[name], self.form.table_bits)
        return self.quantized[(name,)]

    def quantized_matrix(self, names: Sequence[str]) -> Quantized:
        """One or several matrices of the state dict in blocks, one above the other. [sum of out, in]"""
        key = tuple(names)
        if key not in self.quantized:
            stacked = np.concatenate([self.weights[name] for name in names])
            self.quantized[key] = self.quantize("+".join(names), stacked, self.form.bits)
        return self.quantized[key]

    def quantize(self, name: str, matrix: np.ndarray, bits: int) -> Quantized:
        """How this dialect cuts a matrix into blocks."""
        return quantize(name, matrix, bits)

    def matrix_errors(self) -> list[MatrixError]:
        return [
            matrix_error("+".join(names), np.concatenate([self.weights[name] for name in names]), found)
            for names, found in self.quantized.items()
        ]

    def vector(self, names: Sequence[str]) -> str:
        joined = "+".join(names)
        if joined not in self._constants:
            self.constant(joined, np.concatenate([self.real_weight(name) for name in names]))
        return self.stored(joined, self._constants[joined])

    def real_head(self, x: str, table: str) -> str:
        """x [1, 1, width] against a plain table [vocab, width], in slices of its rows; [1, 1, vocab].

        ONNX Runtime copies a matrix into its kernels' order and lets go of the original where no other operator reads
        it. So the head has constants of its own over the same bytes of the file (else the whole table, which embeds
        the tokens too, would stay in memory beside the copy), and small ones, of which one at a time is there twice.
        """
        rows = self.real_weight(table)  # [vocab, width]
        self.decode_weight_bytes += rows.nbytes
        unit = PAGE // 4  # rows that fill whole pages, whatever the width
        count = max(1, HEAD_SLICE_BYTES // rows[0].nbytes // unit) * unit
        row = self.node("Squeeze", [x, self.integers(1)])  # [1, width]
        parts = []
        for start in range(0, len(rows), count):
            piece = self.constant(f"{table}.{start}", rows[start : start + count])
            logits = self.node("Gemm", [row, piece], transB=1)  # [1, count]
            parts.append(self.node("Unsqueeze", [logits, self.integers(1)]))
        return self.node("Concat", parts, axis=2) if len(parts) > 1 else parts[0]

    def integers(self, *values: int) -> str:
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def integer(self, value: int) -> str:
        return self.constant(f"int_{value}", np.array(value, np.int64))

    def scalar(self, value: float) -> str:
        return self.constant(f"real_{value!r}", np.array(value, self.real))

    def to_real(self, x: str) -> str:
        """Cast to the graph's own float type."""
        return self.node("Cast", [x], to=TYPES[self.real])

    def logits(self, x: str) -> None:
        """x [1, 1, vocab] as the graph's logits, float32 in each format, so that the host's sampler knows one type."""
        if self.real == "float32":
            self.node_into("Identity", [x], ["logits"])
        else:
            self.node_into("Cast", [x], ["logits"], to=TensorProto.FLOAT)

    def input(self, name: str, dtype: str, *shape: int | str) -> str:
        self.inputs.append(Port(name, dtype, shape))
        return name

    def output(self, name: str, dtype: str, *shape: int | str) -> str:
        self.outputs.append(Port(name, dtype, shape))
        return name

    def save(self, folder: Path) -> None:
        """Write `model.onnx` and `model.onnx.data`."""
        graph = helper.make_graph(
            self._nodes,
            "decoder",
            [helper.make_tensor_value_info(port.name, TYPES[port.dtype], port.shape) for port in self.inputs],
            [helper.make_tensor_value_info(port.name, TYPES[port.dtype], port.shape) for port in self.outputs],
        )
        with open(folder / DATA_FILE, "wb") as data:
            places: list[Place] = []
            for name, value in self._constants.items():
                graph.initializer.append(store(name, value, data, places))
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in self.opsets.items()],
            ir_version=self.ir_version,
            producer_name="merino_edge",
        )
        onnx.save_model(model, str(folder / MODEL_FILE))


def ports(kind: str, layer: KvLayer) -> tuple[str, str]:
    """The ecosystem's names of a layer's keys and values; `kind` is `past_key_values` or `present`."""
    return f"{kind}.{layer.index}.key", f"{kind}.{layer.index}.value"


def store(name: str, value: np.ndarray, data: BinaryIO, places: list[Place]) -> TensorProto:
    """A tensor of the graph: its values inside it where they are few, else in the data file.

    `places` holds what was stored by its address: another shape of the same memory, or a part of it, is not stored
    again.
    """
    if value.nbytes < EXTERNAL_BYTES:
        return numpy_helper.from_array(value, name)
    offset = stored_offset(value, places)
    if offset is None:
        data.write(b"\0" * (-data.tell() % PAGE))
        offset = data.tell()
        places.append(Place(value.ctypes.data, value.nbytes, offset))
        write_in_pieces(np.ascontiguousarray(value), data)
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(value.dtype), dims=value.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", DATA_FILE), ("offset", str(offset)), ("length", str(value.nbytes))):
        tensor.external_data.add(key=key, value=text)
    return tensor


def write_in_pieces(value: np.ndarray, data: BinaryIO) -> None:
    """One large write leaves pages of 2 MB in the file cache of newer Linux kernels; a process that maps the file and
    reads one row of a table then has all of such a page in its memory, until the file has been copied."""
    flat = value.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, PIECE_BYTES):
        data.write(flat[start : start + PIECE_BYTES].data)


def stored_offset(value: np.ndarray, places: list[Place]) -> int | None:
    """Where the file holds it already, None where it does not. A part counts only where its memory has no gaps."""
    begin, end = value.ctypes.data, value.ctypes.data + value.nbytes
    for place in places:
        if place.address <= begin and end <= place.address + place.nbytes and value.flags.c_contiguous:
            return place.offset + begin - place.address
    return None


def rotary_tables(context: int, head_size: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin for every position, float32 [context, head_size / 2], computed as the model does."""
    steps = np.arange(0, head_size, 2, dtype=np.float32) / head_size
    angles = np.arange(context, dtype=np.float32)[:, None] * np.float32(theta) ** -steps
    return np.cos(angles), np.sin(angles)
