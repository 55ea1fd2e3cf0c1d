"""Parser, network, builder: from an ONNX file, by the wire format of protobuf alone, to a "plan", a description of it
that names GPU and version."""
import json
import os
from collections import namedtuple

import numpy as np

from tests.tensorrt_stand_in.gpu import Fault

PLAN = b"stand-in plan\n"
NEWEST_OPSET = {True: 13, False: 20}  # of 8.2, of 10.3
ARITHMETIC = {"Add": "SUM", "Mul": "PROD", "Sub": "SUB", "Div": "DIV", "Pow": "POW", "Equal": "EQUAL",
              "Greater": "GREATER", "Less": "LESS"}
KINDS = {"Sqrt": "UNARY", "Neg": "UNARY", "Exp": "UNARY", "ReduceMean": "REDUCE", "Softmax": "SOFTMAX",
         "Concat": "CONCATENATION", "MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY", "Relu": "ACTIVATION",
         "Tanh": "ACTIVATION", "Sigmoid": "ACTIVATION", "Erf": "UNARY", "Gather": "GATHER", "Slice": "SLICE",
         "Split": "SLICE", "Identity": "IDENTITY", "Cast": "IDENTITY", "Reshape": "SHUFFLE", "Transpose": "SHUFFLE",
         "Unsqueeze": "SHUFFLE", "Squeeze": "SHUFFLE", "Where": "SELECT"}
ONNX_TYPES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64", "tensor(int32)": "INT32"}
CONTEXT_BYTES = 2 ** 20  # that a builder takes of the GPU
SCRATCH_BYTES = 65536


class HostMemory(bytearray):
    """A buffer, as the real one is. `len` is not to be asked of it: the real one has none."""

    @property
    def nbytes(self):
        return bytearray.__len__(self)

    def __len__(self):
        raise TypeError("object of type 'IHostMemory' has no len()")


