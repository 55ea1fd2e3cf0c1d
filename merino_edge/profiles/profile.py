"""Define a device profile: one board's facts, each with its kind and source, as frozen types.

Memory is in MB of 2^20 bytes, rates are in GB/s of 10^9. `reading` reads profiles.
"""

import re
import typing
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from merino_edge.profiles.coefficients import (
    LEAST,
    MOST,
    Coefficients,
    Count,
    Facts,
    Figure,
    Kind,
    LatencyError,
    Text,
    Threads,
)
from merino_runtime.errors import MerinoError

Isa = Literal[
    # Arm: neon is Advanced SIMD, dotprod and i8mm the int8 instructions, fp16 half-precision arithmetic
    "neon", "fp16", "bf16", "dotprod", "i8mm", "sve", "sve2",
    # x86
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni",
    "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8",
]  # fmt: skip
ISA_FEATURES: tuple[str, ...] = typing.get_args(Isa)
Backend = Literal["onnxruntime", "tensorrt"]
BACKENDS: tuple[Backend, ...] = typing.get_args(Backend)
SCHEMA = 2
LONGEST_CONTEXT = 131_072  # of a designed decoder
Cycles = Annotated[float, Field(ge=LEAST, le=MOST)]


class CyclesPerWeight(Facts):
    """Cycles of one core per weight in a matrix multiplication with one row, by the kernel, without the time to read
    the weights from memory. None: not known.

    `matmul`: float32. `matmulinteger`: signed weights of 8 bits, one scale per row. `matmul4`, `matmul8`: 4 and 8 bits
    in this project's own kernels; None with dot products, where a step waits for memory alone. `attention`: per
    multiply-add of one query and float32 keys or values; `group_attention`: the same by groups, in own kernels.
    """

    kind: Kind
    source: Text
    matmul: Cycles | None = None
    matmulinteger: Cycles | None = None
    matmul4: Cycles | None = None
    matmul8: Cycles | None = None
    attention: Cycles | None = None
    group_attention: Cycles | None = None


class Cpu(Facts):
    core: Text
    cores: Threads
    clock_ghz: Figure | None = None  # a host may hide it, as it may its caches
    last_level_cache_mb: Figure | None = None
    cycles_per_weight: CyclesPerWeight | None = None


class Gpu(Facts):
    name: Text
    compute_capability: Text
    cuda_cores: Count
    fp32_gflops: Figure | None = None
    fp16_gflops: Figure | None = None
    int8: bool


class Memory(Facts):
    ram_mb: Figure
    free_mb: Figure  # what one process can really use on an idle headless system
    peak_gb_s: Figure | None = None  # in theory; never used to predict


class OnnxRuntimePerformance(Facts):
    """Of ONNX Runtime on the CPU: basic figures, and the latency model's coefficients where they were measured."""

    read_gb_s: Figure  # weights while decoding, at decode_threads
    fp32_gflops: Figure  # matrix-matrix, at prefill_threads
    op_overhead_us: Figure  # per operator of the graph
    runtime_mb: Figure  # resident before the model: Python, numpy, onnxruntime
    decode_threads: Threads
    prefill_threads: Threads
    coefficients: Coefficients | None = None  # measured; None: estimated from the figures above
    decode_error: LatencyError | None = None  # of the estimated ones


class TensorRtPerformance(Facts):
    """Of TensorRT on the GPU, in one power mode. `prediction.tensorrt_costs` defines what each figure multiplies."""

    power_mode: Text  # one of power.modes
    read_gb_s: Figure  # weights, keys and values, by the GPU
    fp32_gflops: Figure  # matrix-matrix
    fp16_gflops: Figure
    launch_us: Figure  # per kernel of the engine
    step_us: Figure  # per run: its inputs, new keys and values into the cache, waiting for its end
    host_copy_gb_s: Figure  # logits to where the sampler reads them
    runtime_mb: Figure  # resident before the model: Python, numpy, TensorRT's libraries
    cuda_context_mb: Figure
    busy_w: Figure | None = None  # of the whole board while it decodes


class Performance(Facts):
    """What each backend of the board is capable of; a board without a GPU has no `tensorrt`."""

    onnxruntime: OnnxRuntimePerformance
    tensorrt: TensorRtPerformance | None = None


class Budget(Facts):
    """The default budget of a design for this board."""

    decode_ms: float = Field(ge=LEAST, le=MOST)
    memory_mb: float = Field(ge=LEAST, le=MOST)
    context: int = Field(ge=2, le=LONGEST_CONTEXT)


class System(Facts):
    system: Text
    glibc: Text | None = None
    python: Text


class Software(System):
    """Of the board's usual system, with the versions of packages that are right for it and for those in `also`."""

    onnxruntime: Text
    numpy: Text
    tokenizers: Text
    tensorrt: Text | None = None
    also: Annotated[tuple[System, ...], Field(strict=False)] = ()  # other systems that such boards run


class Power(Facts):
    sensor: Literal["ina3221", "pmic", "none"]
    rail: Text | None = None
    modes: Annotated[tuple[Text, ...], Field(strict=False)]
    idle_w: Figure | None = None
    stress_w: Figure | None = None


def names_model(beginning: str, model: str) -> bool:
    """Return whether `model` begins with these whole words: `Raspberry Pi 5` does not name a Raspberry Pi 500."""
    return re.match(re.escape(beginning) + r"(?!\w)", model) is not None


class DeviceProfile(Facts):
    """A board. `backend`: the backend of its predictions; in a file, `default_backend`, its usual software's.
    `with_backend` takes another."""

    schema_version: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)]
    id: str = Field(pattern=r"^[a-z0-9-]+$")
    name: Text
    arch: Literal["aarch64", "x86_64", "other"]
    # Beginnings, in whole words, of /proc/device-tree/model on such a board; none: the board cannot be recognized.
    device_tree_models: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    isa: Annotated[tuple[Isa, ...], Field(strict=False)]
    backend: Backend = Field(default="onnxruntime", alias="default_backend")
    cpu: Cpu
    gpu: Gpu | None = None
    memory: Memory
    performance: Performance
    budget: Budget
    software: Software
    power: Power

    @property
    def backends(self) -> tuple[Backend, ...]:
        """Return those that the profile has figures of."""
        return tuple(name for name in BACKENDS if getattr(self.performance, name) is not None)

    def with_backend(self, name: str | None) -> Self:
        """Return the board with predictions of this backend; None: of its default one. Raise MerinoError for one that
        it does not have."""
        if name is None:
            return self
        if name not in self.backends:
            raise MerinoError(
                f"--board {self.id}:{name}: the profile of {self.name} has no performance.{name}: choose"
                f" {' or '.join(self.backends)}, or add these figures to a copy of the profile"
            )
        return self.model_copy(update={"backend": name})

    def names_model(self, model: str) -> bool:
        """Return whether a board with this model in its device tree is this one."""
        return any(names_model(beginning, model) for beginning in self.device_tree_models)

    def figure(self, path: str) -> Figure | None:
        """Return the figure at a dotted path of the file; None if the profile has none there."""
        node: Any = self
        for key in path.split("."):
            node = getattr(node, key, None)
        return node if isinstance(node, Figure) else None
