"""What a decoder costs on a board, predicted from the board's profile alone.

First latency model: an operator takes the longer of moving its bytes and doing its operations, plus a launch.
Every term is a sum over operators, so the search can add up parts of a decoder that it has not chosen yet.
"""

from collections.abc import Iterable, Sequence
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


# What a bundle's folder holds beside the weights, measured on exports of 11 to 291 operators, rounded up.
OPERATOR_FILE_BYTES = 1200  # of graph and bundle.json: 370 to 860 in dialect fused, up to 1200 in portable
MATRIX_FILE_BYTES = 4096  # external data begins at whole pages
ENTRY_FILE_BYTES = 72  # tokenizer.json, per entry of the vocabulary
FIXED_FILE_BYTES = 100_000  # merino.pyz and the rest of bundle.json


@dataclass(frozen=True)
class Cost:
    """Predicted for one board; `provenance` is the kind of the weakest figure that went in.

    `j_per_token` is None where the profile knows no watts; its watts are not among the provenance's figures.
    """

    decode_ms: float
    prefill_ms: float
    memory_mb: float
    flops_g: float
    params: int
    weight_bytes: int
    kv_bytes: int
    file_mb: float
    j_per_token: float | None
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


def file_part_mb(operators: Iterable[Operator], precision: str) -> float:
    """MB (2^20 bytes) that operators add to the bundle's folder: weights, graph, entries of the tokenizer."""
    total = 0.0
    for op in operators:
        total += OPERATOR_FILE_BYTES
        if op.own:
            total += op.stored_bytes(precision) + (MATRIX_FILE_BYTES if op.matrix else 0)
        if op.kind == "embed":
            total += ENTRY_FILE_BYTES * op.matrix / op.columns
    return total / BYTES_PER_MB


def file_mb(operators: Iterable[Operator], precision: str) -> float:
    """MB (2^20 bytes) of the bundle's folder, a little more than it will be."""
    return file_part_mb(operators, precision) + FIXED_FILE_BYTES / BYTES_PER_MB


def joules(busy_ms: float, profile: DeviceProfile) -> float | None:
    """Energy of so long a time with all cores busy, idle power included; None where the profile knows no watts.

    An upper estimate where a format decodes on fewer threads than there are cores.
    """
    watts = profile.power.stress_w
    return None if watts is None else watts.value * busy_ms / 1e3


def usual_prompt(context: int) -> int:
    """Tokens of a prompt where none are named: half the context, at most 512."""
    return min(512, max(1, context // 2))


def predict(operators: Sequence[Operator], profile: DeviceProfile, work: Workload) -> Cost:
    speed = profile.performance
    step_ms = decode_ms(operators, profile, work.precision, work.context)
    return Cost(
        decode_ms=step_ms,
        prefill_ms=prefill_ms(operators, profile, work.precision, work.prompt),
        memory_mb=memory_mb(operators, profile, work),
        flops_g=flops(operators) / 1e9,
        params=params(operators),
        weight_bytes=weight_bytes(operators, work.precision),
        kv_bytes=kv_bytes(operators, work.context),
        file_mb=file_mb(operators, work.precision),
        j_per_token=joules(step_ms, profile),
        provenance=weakest_kind([speed.read_gb_s, speed.fp32_gflops, speed.op_overhead_us, speed.runtime_mb]),
    )