def open_session(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def building_classes(gpu, module, old):
    class ITensor:
        def __init__(self, name, dtype, shape):
            self.name, self.dtype, self.shape = name, dtype, shape

    class ILayer:
        def __init__(self, node, kind):
            self.name, self.type, self._inputs, self._outputs = node.name, kind, node.inputs, node.outputs
            self._precision = self.output_type = None
            self.num_inputs, self.num_outputs = len(node.inputs), len(node.outputs)

        @property
        def precision(self):
            return self._precision or module.float32

        @precision.setter
        def precision(self, dtype):
            if not isinstance(dtype, module.DataType):
                raise TypeError("precision is a DataType")
            self._precision = dtype

        @property
        def precision_is_set(self):
            return self._precision is not None

        def get_input(self, index):
            return ITensor(self._inputs[index], None, ()) if self._inputs[index] else None

        def get_output(self, index):
            return ITensor(self._outputs[index], None, ())

        def set_output_type(self, index, dtype):
            self.output_type = dtype

    class IElementWiseLayer(ILayer):
        op = None

    class INetworkDefinition:
        def __init__(self):
            self.path, self.weight_bytes, self.inputs, self.outputs, self.layers = None, 0, [], [], []

        num_inputs = property(lambda self: len(self.inputs))
        num_outputs = property(lambda self: len(self.outputs))
        num_layers = property(lambda self: len(self.layers))

        def get_input(self, index):
            return self.inputs[index]

        def get_output(self, index):
            return self.outputs[index]

        def get_layer(self, index):
            return self.layers[index]

    class ParserError:
        def __init__(self, node, text):
            self._node, self._text = node, text

        def node(self):
            return self._node

        def desc(self):
            return self._text

    class OnnxParser:
        def __init__(self, network, logger):
            self._network, self._errors = network, []

        num_errors = property(lambda self: len(self._errors))

        def get_error(self, index):
            return self._errors[index]

        def parse_from_file(self, model):
            try:
                with open(model, "rb") as file:
                    nodes, opset = nodes_of(file.read())
            except (OSError, ValueError) as error:
                return self._refuse(-1, "cannot read the model: {}".format(error))
            if opset > NEWEST_OPSET[old]:
                return self._refuse(-1, "opset {} is newer than this parser".format(opset))
            for number, node in enumerate(nodes):
                if node.domain or not (node.kind in KINDS or node.kind in ARITHMETIC):
                    return self._refuse(number, "no importer for {} {}".format(node.domain, node.kind))
            self._fill(model, nodes)
            return True

        def _refuse(self, node, text):
            self._errors.append(ParserError(node, text))
            return False

        def _fill(self, model, nodes):
            session, network = open_session(model), self._network
            network.path = os.path.abspath(model)
            data = model + ".data"
            network.weight_bytes = os.path.getsize(data) if os.path.exists(data) else 0
            network.inputs = [_tensor(port) for port in session.get_inputs()]
            network.outputs = [_tensor(port) for port in session.get_outputs()]
            for node in nodes:
                if node.kind in ARITHMETIC:
                    layer = IElementWiseLayer(node, module.LayerType.ELEMENTWISE)
                    layer.op = module.ElementWiseOperation[ARITHMETIC[node.kind]]
                else:
                    layer = ILayer(node, module.LayerType[KINDS[node.kind]])
                network.layers.append(layer)

    def _tensor(port):
        kind = ONNX_TYPES[port.type]
        kind = "INT32" if old and kind == "INT64" else kind
        return ITensor(port.name, module.DataType[kind],
                       tuple(axis if isinstance(axis, int) else -1 for axis in port.shape))

    class IOptimizationProfile:
        def __init__(self):
            self.shapes = {}

        def set_shape(self, input, min, opt, max):  # noqa: A002 - the real names
            if not len(min) == len(opt) == len(max) or any(a > b or b > c for a, b, c in zip(min, opt, max)):
                raise ValueError("inconsistent shapes")
            self.shapes[input] = [list(min), list(opt), list(max)]

    class IBuilderConfig:
        def __init__(self):
            self.flags_set, self.profiles, self.workspace = {module.BuilderFlag.TF32}, [], None
            if old:
                self.max_workspace_size = 2 ** 20

        def set_flag(self, flag):
            self.flags_set.add(flag)

        def clear_flag(self, flag):
            self.flags_set.discard(flag)

        def add_optimization_profile(self, profile):
            self.profiles.append(profile)
            return len(self.profiles) - 1

        if not old:
            def set_memory_pool_limit(self, pool, pool_size):
                assert pool == module.MemoryPoolType.WORKSPACE
                self.workspace = pool_size

    class Builder:
        def __new__(cls, logger):
            if not gpu.driver or gpu.lost:
                logger.log(module.ILogger.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            return object.__new__(cls)

        def __init__(self, logger):
            assert logger.initialized, "a logger without its base's __init__ ends the process"
            self._logger = logger

        def create_network(self, flags=0):
            if old and not flags & 1:
                gpu.violate("an implicit batch for an ONNX graph")
            return INetworkDefinition()

        def create_builder_config(self):
            return IBuilderConfig()

        def create_optimization_profile(self):
            return IOptimizationProfile()

        def build_serialized_network(self, network, config):
            gpu.builds += 1
            workspace = config.max_workspace_size if old else config.workspace
            wrong = _wrong_profiles(network, config.profiles)
            if wrong:
                self._logger.log(module.ILogger.ERROR, wrong)
                return None
            try:
                with gpu.lock:
                    gpu.entered("build")
                    taken = gpu.allocate(CONTEXT_BYTES + network.weight_bytes + (workspace or 0), "trt")
                    gpu.release(taken, "trt")
            except Fault:
                self._logger.log(module.ILogger.ERROR, "[defaultAllocator.cpp::allocate::19] Error Code 1: Cuda "
                                 "Runtime (out of memory)")
                return None
            pinned = [layer.name for layer in network.layers
                      if layer.precision_is_set and layer.output_type == module.float32]
            plan = {"gpu": gpu.name, "version": module.__version__, "path": network.path, "pinned": pinned,
                    "flags": sorted(flag.name for flag in config.flags_set), "workspace": workspace,
                    "matmuls": sum(layer.type.name == "MATRIX_MULTIPLY" for layer in network.layers),
                    "weight_bytes": network.weight_bytes, "scratch": SCRATCH_BYTES,
                    "profiles": [profile.shapes for profile in config.profiles],
                    "inputs": [[tensor.name, tensor.dtype.name, list(tensor.shape)] for tensor in network.inputs],
                    "outputs": [[tensor.name, tensor.dtype.name, list(tensor.shape)] for tensor in network.outputs]}
            return HostMemory(PLAN + json.dumps(plan).encode("utf-8"))

    def _wrong_profiles(network, profiles):
        for profile in profiles:
            for tensor in network.inputs:
                shapes = profile.shapes.get(tensor.name)
                if -1 in tensor.shape and shapes is None:
                    return "{}: dynamic input is missing dimensions in profile".format(tensor.name)
                for shape in shapes or ():
                    if any(axis not in (-1, result) for axis, result in zip(tensor.shape, shape)):
                        return "{}: a static dimension differs in profile".format(tensor.name)
        return None if profiles else "network has dynamic inputs, but no optimization profile has been defined"

    return [ITensor, ILayer, IElementWiseLayer, INetworkDefinition, ParserError, OnnxParser, IOptimizationProfile,
            IBuilderConfig, Builder]


def numpy_type(name):
    return np.dtype({"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64"}[name])


Node = namedtuple("Node", "name kind domain inputs outputs")
MODEL_GRAPH, MODEL_OPSET, GRAPH_NODE = 7, 8, 1


def nodes_of(data):
    """-> (nodes, opset of the standard operators). ValueError where it is no model."""
    results, opset = [], None
    for number, value in _fields(data):
        if number == MODEL_OPSET:
            domain = [text for field, text in _fields(value) if field == 1]
            if not domain or not domain[0]:
                opset = next(version for field, version in _fields(value) if field == 2)
        if number == MODEL_GRAPH:
            results = [_node(inner) for field, inner in _fields(value) if field == GRAPH_NODE]
    if not results or opset is None:
        raise ValueError("it holds no graph")
    return results, opset


def _node(data):
    by_number = {}
    for number, value in _fields(data):
        by_number.setdefault(number, []).append(value)

    def texts(number):
        return [value.decode("utf-8") for value in by_number.get(number, [])]

    return Node(texts(3)[0] if 3 in by_number else "", texts(4)[0], (texts(7) or [""])[0], texts(1), texts(2))


def _fields(data):
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("it ends too early")
            value, at = data[at:at + size], at + size
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = data[at:at + size], at + size
        else:
            raise ValueError("it is no protobuf")
        yield number, value


def _varint(data, at):
    value = shift = 0
    while True:
        if at >= len(data):
            raise ValueError("it ends too early")
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if not byte & 128:
            return value, at
