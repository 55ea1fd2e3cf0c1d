"""What a decoder costs on a board, predicted from the board's profile alone: time, memory, files, energy.

Times under one regime are `times`'; here whole decoders find the regime that they are in. Memory and files add up over
operators too, but for activations, of which the largest counts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from merino_edge.families.operators import (
    Operator,
    activation_bytes,
    flops,
    kv_bytes,
    packed_bytes,
    params,
    weight_bytes,
)
from merino_edge.prediction.latency import (
    Regime,
    Workload,
    missed_share,
    pieces,
    run_of,
    times_for,
)
from merino_edge.prediction.latency_terms import matrix_format
from merino_edge.profiles.coefficients import Coefficients, weakest_kind
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.backends.onnx import PREFILL_CHUNK_IDS
from merino_runtime.backends.onnx_session import SMALL_BOARD_MB
from merino_runtime.board import MB as BYTES_PER_MB

TOLERANCE = 1e-12  # of a limit, relative: sums of a few hundred terms in another order differ by less
HEAP_BYTES = 32 << 20  # glibc keeps freed blocks up to this size: beside a packed table that small its original stays
ARENA = 2.0  # ONNX Runtime's arena grows by doubling and gives nothing back; small boards do without it

# What a bundle's folder holds beside the weights, measured on exports of 11 to 291 operators, rounded up.
OPERATOR_FILE_BYTES = 1200  # of graph and bundle.json: 370 to 860 in dialect fused, up to 1200 in portable
MATRIX_FILE_BYTES = 4096  # external data begins at whole pages
ENTRY_FILE_BYTES = 72  # tokenizer.json, per entry of the vocabulary
FIXED_FILE_BYTES = 190_000  # merino.pyz and the rest of bundle.json


@dataclass(frozen=True)
class Cost:
    """Predicted for one board; `provenance` is the kind of the weakest figure that went in.

    `j_per_token` is None where the profile knows no watts; its watts are not among the provenance's figures.
    `decode_threads` and `prefill_threads` are the counts that the times hold for, the best of those known.
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
    decode_threads: int
    prefill_threads: int


def memory_mb(
    operators: Sequence[Operator], profile: DeviceProfile, work: Workload, regime: Regime | None = None
) -> float:
    """The most resident MB (2^20 bytes): while the backend opens, or at the longest prompt and a full cache. Without a
    regime, with one thread count."""
    held = resident_mb(operators, profile, work, regime) + activation_mb(operators, profile, work)
    return max(held, opening_mb(operators, profile, work, regime)) + profile.performance.runtime_mb.value


def resident_mb(
    operators: Sequence[Operator], profile: DeviceProfile, work: Workload, regime: Regime | None = None
) -> float:
    """Resident MB of weights, as the backend holds them, and of a full cache. Adds up over operators.

    Thread counts that differ take two sessions, and each packs the weights for itself.
    """
    cache = kv_bytes(operators, work.context, work.precision) / BYTES_PER_MB
    return sessions(regime) * weights_mb(operators, profile, work, packing=False) + cache


def opening_mb(
    operators: Sequence[Operator], profile: DeviceProfile, work: Workload, regime: Regime | None = None
) -> float:
    """Resident MB of weights while the last session packs its table, no cache yet. Adds up over operators."""
    others = (sessions(regime) - 1) * weights_mb(operators, profile, work, packing=False)
    return others + weights_mb(operators, profile, work, packing=True)


def sessions(regime: Regime | None) -> int:
    return 2 if regime and regime.decode_threads != regime.prefill_threads else 1


def weights_mb(operators: Sequence[Operator], profile: DeviceProfile, work: Workload, *, packing: bool) -> float:
    """MB of weights in one session, while it packs the table or later."""
    times = times_for(profile, work)
    held = sum(held_bytes(times, op, work.precision, packing) for op in operators if op.own)
    return held / BYTES_PER_MB


def held_bytes(times: Coefficients, op: Operator, precision: str, packing: bool) -> float:
    """Of a format that CPUs have no kernels for, what is stored."""
    form, size = matrix_format(op, precision), op.stored_bytes(precision)
    if form not in times.formats:
        return size
    factors = times.of_format(form)
    if op.kind not in ("embed", "head"):
        return factors.resident * size
    piece = piece_bytes(op, precision)
    beside = factors.table_opening * piece if packing or piece <= HEAP_BYTES else 0.0
    return factors.table_resident * size + beside


def piece_bytes(op: Operator, precision: str) -> float:
    return packed_bytes(op.stored_bytes(precision), matrix_format(op, precision))


def activation_mb(operators: Sequence[Operator], profile: DeviceProfile, work: Workload) -> float:
    """The worst operator of the prompt's last piece, which sees the whole prompt, with what the arena takes."""
    arena = ARENA if profile.memory.ram_mb.value >= SMALL_BOARD_MB else 1.0
    return arena * activation_bytes(operators, min(PREFILL_CHUNK_IDS, work.prompt), work.prompt) / BYTES_PER_MB


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


def usual_lengths(profile: DeviceProfile, context: int | None, prompt: int | None) -> tuple[int, int]:
    """Tokens of context and prompt; where none are named the board's context and the usual prompt."""
    longest = profile.budget.context if context is None else context
    return longest, usual_prompt(longest) if prompt is None else prompt


def predict(
    operators: Sequence[Operator], profile: DeviceProfile, work: Workload, ceilings: Mapping[str, float] | None = None
) -> Cost:
    """Of a whole decoder, on the thread counts that are fastest at decoding, then at prefill.

    With `ceilings`, by the names of Cost's fields, the counts may differ where that keeps them; else they are one, as
    the runtime has it by itself, since two take more memory.
    """
    found = costs_by_threads(operators, profile, work)
    alone = [cost for cost in found if cost.decode_threads == cost.prefill_threads]
    kept = {} if ceilings is None else ceilings
    among = alone if ceilings is None else found
    fitting = [
        cost for cost in among
        if all((getattr(cost, name, 0) or 0) <= most * (1 + TOLERANCE) for name, most in kept.items())
    ]  # fmt: skip
    return min(fitting or alone, key=lambda cost: (cost.decode_ms, cost.prefill_ms))


def costs_by_threads(operators: Sequence[Operator], profile: DeviceProfile, work: Workload) -> list[Cost]:
    """One for each pair of thread counts."""
    times = times_for(profile, work)
    decode: dict[int, float] = {}
    prefill: dict[int, float] = {}
    for count in times.threads:
        share = missed_share(operators, profile, work, count)
        step = run_of(operators, profile, work, count, [(1, work.context)])
        decode[count] = step.cached_ms + share * step.memory_ms
        prompt = run_of(operators, profile, work, count, pieces(work))
        prefill[count] = prompt.cached_ms + (prompt.memory_ms if share else 0.0)
    kind = weakest_kind([times, profile.performance.runtime_mb])
    return [
        Cost(
            decode_ms=decode[decoding],
            prefill_ms=prefill[prefilling],
            memory_mb=memory_mb(operators, profile, work, Regime(decoding, prefilling, "beyond")),
            flops_g=flops(operators) / 1e9,
            params=params(operators),
            weight_bytes=weight_bytes(operators, work.precision),
            kv_bytes=kv_bytes(operators, work.context, work.precision),
            file_mb=file_mb(operators, work.precision),
            j_per_token=joules(decode[decoding], profile),
            provenance=kind,
            decode_threads=decoding,
            prefill_threads=prefilling,
        )
        for decoding in times.threads
        for prefilling in times.threads
    ]
