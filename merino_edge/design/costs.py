"""Costs of decoders as arrays: a table of each operator's additive amounts, and the totals of whole decoders.

The cost model gives each operator's amounts, so the totals are those of `CostModel.predict`; a test compares thousands
of decoders. `Costs` computes latency and memory as the cost model does, which are not sums: the caches hold a part of a
step's reads, and memory has two peaks.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from merino_edge.families.operators import Operator, flops
from merino_edge.prediction.cost_model import CostModel, added_file_mb
from merino_edge.prediction.latency import memory_share
from merino_runtime.io.board import MB as BYTES_PER_MB

# Columns of a table. Behind them decode and prefill, for each thread count `cached_ms` and `memory_ms`.
READ_MB, WEIGHTS_MB, OPENING_MB, FLOPS, PARAMS, KV_BYTES, FILE_MB, LATENCIES = range(8)

Column = Callable[[int], np.ndarray]  # the decoders' sum of one column of the table


def table(model: CostModel, operators: Sequence[Operator], prefill: bool) -> np.ndarray:
    """The additive amounts of each operator alone. [operators, columns]"""
    decode, whole = model.on.latency_tables(operators, prefill)
    precision = model.shape.precision
    rows = [
        (
            model.on.read_mb([op]), model.on.weights_mb([op], opening=False), model.on.weights_mb([op], opening=True),
            flops([op]), (op.matrix + op.vector) * op.own, model.kv_bytes([op]), added_file_mb([op], precision),
        )
        for op in operators
    ]  # fmt: skip
    flat = (len(operators), -1)
    return np.concatenate([np.array(rows), decode.reshape(flat), whole.reshape(flat)], axis=1)


class Costs:
    """Costs of whole decoders, in arrays of one shape, each computed when it is first asked for."""

    def __init__(self, model: CostModel, column: Column, peak: np.ndarray):
        """`peak`: MB of the largest operator's activations."""
        self.model, self.column, self.peak = model, cache(column), peak
        self.decode_ms, self.prefill_ms = cache(self._decode_ms), cache(self._prefill_ms)
        self.memory_mb = cache(self._memory_mb)

    def _missed(self, threads: int) -> np.ndarray:
        """Share of a decode step's first reads that come from memory."""
        at = self.model.thread_counts[threads]
        return np.asarray(memory_share(self.column(READ_MB), at.resident_mb, at.streaming_mb))

    def _decode_ms(self, threads: int) -> np.ndarray:
        at = LATENCIES + 2 * threads
        return self.model.upper_decode * (self.column(at) + self._missed(threads) * self.column(at + 1))

    def _prefill_ms(self, threads: int) -> np.ndarray:
        at = LATENCIES + 2 * (len(self.model.thread_counts) + threads)
        return self.model.upper_prefill * (self.column(at) + (self._missed(threads) > 0) * self.column(at + 1))

    def sessions(self, decode: int, prefill: int) -> int:
        """Return the number of sessions at the `decode`-th and the `prefill`-th thread count."""
        counts = list(self.model.on.by_threads)
        return self.model.sessions(counts[decode], counts[prefill])

    def _memory_mb(self, sessions: int) -> np.ndarray:
        others = (sessions - 1) * self.column(WEIGHTS_MB)
        in_use = others + self.column(WEIGHTS_MB) + self.column(KV_BYTES) / BYTES_PER_MB + self.peak
        return np.maximum(in_use, others + self.column(OPENING_MB)) + self.model.on.runtime_mb


class AtThreads:
    """The costs at the `decode`-th and the `prefill`-th thread count, by the names of `Predicted`'s fields. A latency
    is the upper bound of its interval."""

    def __init__(self, costs: Costs, decode: int, prefill: int):
        self.costs, self.decode, self.prefill = costs, decode, prefill

    decode_ms = property(lambda self: self.costs.decode_ms(self.decode))
    prefill_ms = property(lambda self: self.costs.prefill_ms(self.prefill))
    memory_mb = property(lambda self: self.costs.memory_mb(self.costs.sessions(self.decode, self.prefill)))
    flops_g = property(lambda self: self.costs.column(FLOPS) / 1e9)
    params = property(lambda self: self.costs.column(PARAMS))
    kv_bytes = property(lambda self: self.costs.column(KV_BYTES))
    file_mb = property(lambda self: self.costs.column(FILE_MB) + self.costs.model.file_mb(()))
    j_per_token = property(lambda self: self.costs.model.joules(1.0) * self.decode_ms)
