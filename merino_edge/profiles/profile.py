"""What a device profile holds: one board's facts, each with its kind and source, as frozen types.

Memory is in MB of 2^20 bytes, rates are in GB/s of 10^9. Reading a profile is `reading`'s.
"""

import typing
from typing import Annotated, Literal

from pydantic import Field

from merino_edge.profiles.coefficients import LEAST, MOST, Coefficients, Count, Facts, Figure, Kind, Text, Threads

Isa = Literal[
    # Arm: neon is Advanced SIMD, dotprod and i8mm the int8 instructions, fp16 half-precision arithmetic
    "neon", "fp16", "bf16", "dotprod", "i8mm", "sve", "sve2",
    # x86
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni",
    "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8",
]  # fmt: skip
ISA_FEATURES: tuple[str, ...] = typing.get_args(Isa)
LONGEST_CONTEXT = 131_072  # of a designed decoder
Cycles = Annotated[float, Field(ge=LEAST, le=MOST)]


class CyclesPerWeight(Facts):
    """Cycles of one core per weight in a product with one row, by the kernel of ONNX Runtime, without the time to read
    the weights from memory. None: not known.

    `matmul`: float32. `matmulinteger`: signed weights of 8 bits, one scale per row. `matmulnbits_8`, `matmulnbits_4`:
    blocks, computed in float32.
    """

    kind: Kind
    source: Text
    matmul: Cycles | None = None
    matmulinteger: Cycles | None = None
    matmulnbits_8: Cycles | None = None
    matmulnbits_4: Cycles | None = None


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


class Performance(Facts):
    """Of ONNX Runtime on the CPU: basic figures, and the latency model's coefficients where they were measured."""

    read_gb_s: Figure  # weights while decoding, at decode_threads
    fp32_gflops: Figure  # matrix-matrix, at prefill_threads
    op_overhead_us: Figure  # per operator of the graph
    runtime_mb: Figure  # resident before the model: Python, numpy, onnxruntime
    decode_threads: Threads
    prefill_threads: Threads
    coefficients: Coefficients | None = None  # measured; None: estimated from the figures above


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


class DeviceProfile(Facts):
    schema_version: Literal[1] = Field(alias="schema")
    id: str = Field(pattern=r"^[a-z0-9-]+$")
    name: Text
    arch: Literal["aarch64", "x86_64", "other"]
    # Beginnings, in whole words, of what /proc/device-tree/model says on such a board; none: it cannot be told.
    device_tree_models: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    isa: Annotated[tuple[Isa, ...], Field(strict=False)]
    cpu: Cpu
    gpu: Gpu | None = None
    memory: Memory
    performance: Performance
    budget: Budget
    software: Software
    power: Power
