"""What a decoder costs on a board, predicted from the board's profile alone.

First latency model: an operator takes the longer of moving its bytes and doing its operations, plus a launch.
Every term is a sum over operators, so the search can add up parts of a decoder that it has not chosen yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from merino_edge.operators import (
    KV_BYTES_PER_ELEMENT,
    Operator,
    activation_bytes,
    flops,
    kv_bytes,
    params,
    weight_bytes,
)
from merino_edge.profiles import DeviceProfile, weakest_kind
from merino_runtime.board import MB as BYTES_PER_MB


@dataclass(frozen=True)
class Workload:
    """What is to be run: the weight format, the tokens the cache holds when full, the tokens of the prompt."""

    precision: str
    context: int
    prompt: int


@dataclass(frozen=True)
class Cost:
    """Predicted for one board; `provenance` is the kind of the weakest figure that went in."""

    decode_ms: float
    prefill_ms: float
    memory_mb: float
    flops_g: float
    params: int
    weight_bytes: int
    kv_bytes: int
    provenance: str


def decode_ms(operators: Sequence[Operator], profile: DeviceProfile, precision: str, cached: int) -> float:
    """ms of one decode step over `cached` tokens: weights and cache are read once, batch 1."""
    speed = profile.performance
    total_us = 0.0
    for op in operators:
        read_bytes = op.read_bytes(precision) + 2 * op.width * cached * KV_BYTES_PER_ELEMENT
        operations = 2 * op.macs + 4 * op.query_width * (cached + 1)
        total_us += roofline_us(read_bytes, operations, profile) + speed.op_overhead_us.value
    return total_us / 1e3


def prefill_ms(operators: Sequence[Operator], profile: DeviceProfile, precision: str, prompt: int) -> float:
    """ms of a prefill of `prompt` tokens into an empty cache; the head runs for the last position only."""
    speed = profile.performance
    total_us = 0.0
    for op in operators:
        tokens = 1 if op.kind == "head" else prompt
        read_bytes = op.read_bytes(precision)
        operations = 2 * op.macs * tokens + 4 * op.query_width * prompt * prompt
        total_us += roofline_us(read_bytes, operations, profile) + speed.op_overhead_us.value
    return total_us / 1e3


def roofline_us(read_bytes: float, operations: float, profile: DeviceProfile) -> float:
    """Longer of moving the bytes and doing the operations (Williams et al. 2009), in microseconds."""
    speed = profile.performance
    return max(read_bytes / speed.read_gb_s.value, operations / speed.fp32_gflops.value) / 1e3


def memory_mb(operators: Sequence[Operator], profile: DeviceProfile, work: Workload) -> float:
    """Resident MB (2^20 bytes) at the longest prompt and a full cache."""
    stored = weight_bytes(operators, work.precision) + kv_bytes(operators, work.context)
    return (stored + activation_bytes(operators, work.prompt)) / BYTES_PER_MB + profile.performance.runtime_mb.value


def usual_prompt(context: int) -> int:
    """Tokens of a prompt where none are named: half the context, at most 512."""
    return min(512, max(1, context // 2))


def predict(operators: Sequence[Operator], profile: DeviceProfile, work: Workload) -> Cost:
    speed = profile.performance
    return Cost(
        decode_ms=decode_ms(operators, profile, work.precision, work.context),
        prefill_ms=prefill_ms(operators, profile, work.precision, work.prompt),
        memory_mb=memory_mb(operators, profile, work),
        flops_g=flops(operators) / 1e9,
        params=params(operators),
        weight_bytes=weight_bytes(operators, work.precision),
        kv_bytes=kv_bytes(operators, work.context),
        provenance=weakest_kind([speed.read_gb_s, speed.fp32_gflops, speed.op_overhead_us, speed.runtime_mb]),
    )
