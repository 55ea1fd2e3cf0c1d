"""The hyperparameters of a training run. Loads no torch."""

import math
from dataclasses import dataclass

from merino_runtime.errors import MerinoError

OPTIMIZERS = "adamw", "muon"
BETA2 = 0.95  # of AdamW
MOST_SEEDS = 2**32  # numpy's generator takes no other
DECAY_SHARE, MOST_DECAY = 0.2, 0.5


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters.

    Attributes:
        steps: optimizer steps.
        batch: rows of a step.
        learning_rate: where weights are drawn, of a matrix with 128 inputs; others have it by their inputs.
        weight_decay: of a matrix with 128 inputs, times the learning rate at each step; others have it by their inputs.
        length: tokens of a row; None: the model's context.
        cut_long: whether samples longer than a row lose their ends, instead of being refused.
        patience: evaluations without a lower held-out loss after which the run ends, with the weights of the best one;
            0: it takes all steps.
        evaluations: of the held-out loss, and saved states, in a whole run.
        optimizer: `adamw`, or `muon`, which takes the matrices from it.
        compile: whether torch.compile makes one program of each part of a step.
        prompt_weight: of a prompt's tokens in the loss, where those of a completion weigh 1.
        teacher_weight: of the cross-entropy to a teacher, where there is one; the cross-entropy to the text has the
        rest. temperature: at which both are compared. lora: rank of the adapters that are trained in place of the
        weights; 0: the weights.
    """

    steps: int = 1000
    batch: int = 16
    learning_rate: float = 1e-2
    warmup_share: float = 0.05
    weight_decay: float = 0.1
    seed: int = 0
    bf16: bool = False
    compile: bool = False
    length: int | None = None
    cut_long: bool = False
    lora: int = 0
    teacher_weight: float = 0.5
    temperature: float = 1.0
    patience: int = 0
    evaluations: int = 10
    optimizer: str = "muon"
    prompt_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise MerinoError(f"--steps {self.steps} and --batch {self.batch} must both be at least 1")
        if self.length is not None and self.length < 2:
            raise MerinoError(f"--length {self.length} must be at least 2 tokens")
        if self.patience < 0 or self.evaluations < 1:
            raise MerinoError(
                f"--patience {self.patience} must be at least 0, --evaluations {self.evaluations} at least 1"
            )
        if self.optimizer not in OPTIMIZERS:
            raise MerinoError(f"--optimizer {self.optimizer} is not known: known are {', '.join(OPTIMIZERS)}")
        if not 0 <= self.prompt_weight <= 1:
            raise MerinoError(f"--prompt-weight {self.prompt_weight:g} must lie from 0 to 1")
        if not (0 < self.teacher_weight <= 1 and math.isfinite(self.temperature) and self.temperature > 0):
            raise MerinoError(
                f"--teacher-weight {self.teacher_weight:g} must lie above 0 and at most at 1, --temperature"
                f" {self.temperature:g} above 0"
            )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise MerinoError(f"--weight-decay {self.weight_decay:g} must be at least 0")
        if self.lora < 0:
            raise MerinoError(f"--lora {self.lora} must be a rank of at least 1, such as 16")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise MerinoError(f"--learning-rate {self.learning_rate:g} must be positive")
        if not 0 <= self.seed < MOST_SEEDS:
            raise MerinoError(f"--seed {self.seed} must lie from 0 to {MOST_SEEDS - 1}")


def usual_weight_decay(steps: int, learning_rate: float) -> float:
    """Of a run that begins with drawn weights: by it weights are an average over the updates of the last fifth of the
    steps, 1 / (rate x decay) of them (Bergsma et al., arXiv 2505.13738, at 20 tokens per weight). At most 0.5: more was
    worse in 1,140 steps."""
    return min(MOST_DECAY, float(f"{1 / (DECAY_SHARE * learning_rate * steps):.2g}"))
