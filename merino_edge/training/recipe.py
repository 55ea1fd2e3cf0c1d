"""The hyperparameters of a training run. Loads no torch."""

import math
from dataclasses import dataclass

from merino_runtime.errors import MerinoError

MOST_SEEDS = 2**32  # numpy's generator takes no other


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters. `steps`: optimiser steps, each over `batch` sequences as long as the architecture's context."""

    steps: int = 1000
    batch: int = 16
    learning_rate: float = 2e-3
    warmup_share: float = 0.05
    weight_decay: float = 0.1
    seed: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise MerinoError(f"--steps {self.steps} and --batch {self.batch} must both be at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise MerinoError(f"--learning-rate {self.learning_rate:g} must be positive")
        if not 0 <= self.seed < MOST_SEEDS:
            raise MerinoError(f"--seed {self.seed} must lie from 0 to {MOST_SEEDS - 1}")
