"""What every backend can do."""
from typing import List, Sequence

import numpy as np


class Backend:
    """A model with its KV cache, allocated once. One generation at a time: others run on forks.

    Logits are a view that the next call overwrites: copy them to keep them. After a call that failed or was
    interrupted the cache still holds what `length` says, and the backend can be used.
    """
    context = 0  # KV slots
    vocab = 0
    extends_fast = True  # whether a prefill behind cached ids costs per id what one into an empty cache does

    @property
    def ids(self) -> List[int]:
        """What fills the cache, in order; not the caller's to change."""
        raise NotImplementedError

    @property
    def length(self) -> int:
        """Filled cache slots."""
        return len(self.ids)

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Adds ids [n] to the cache -> logits [vocab] after the last one. However many they are, the memory
        of the computation stays bounded."""
        raise NotImplementedError

    def step(self, token_id: int) -> np.ndarray:
        """Decode: adds one id to the cache -> logits [vocab]."""
        raise NotImplementedError

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` slots, at no cost."""
        raise NotImplementedError

    def fork(self) -> "Backend":
        """Another cache that holds the same ids, over the same weights: for a generation beside this one. Each
        goes its own way and is closed by itself, in any order; two may run in two threads."""
        raise NotImplementedError

    def close(self) -> None:
        """Gives the memory back, the weights' with the last fork; the backend cannot be used after."""
        raise NotImplementedError
