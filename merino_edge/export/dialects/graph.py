"""An ONNX graph under construction: nodes, constants, inputs and outputs, and its files.

`operations` and the dialects `fused` and `portable` choose the operators; `external_data` stores the constants.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper

from merino_edge.bundles.description import GraphFormat
from merino_edge.export.dialects.external_data import DATA_FILE, DataFile, Deferred, store
from merino_edge.export.quantize.kv_cache import CacheScales
from merino_edge.export.quantize.matrix import QuantizedMatrix
from merino_edge.families.graph_ops import KvLayer, Weights
from merino_edge.families.rotary import Rotary, rotary_tables
from merino_runtime.bundle import Port

MODEL_FILE = "model.onnx"
FIRST_LOGITS = "first_logits"
ADAPTER = "adapter"
KERNELS_DOMAIN = "merino"  # of the operators in runtime/kernels
TYPES = {
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
}
Made = TypeVar("Made")


class Factors(NamedTuple):
    """The factors of one matrix in all LoRA adapters, zeros where an adapter leaves it as it is: the model computes
    x @ down[adapter] @ up[adapter] beside it. The last of `up` are zeros, for the model without an adapter."""

    down: np.ndarray  # float32 [adapters, in, rank]
    up: np.ndarray  # float32 [adapters + 1, rank, out]


class Graph:
    """A graph of one dialect, without inputs at first: a dialect's `begin_decoder` adds those of a decoder.

    A constant is stored once, however often it is used.

    Attributes:
        weights: the state dict in the graph's layout, float32; see `GraphWeights`.
        matrices: the quantized matrices, by their names joined with `+`. All others are stored as floats.
        form: the bundle's format, which decides the context, the float type and the attention operator.
        cache_scales: of a quantized KV cache; None: the cache is of type `real`.
        adapters: the factors of LoRA adapters by the name of their matrix.
        real: the type of activations and of weights that are not quantized.
        all_logits: whether the graph returns the logits of all positions, and not of the last alone.
        batched: whether several sequences can be decoded in one run of a `fused` graph, and none changes the result of
            another.
        note: doc_string of the model's file.
        oldest: the oldest version of ONNX Runtime that has all options of the graph's operators.
        decode_weight_bytes: bytes of weights that one decode step reads; a weight used twice counts twice.
    """

    opsets: dict[str, int]
    ir_version = 8

    def __init__(
        self, weights: Weights, matrices: Mapping[str, QuantizedMatrix], form: GraphFormat,
        cache_scales: CacheScales | None = None, adapters: Mapping[str, Factors] = MappingProxyType({}),
    ):  # fmt: skip
        self.weights = weights
        self.matrices = matrices
        self.cache_scales = cache_scales
        self.adapters = adapters
        self.form = form
        self.context = form.context
        self.all_logits = form.all_logits
        self.real = "float16" if form.precision == "fp16" else "float32"
        self.batched = False
        self.note = ""
        self.oldest = "1.10"
        self.decode_weight_bytes = 0
        self.inputs: list[Port] = []
        self.outputs: list[Port] = []
        self.optional_inputs: list[Port] = []  # constants that a caller may replace; no program has to know them
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray | Deferred] = {}
        self._weight_bytes: dict[int | str, int] = {}  # by address: two shapes of one array are one weight
        self._made: dict[Hashable, Any] = {}

    # Nodes

    def node(self, kind: str, inputs: Sequence[str], *, domain: str = "", outputs: int = 1, **attributes: Any) -> str:
        """Add a node; return the name of its first output. Further outputs append `.1`, `.2`, ... to it."""
        name = f"{kind}_{len(self._nodes)}"
        names = [name, *(f"{name}.{index}" for index in range(1, outputs))]
        self.node_into(kind, inputs, names, domain=domain, **attributes)
        return name

    def node_into(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> None:
        """Add a node whose outputs have these names; an empty name leaves an optional output out."""
        name = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))

    def unnamed(self, kind: str) -> str:
        """Return a new name of a tensor."""
        return f"{kind}_{len(self._nodes)}"

    @property
    def own_kernels(self) -> tuple[str, ...]:
        """The names of the operators of this project's kernels in the graph, sorted."""
        return tuple(sorted({node.op_type for node in self._nodes if node.domain == KERNELS_DOMAIN}))

    def padded(self, x: str, channels: int) -> str:
        """Append channels of zeros to x [1, T, n]."""
        return self.node("Pad", [x, self.integers(*[0] * 5, channels)])

    def to_real(self, x: str) -> str:
        """Cast to type `real`."""
        return self.node("Cast", [x], to=TYPES[self.real])

    # Constants

    def constant(self, name: str, value: np.ndarray | Deferred) -> str:
        self._constants.setdefault(name, value)
        return name

    def integers(self, *values: int) -> str:
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def integer(self, value: int) -> str:
        return self.constant(f"int_{value}", np.array(value, np.int64))

    def scalar(self, value: float) -> str:
        return self.constant(f"real_{value!r}", np.array(value, self.real))

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what `make` returned at the first call with this key."""
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    def rotary_constants(self, rotary: Rotary, head_size: int) -> tuple[str, str]:
        """Store cos and sin of each position [context, head_size / 2], once for each rotary and head size."""

        def make() -> tuple[str, str]:
            more = sum(name.split(".")[0] == f"cos_{head_size}" for name in self._constants)
            names = [f"{part}_{head_size}" + (f".{more}" if more else "") for part in ("cos", "sin")]
            tables = rotary_tables(self.context, head_size, rotary)
            cos, sin = (self.constant(name, table.astype(self.real)) for name, table in zip(names, tables, strict=True))
            return cos, sin

        return self.once((rotary, head_size), make)

    # Weights

    @property
    def weight_bytes(self) -> int:
        """Bytes of all stored weights, each counted once. Rotary tables are constants but not weights."""
        return sum(self._weight_bytes.values())

    def stored(self, name: str, value: np.ndarray | Deferred, read_bytes: int | None = None) -> str:
        """Store a constant of weights; a decode step reads `read_bytes` of it (default: all)."""
        self._weight_bytes[name if isinstance(value, Deferred) else value.ctypes.data] = value.nbytes
        self.decode_weight_bytes += value.nbytes if read_bytes is None else read_bytes
        return self.constant(name, value)

    def real_weight(self, name: str) -> np.ndarray:
        """Return a weight in type `real`; each call returns the same array."""
        return self.once(("real", name), lambda: self.weights[name].astype(self.real, copy=False))

    def weight(self, name: str) -> str:
        """Store a vector or embedding that a decode step reads as a whole."""
        return self.stored(name, self.real_weight(name))

    def vector(self, names: Sequence[str]) -> str:
        """Store one or several vectors, joined."""
        name = "+".join(names)
        return self.stored(name, self.once(("real", name), lambda: self._joined(names)))

    def matrix(self, joined: str) -> str:
        """Store float matrices, joined along their outputs and transposed for x @ W: [in, sum of out]."""
        names = joined.split("+")
        shapes = [self.weights[name].shape for name in names]
        shape = shapes[0][1], sum(rows for rows, _ in shapes)
        return self.stored(joined, Deferred(shape, np.dtype(self.real), lambda: self._joined(names).T))

    def _joined(self, names: Sequence[str]) -> np.ndarray:
        return np.concatenate([self.weights[name] for name in names]).astype(self.real, copy=False)

    # Inputs and outputs

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        self.inputs.append(Port(name, dtype, tuple(shape)))
        return name

    def first_logits(self) -> str:
        """Add the optional input `first_logits` [1]: the first position whose logits are returned, by default -1, the
        last one. The runtime verifies several guessed tokens in one run by it."""
        return self.optional_input(Port(FIRST_LOGITS, "int64", (1,)))

    def adapter(self) -> str:
        """Add the optional input `adapter` [B]: the index of each sequence's adapter, by default -1, none."""
        return self.optional_input(Port(ADAPTER, "int64", self.declared(Port(ADAPTER, "int64", (1,)))))

    def optional_input(self, port: Port) -> str:
        """Add an input [1] of the last index, -1, which a caller may replace."""
        self.optional_inputs += [port] if port not in self.optional_inputs else []
        return self.constant(port.name, np.array([-1], np.int64))

    def output(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        self.outputs.append(Port(name, dtype, tuple(shape)))
        return name

    def logits(self, x: str, vocab: int) -> None:
        """Make x [1, 1 or T, vocab] the graph's output `logits`, which is float32 in every format."""
        self.output("logits", "float32", [1, "sequence" if self.all_logits else 1, vocab])
        if self.real == "float32":
            self.node_into("Identity", [x], ["logits"])
        else:
            self.node_into("Cast", [x], ["logits"], to=TensorProto.FLOAT)

    def cache_ports(self, layers: Sequence[KvLayer], present_axis: int | str) -> None:
        """Add for each layer inputs of the cached keys and values [1, heads, context, head_size], and outputs of the
        present ones [1, heads, present_axis, head_size]. In 4 bits a byte holds two channels."""
        bits = self.cache_scales.bits if self.cache_scales else 0
        dtype = {0: self.real, 8: "int8", 4: "uint8"}[bits]
        for layer in layers:
            size = layer.head_size // 2 if bits == 4 else layer.head_size
            for past, present in zip(ports("past_key_values", layer), ports("present", layer), strict=True):
                self.input(past, dtype, [1, layer.heads, self.context, size])
                self.output(present, dtype, [1, layer.heads, present_axis, size])

    def declared(self, port: Port) -> tuple[int | str, ...]:
        """Return the shape of an input or output as model.onnx declares it."""
        return port.shape

    # Files

    def forget(self) -> None:
        """Free all weights after they are saved."""
        self.weights, self.matrices = {}, {}
        self._constants.clear()
        self._made.clear()

    def save(self, folder: Path) -> None:
        """Write `model.onnx` and `model.onnx.data`."""
        with open(folder / DATA_FILE, "wb") as file:
            model = self.model(DataFile(file))
        onnx.save_model(model, str(folder / MODEL_FILE))

    def model(self, data: DataFile) -> onnx.ModelProto:
        """Return the model; the values of its large constants go to `data`."""
        graph = helper.make_graph(
            self._nodes,
            "decoder",
            [
                helper.make_tensor_value_info(port.name, TYPES[port.dtype], shape)
                for port, shape in [
                    *((port, self.declared(port)) for port in self.inputs),
                    *((port, port.shape) for port in self.optional_inputs),
                ]
            ],
            [helper.make_tensor_value_info(port.name, TYPES[port.dtype], self.declared(port)) for port in self.outputs],
            [store(name, value, data) for name, value in self._constants.items()],
        )
        opsets = {**self.opsets, KERNELS_DOMAIN: 1} if self.own_kernels else self.opsets
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
            ir_version=self.ir_version,
            producer_name="merino_edge",
            doc_string=self.note,
        )


def ports(kind: str, layer: KvLayer) -> tuple[str, str]:
    """Return the names of a layer's inputs or outputs of keys and values, as in Hugging Face's exports. `kind`:
    `past_key_values` or `present`."""
    return f"{kind}.{layer.index}.key", f"{kind}.{layer.index}.value"
