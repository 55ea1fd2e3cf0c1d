"""Builds a TensorRT engine from the graph of a `portable` bundle, on the board that will run it.

Two optimization profiles: profile 0 is decode, one id; profile 1 is prefill, chunks of a fixed length. An
engine of float16 kernels keeps its norms in float32, because squares of activations overflow float16. `engine_file`
stores what was built.
"""
import hashlib
import os
import pkgutil
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set

from merino_runtime.backends.cuda import MB, Cuda, device_of, open_cuda, raising_cuda_faults
from merino_runtime.backends.engine_file import EngineKey, engine_folder, keep_engine, model_sha256, opened_plan
from merino_runtime.backends.tensorrt_versions import TensorRt, limit_workspace, open_tensorrt
from merino_runtime.bundle import Bundle
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.bundle.verified import check_external_data
from merino_runtime.errors import MerinoError
from merino_runtime.io import board
from merino_runtime.io.lock import locked
from merino_runtime.io.memory import lack_of_memory

DECODE, PREFILL = 0, 1  # numbers of the profiles
PREFILL_CHUNK_IDS = 64  # at this length the boards' GPUs read the weights about as long as they compute
WORKSPACE_MB = 128  # for a kernel beside its inputs: matrix multiplications need little
WAIT_S = 7200.0  # for another builder: a Jetson Nano builds a large model for a quarter of an hour and more
Report = Callable[[str], None]


def chunk_ids(bundle: Bundle) -> int:
    return min(PREFILL_CHUNK_IDS, bundle.context)


def key_of(bundle: Bundle, trt: TensorRt, cuda: Cuda, precision: str) -> EngineKey:
    """Return the key of the engine of this bundle for this machine. Raise CudaError."""
    device = device_of(cuda)
    return EngineKey(
        gpu=device.name, capability=device.capability, tensorrt=trt.version, cuda=cuda.runtime,
        model_sha256=model_sha256(bundle), precision=precision, context=bundle.context, chunk=chunk_ids(bundle),
        builder=builder_version())


def builder_version() -> str:
    """Return the hash of this module's source, from a folder or merino.pyz. All releases share the user's cache of
    engines, and nobody can forget to change a hash."""
    source = pkgutil.get_data(__name__.rpartition(".")[0], "engine_build.py")
    return hashlib.sha256(source or b"").hexdigest()[:16]


def build_engine(bundle: Bundle, fp16: bool, workspace_mb: Optional[int], report: Report) -> "Made":
    """Build or find the engine, for the verb `build-engine`. fp16: also if the bundle is float32. Raise MerinoError if
    it cannot be built."""
    if workspace_mb is not None and not 1 <= workspace_mb <= 65536:
        raise MerinoError(f"--workspace-mb is {workspace_mb}, allowed: 1 to 65536. Omit it for {WORKSPACE_MB}.")
    trt = open_tensorrt()
    cuda = open_cuda(version_tuple(trt.version))
    with raising_cuda_faults("building the engine"):
        return ensure_engine(bundle, trt, cuda, "fp16" if fp16 else bundle.precision, report,
                             workspace_mb=workspace_mb or WORKSPACE_MB)


class Made(NamedTuple):
    path: str
    built: bool  # False: it existed


def ensure_engine(bundle: Bundle, trt: TensorRt, cuda: Cuda, precision: str, report: Report,
                  workspace_mb: int = WORKSPACE_MB, rebuild: bool = False) -> Made:
    """Build the engine unless it exists. Only one process of a machine builds at a time. rebuild: also if it exists,
    because TensorRT would not load it. Raise MerinoError if it cannot be built, CudaError if the GPU does not
    answer."""
    key = key_of(bundle, trt, cuda, precision)
    with locked(engine_folder(bundle), "build-engine", WAIT_S):  # a small board has too little memory for two builds
        with opened_plan(bundle, key) as (path, _):
            if path and not rebuild:
                return Made(path, False)
        need_mb = check_memory(bundle, precision, workspace_mb, report)
        started = time.monotonic()
        report(f"building an engine for {key.gpu} (TensorRT {key.tensorrt}, {key.precision}, about "
               f"{need_mb:.0f} MB): this takes minutes, once per bundle")
        plan = build(bundle, trt, key, workspace_mb=workspace_mb, need_mb=need_mb)
        path = keep_engine(bundle, key, plan)
    report(f"built in {time.monotonic() - started:.0f} s, {len(plan) / MB:.0f} MB: {path}")
    return Made(path, True)


