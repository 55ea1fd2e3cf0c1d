"""An ONNX graph under construction, shared by both dialects: nodes, constants, inputs and outputs, and its files.

The operators of each layer are chosen by the dialects (`fused`, `portable`); `external_data` stores the constants.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from merino_edge.export.onnx.external_data import DATA_FILE, DataFile, Deferred, Stored, store
from merino_edge.export.quantize.gptq import Hessians, gptq
from merino_edge.export.quantize.groups import MatrixError, Quantized, group_sizes, matrix_error, quantize
from merino_edge.export.quantize.kv_cache import CacheScales
from merino_edge.export.quantize.outliers import Names, Outliers
from merino_edge.families.graph_ops import KvLayer, Weights
from merino_edge.families.operators import FORMATS
from merino_edge.families.rotary import Rotary, rotary_tables
from merino_edge.families.weights import BlockSource

MODEL_FILE = "model.onnx"
KERNELS_DOMAIN = "merino"  # of the operators in runtime/kernels
TYPES = {
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
}


class Port(NamedTuple):
    """An input or output of the graph; an axis of variable length has a name in place of a number."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Graph:
    """A graph of one dialect. It begins without inputs: a dialect's `begin_decoder` adds a decoder's.

    A constant is stored once, whatever the number of its uses.

    Attributes:
        weights: the state dict that the constants are made of, float32.
        real: the type of activations and of weights that are not quantized.
        blocks: quantized matrices as a GGUF source stores them; None for other sources.
        quantized: the quantized matrices, by the names of the matrices that were joined.
        hessians: returns the Hessians of the matrices' inputs; None: no GPTQ. Matrices with a Hessian are quantized by
            GPTQ, and counted in `calibrated`.
        finest: whether GPTQ takes the smallest groups; else those of plain rounding.
        exact: names of matrices that are taken over from the source without a second rounding.
        cache_scales: of a quantized KV cache; None: the cache is of type `real`. Set before `begin_decoder`.
        all_logits: whether the graph returns the logits of all positions, and not of the last alone.
        eight_bits: names of matrices that get 8 bits in place of 4.
        outliers: by the names of joined matrices, the groups that are stored twice for their outlier channels.
        note: doc_string of the model's file.
        windowed: whether an attention operator has a window, whose length versions of ONNX Runtime count differently.
        decode_weight_bytes: bytes of weights that one decode step reads; a weight used twice counts twice.
    """

    opsets: dict[str, int]
    ir_version = 8

    def __init__(self, weights: Weights, context: int, precision: str, blocks: BlockSource | None = None):
        self.weights = weights
        self.blocks = blocks
        self.exact: set[str] = set()
        self.context = context
        self.form = FORMATS[precision]
        self.real = "float16" if precision == "fp16" else "float32"
        self.quantized: dict[tuple[str, ...], Quantized] = {}
        self.hessians: Callable[[], Hessians] | None = None
        self.finest = False
        self.calibrated = 0
        self.decode_weight_bytes = 0
        self.inputs: list[Port] = []
        self.outputs: list[Port] = []
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray | Deferred] = {}
        self._real_weights: dict[str, np.ndarray] = {}
        self._weight_bytes: dict[int | str, int] = {}  # by address: two shapes of one array are one weight
        self.note = ""
        self.windowed = False
        self.all_logits = False
        self.eight_bits: frozenset[str] = frozenset()
        self.outliers: dict[Names, list[Outliers]] = {}
        self.cache_scales: CacheScales | None = None
        self._rotary_names: dict[tuple[Rotary, int], tuple[str, str]] = {}

    def node(self, kind: str, inputs: Sequence[str], *, domain: str = "", outputs: int = 1, **attributes: Any) -> str:
        """Add a node; returns the name of its first output. Further outputs append `.1`, `.2`, ... to it."""
        name = f"{kind}_{len(self._nodes)}"
        names = [name, *(f"{name}.{index}" for index in range(1, outputs))]
        self._nodes.append(helper.make_node(kind, inputs, names, name=name, domain=domain, **attributes))
        return name

    def node_into(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> None:
        """Add a node whose outputs have these names; an empty name leaves an optional output out."""
        name = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))

    def constant(self, name: str, value: np.ndarray | Deferred) -> str:
        self._constants.setdefault(name, value)
        return name

    @property
    def own_kernels(self) -> tuple[str, ...]:
        """The names of the operators of this project's kernels in the graph, sorted."""
        return tuple(sorted({node.op_type for node in self._nodes if node.domain == KERNELS_DOMAIN}))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all stored weights, each counted once. Rotary tables are constants but not weights."""
        return sum(self._weight_bytes.values())

    def stored(self, name: str, value: np.ndarray | Deferred, read_bytes: int | None = None) -> str:
        """A constant of weights; a decode step reads `read_bytes` of it (default: all)."""
        self._weight_bytes[name if isinstance(value, Deferred) else value.ctypes.data] = value.nbytes
        self.decode_weight_bytes += value.nbytes if read_bytes is None else read_bytes
        return self.constant(name, value)

    def real_weight(self, name: str) -> np.ndarray:
        """A weight of the state dict in type `real`; each call returns the same array."""
        if name not in self._real_weights:
            self._real_weights[name] = self.weights[name].astype(self.real, copy=False)
        return self._real_weights[name]

    def weight(self, name: str) -> str:
        """A vector or embedding of the state dict that a decode step reads as a whole."""
        return self.stored(name, self.real_weight(name))

    def table(self, name: str) -> str:
        """An embedding, of which a decode step reads one row."""
        value = self.real_weight(name)
        return self.stored(name, value, value[0].nbytes)

    def vector(self, names: Sequence[str]) -> str:
        """One or several vectors of the state dict, joined."""
        name = "+".join(names)
        if name not in self._constants:
            self.constant(name, self.joined(names).astype(self.real, copy=False))
        return self.stored(name, self._constants[name])

    def matrix(self, names: Sequence[str]) -> str:
        """One or several matrices of the state dict, joined along their outputs and transposed for x @ W.

        Shape [in, sum of out].
        """
        name = "+".join(names)
        if name not in self._constants:
            shapes = [self.weights[each].shape for each in names]
            shape = shapes[0][1], sum(rows for rows, _ in shapes)

            def make() -> np.ndarray:
                return self.transposed(self.joined(names).astype(self.real, copy=False))

            self.constant(name, Deferred(shape, np.dtype(self.real), make))
        return self.stored(name, self._constants[name])

    def joined(self, names: Sequence[str]) -> np.ndarray:
        """Matrices [out, in] or vectors [out] of the state dict in one array, float32 [sum of out, ...]."""
        return np.concatenate([self.weights[name] for name in names])

    def transposed(self, matrix: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(matrix.T)

    def quantized_table(self, name: str) -> Quantized:
        """An embedding of the state dict in groups; [rows, columns]."""
        return self._quantized([name], self.form.embedding_bits)

    def quantized_matrix(self, names: Sequence[str]) -> Quantized:
        """One or several matrices of the state dict, joined along their outputs, in groups; [sum of out, in]."""
        return self._quantized(names, self.bits_of(names[0]))

    def bits_of(self, name: str) -> int:
        """Bits of a matrix's codes: 8 for the matrices that `--precision mixed` chose, and for those that a GGUF has in
        more than 4 bits: such files spend them where 4 bits lose most."""
        if name in self.eight_bits:
            return 8
        stored = self.blocks.bits(name) if self.blocks else None
        return 8 if stored and stored > self.form.bits else self.form.bits

    def runs(self, names: Sequence[str]) -> list[list[str]]:
        """Matrices of one input in runs that are stored alike."""
        return [list(run) for _, run in groupby(names, self.stored_bits)]

    def stored_bits(self, name: str) -> int:
        return self.bits_of(name)

    def copied_channels(self, matrix: Quantized) -> int:
        """How many channels of the input a copy for outliers has: a group, or as many as a tile has columns."""
        return matrix.group_size

    def _quantized(self, names: Sequence[str], bits: int) -> Quantized:
        key = tuple(names)
        if key not in self.quantized:
            self.quantized[key] = self.repacked(names, bits) or self._requantized(names, bits)
        return self.quantized[key]

    def _requantized(self, names: Sequence[str], bits: int) -> Quantized:
        name, matrix = "+".join(names), self.joined(names)
        hessian = self.hessians().get(names[0]) if self.hessians else None  # joined matrices have one input
        if hessian is None:
            return self.quantize(name, matrix, bits)
        self.calibrated += len(names)
        return self.quantize_gptq(name, matrix, bits, hessian)

    def repacked(self, names: Sequence[str], bits: int) -> Quantized | None:  # noqa: ARG002 - for dialects that can
        """The joined matrices in the source's own blocks; None where this dialect cannot take them over."""
        return None

    def quantize(self, name: str, matrix: np.ndarray, bits: int) -> Quantized:
        """Cut a matrix float32 [rows, columns] into the groups that this dialect's operators take."""
        return quantize(name, matrix, bits)

    def quantize_gptq(self, name: str, matrix: np.ndarray, bits: int, hessian: np.ndarray) -> Quantized:
        """The same by GPTQ; `hessian` [columns, columns] of the matrix's input."""
        finest = group_sizes(name, matrix.shape[1])[-1]
        return gptq(matrix, hessian, bits, finest if self.finest else self.quantize(name, matrix, bits).group_size)

    def matrix_errors(self) -> list[MatrixError]:
        return [matrix_error("+".join(names), self.joined(names), matrix) for names, matrix in self.quantized.items()]

    def integers(self, *values: int) -> str:
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def integer(self, value: int) -> str:
        return self.constant(f"int_{value}", np.array(value, np.int64))

    def scalar(self, value: float) -> str:
        return self.constant(f"real_{value!r}", np.array(value, self.real))

    def to_real(self, x: str) -> str:
        """Cast to type `real`."""
        return self.node("Cast", [x], to=TYPES[self.real])

    def logits(self, x: str, vocab: int) -> None:
        """Make x [1, 1 or T, vocab] the graph's output `logits`, which is float32 in every format."""
        self.output("logits", "float32", 1, "sequence" if self.all_logits else 1, vocab)
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

    def rotary_constants(self, rotary: Rotary, head_size: int) -> tuple[str, str]:
        """cos and sin of each position [context, head_size / 2], stored once for each rotary and head size."""
        key = rotary, head_size
        if key not in self._rotary_names:
            more = sum(size == head_size for _, size in self._rotary_names)
            names = [f"{part}_{head_size}" + (f".{more}" if more else "") for part in ("cos", "sin")]
            tables = rotary_tables(self.context, head_size, rotary)
            cos, sin = (
                self.constant(name, table.astype(self.real)) for name, table in zip(names, tables, strict=True)
            )
            self._rotary_names[key] = cos, sin
        return self._rotary_names[key]

    def cache_ports(self, layers: Sequence[KvLayer], present_axis: int | str) -> None:
        """For each layer, inputs of the cached keys and values [1, heads, context, head_size], and outputs of the
        present ones [1, heads, present_axis, head_size]. In 4 bits a byte holds two channels."""
        bits = self.cache_scales.bits if self.cache_scales else 0
        dtype = {0: self.real, 8: "int8", 4: "uint8"}[bits]
        for layer in layers:
            size = layer.head_size // 2 if bits == 4 else layer.head_size
            for past, present in zip(ports("past_key_values", layer), ports("present", layer), strict=True):
                self.input(past, dtype, 1, layer.heads, self.context, size)
                self.output(present, dtype, 1, layer.heads, present_axis, size)

    def declared(self, port: Port) -> tuple[int | str, ...]:
        """The shape of an input or output as the file states it."""
        return port.shape

    def forget(self) -> None:
        """Free all weights after they are saved."""
        self.weights, self._real_weights, self.quantized = {}, {}, {}
        self._constants.clear()

    def save(self, folder: Path) -> None:
        """Write `model.onnx` and `model.onnx.data`."""
        with open(folder / DATA_FILE, "wb") as data:
            model = self.model(data)
        onnx.save_model(model, str(folder / MODEL_FILE))

    def model(self, data: DataFile) -> onnx.ModelProto:
        """The model; the values of its large constants are written to `data`."""
        graph = helper.make_graph(
            self._nodes,
            "decoder",
            [helper.make_tensor_value_info(port.name, TYPES[port.dtype], self.declared(port)) for port in self.inputs],
            [helper.make_tensor_value_info(port.name, TYPES[port.dtype], self.declared(port)) for port in self.outputs],
        )
        stored: list[Stored] = []
        for name, value in self._constants.items():
            graph.initializer.append(store(name, value, data, stored))
        opsets = {**self.opsets, **({KERNELS_DOMAIN: 1} if self.own_kernels else {})}
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
            ir_version=self.ir_version,
            producer_name="merino_edge",
            doc_string=self.note,
        )


@contextmanager
def replaced_model(folder: Path, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> Iterator[None]:
    """Replace `model.onnx` in a folder by `change` of it, over the same data file; it is restored afterwards."""
    path = folder / MODEL_FILE
    content = path.read_bytes()
    onnx.save_model(change(onnx.load_model_from_string(content)), str(path))
    try:
        yield
    finally:
        path.write_bytes(content)


def ports(kind: str, layer: KvLayer) -> tuple[str, str]:
    """Names of a layer's inputs or outputs of keys and values, as in Hugging Face's exports; `kind`: `past_key_values`
    or `present`."""
    return f"{kind}.{layer.index}.key", f"{kind}.{layer.index}.value"
