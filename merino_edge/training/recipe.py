"""The hyperparameters of a training run. Loads no torch."""

import math
from dataclasses import dataclass

from merino_runtime.errors import MerinoError

MOST_SEEDS = 2**32  # numpy's generator takes no other


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters.

    Attributes:
        steps: optimiser steps.
        batch: rows of a step.
        length: tokens of a row; None: the model's context.
        cut_long: whether samples longer than a row lose their ends, instead of being refused.
        lora: rank of the adapters that are trained in place of the weights; 0: the weights.
    """

    steps: int = 1000
    batch: int = 16
    learning_rate: float = 2e-3
    warmup_share: float = 0.05
    weight_decay: float = 0.1
    seed: int = 0
    bf16: bool = False
    length: int | None = None
    cut_long: bool = False
    lora: int = 0

    @property
    def rows_per_step(self) -> int:
        return self.batch

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise MerinoError(f"--steps {self.steps} and --batch {self.batch} must both be at least 1")
        if self.length is not None and self.length < 2:
            raise MerinoError(f"--length {self.length} must be at least 2 tokens")
        if self.lora < 0:
            raise MerinoError(f"--lora {self.lora} must be a rank of at least 1, such as 16")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise MerinoError(f"--learning-rate {self.learning_rate:g} must be positive")
        if not 0 <= self.seed < MOST_SEEDS:
            raise MerinoError(f"--seed {self.seed} must lie from 0 to {MOST_SEEDS - 1}")
