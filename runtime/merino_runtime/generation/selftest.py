"""The self-test: greedy decoding of the bundle's golden prompt must give the bundle's golden ids.

It compares ids, not logits, because kernels of different CPUs round differently. The caller decides what follows from
a failure (a rollback, an exit code).
"""
from typing import NamedTuple, Optional

import numpy as np

from merino_runtime.backends.backend import Backend
from merino_runtime.bundle import Bundle
from merino_runtime.errors import MerinoError


class Mismatch(NamedTuple):
    position: int  # in greedy_ids, from 0
    expected: int
    actual: int


def selftest(bundle: Bundle, backend: Backend) -> Optional[Mismatch]:
    """Empty the cache and compare -> the first difference, or None if all ids agree."""
    golden = bundle.golden
    if not golden.prompt_ids or not golden.greedy_ids:
        raise MerinoError(f"bundle {bundle.name!r} has no golden ids to compare with. Export it again.")
    backend.truncate(0)
    logits = backend.prefill(golden.prompt_ids)
    for position, expected in enumerate(golden.greedy_ids):
        token_id = int(np.argmax(logits))
        if token_id != expected or not np.isfinite(logits[token_id]):
            return Mismatch(position, expected, token_id)
        if position + 1 < len(golden.greedy_ids):
            logits = backend.step(token_id)
    return None