def check_memory(bundle: Bundle, precision: str, workspace_mb: int, report: Report) -> float:
    """Return the MB that the build needs on a Jetson, whose GPU shares the memory. Raise MerinoError if the machine has
    less in all, and report if less is free."""
    weights_mb = bundle.weight_bytes / MB
    engine_mb = weights_mb / (2 if precision == "fp16" and bundle.precision == "fp32" else 1)
    need_mb = 2 * weights_mb + 2 * engine_mb + workspace_mb + board.CUDA_MB + board.PROCESS_MB
    here = board.this_board()
    total_mb, free_mb = here.memory_total_mb, here.memory_available_mb
    parts = (f"{need_mb:.0f} MB: twice {weights_mb:.0f} MB of weights, twice {engine_mb:.0f} MB of engine, "
             f"{workspace_mb} MB of workspace, about {board.CUDA_MB + board.PROCESS_MB} MB for CUDA and Python")
    if total_mb is not None and need_mb > total_mb:
        raise MerinoError(f"building an engine of {bundle.name!r} needs about {parts}; this machine has "
                          f"{total_mb:.0f} MB in all. Make the workspace smaller (--workspace-mb), add swap, build "
                          "with --fp16, or export with --precision fp16.")
    if free_mb is not None and need_mb > free_mb:
        report(f"note: the build needs about {parts}; {free_mb:.0f} MB are available: it may swap or be killed. Stop "
               "other programs first")
    return need_mb


def build(bundle: Bundle, trt: TensorRt, key: EngineKey, *, workspace_mb: int, need_mb: float) -> memoryview:
    """Return the plan. need_mb: estimated memory of this process. Raise MerinoError with the errors of TensorRT."""
    module = trt.module
    try:
        builder = module.Builder(trt.logger)
    except TypeError as error:  # "factory function returned nullptr": no GPU, or no memory for its context
        raise MerinoError(f"TensorRT {trt.version} cannot build here: {trt.why()}. Check the GPU with `nvidia-smi`, on "
                          "a Jetson with `dmesg`, and its free memory.") from error
    explicit = 1 << int(module.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    network = builder.create_network(explicit)
    parse(bundle, trt, network)
    config = builder.create_builder_config()
    limit_workspace(trt, config, workspace_mb * MB)
    config.clear_flag(module.BuilderFlag.TF32)  # fp32 means float32: TF32 keeps 10 bits of a factor
    if key.precision == "fp16":
        config.set_flag(module.BuilderFlag.FP16)
        config.set_flag(module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        keep_norms_float32(trt, network)
    for length in (1, key.chunk):
        config.add_optimization_profile(_profile(builder, network, length))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        why = trt.why()
        failed = f"TensorRT {trt.version} cannot build an engine of {bundle.name!r}: {why}."
        if "memory" in why.lower() or lack_of_memory(MerinoError(why)) is not None:
            raise MerinoError(f"{failed} It ran out of memory (an estimate was {need_mb:.0f} MB). Stop other "
                              "programs, add swap, make the workspace smaller (--workspace-mb), or export with "
                              "--precision fp16 or a shorter --context.")
        raise MerinoError(f"{failed} NVIDIA's trtexec (--onnx={os.path.join(bundle.folder, 'model.onnx')} --verbose) "
                          "shows its whole log.")
    return memoryview(plan).cast("B")


def parse(bundle: Bundle, trt: TensorRt, network: Any) -> None:
    """Parse the graph into an empty network. Raise MerinoError with the node that TensorRT rejects."""
    check_external_data(bundle)
    path = os.path.join(bundle.folder, "model.onnx")
    parser = trt.module.OnnxParser(network, trt.logger)
    if not parser.parse_from_file(path):
        reasons = [f"node {parser.get_error(index).node()}: {' '.join(parser.get_error(index).desc().split())}"
                for index in range(min(parser.num_errors, 3))]
        raise MerinoError(f"TensorRT {trt.version} does not take {path}: {'; '.join(reasons) or trt.why()}. Export the "
                          "bundle again with --dialect portable, or run it on the CPU: MERINO_BACKEND=onnxruntime.")


def _profile(builder: Any, network: Any, length: int) -> Any:
    """Return a profile of one shape, in which every named axis has this length."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(length if axis < 0 else axis for axis in tensor.shape)
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, shape, shape, shape)
    return profile


def keep_norms_float32(trt: TensorRt, network: Any) -> int:
    """Require float32 in the layers of each norm, from the square of its input to the division by its root. Return the
    number of layers.

    A norm is recognized by its mean: it starts with the multiplication whose mean is computed, and ends with the next
    division. Other parts of these graphs have no mean.
    """
    types, division = trt.module.LayerType, trt.module.ElementWiseOperation.DIV
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    made_by = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}
    readers: Dict[str, List[Any]] = {}
    for layer in layers:
        for index in range(layer.num_inputs):
            if layer.get_input(index) is not None:
                readers.setdefault(layer.get_input(index).name, []).append(layer)
    norms: Dict[str, Any] = {}
    for mean in layers:
        if mean.type != types.REDUCE:
            continue
        square = made_by.get(mean.get_input(0).name)
        if square is not None and square.type == types.ELEMENTWISE:
            norms[square.name] = square
        waiting: List[Any] = [mean]
        visited: Set[str] = set()
        while waiting:
            layer = waiting.pop()
            if layer.name in visited or layer.type not in (types.ELEMENTWISE, types.UNARY, types.REDUCE):
                continue
            visited.add(layer.name)
            norms[layer.name] = layer
            # The bindings of 8.2 return an ILayer of the derived class, as those of 10 do.
            if layer.type != types.ELEMENTWISE or layer.op != division:
                waiting.extend(readers.get(layer.get_output(0).name, []))
    for layer in norms.values():
        layer.precision = trt.module.float32
        layer.set_output_type(0, trt.module.float32)
    return len(norms)
