"""What every backend can do."""
from typing import Sequence

import numpy as np


class Backend:
    """A model with its KV cache, allocated once.

    Logits are a view that the next call overwrites: copy them to keep them. After a call that failed or was
    interrupted the cache still holds what `length` says, and the backend can be used.
    """
    context = 0  # KV slots
    vocab = 0

    @property
    def length(self) -> int:
        """Filled cache slots."""
        raise NotImplementedError

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Adds ids [n] to the cache -> logits [vocab] after the last one."""
        raise NotImplementedError

    def step(self, token_id: int) -> np.ndarray:
        """Decode: adds one id to the cache -> logits [vocab]."""
        raise NotImplementedError

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` slots, at no cost."""
        raise NotImplementedError

    def close(self) -> None:
        """Gives the memory back; the backend cannot be used after."""
        raise NotImplementedError
