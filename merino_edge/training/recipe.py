"""The hyperparameters of a training run, presets of them, and their defaults. Loads no torch."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from merino_runtime.errors import MerinoError

OPTIMIZERS = "adamw", "muon"
BETA2 = 0.95  # of AdamW
# Hyperparameters without an option of their own: `--set NAME=VALUE`.
SETTINGS: dict[str, type] = {
    "optimizer": str, "weight_decay": float, "warmup_share": float, "evaluations": int, "prompt_weight": float,
    "teacher_weight": float, "temperature": float, "table_rate": float,
}  # fmt: skip
MOST_SEEDS = 2**32  # numpy's generator takes no other
DECAY_SHARE, MOST_DECAY = 0.2, 0.5
TUNING_RATE, LORA_RATE = 5e-5, 2e-4
TUNING_LENGTH = 1024  # tokens of a row in fine-tuning, if the context is not shorter


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters."""

    steps: int = 1000  # of the optimizer
    batch: int = 16  # rows of a step
    # The peak. For random weights it is the rate of a matrix with 128 inputs; others scale it by their inputs.
    learning_rate: float = 1e-2
    warmup_share: float = 0.05  # of the steps
    weight_decay: float = 0.1  # per step, times the learning rate; scaled inversely to it
    seed: int = 0
    bf16: bool = False
    compile: bool = False
    length: int | None = None  # tokens of a row; None: the model's context
    cut_long: bool = False  # truncate samples that are longer than a row instead of refusing them
    lora: int = 0  # rank of the adapters that are trained instead of the weights; 0: the weights
    teacher_weight: float = 0.5  # of the cross-entropy to a teacher; the cross-entropy to the text has the rest
    temperature: float = 1.0  # at which teacher and student are compared
    patience: int = 0  # evaluations without a lower held-out loss after which the run ends; 0: it takes all steps
    evaluations: int = 10  # of the held-out loss in a whole run; each also saves the state
    optimizer: str = "muon"
    table_rate: float = 1.0  # of n-gram tables, relative to an embedding's
    prompt_weight: float = 0.0  # of prompt tokens in the loss; completion tokens have 1

    def __post_init__(self) -> None:
        allowed = {
            "steps": (self.steps >= 1, "at least 1"),
            "batch": (self.batch >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0"),
            "warmup_share": (0 <= self.warmup_share <= 1, "from 0 to 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "seed": (0 <= self.seed < MOST_SEEDS, f"from 0 to {MOST_SEEDS - 1}"),
            "length": (self.length is None or self.length >= 2, "at least 2 tokens"),
            "lora": (self.lora >= 0, "a rank of at least 1, such as 16"),
            "teacher_weight": (0 < self.teacher_weight <= 1, "above 0 and at most 1"),
            "temperature": (0 < self.temperature < math.inf, "above 0"),
            "patience": (self.patience >= 0, "at least 0"),
            "evaluations": (self.evaluations >= 1, "at least 1"),
            "table_rate": (0 < self.table_rate < math.inf, "above 0"),
            "optimizer": (self.optimizer in OPTIMIZERS, " or ".join(OPTIMIZERS)),
            "prompt_weight": (0 <= self.prompt_weight <= 1, "from 0 to 1"),
        }
        for name, (valid, what) in allowed.items():
            if not valid:
                value = getattr(self, name)
                shown = f"{value:g}" if isinstance(value, float) else value
                raise MerinoError(f"{option_of(name)}{'=' if name in SETTINGS else ' '}{shown} must be {what}")


def option_of(name: str) -> str:
    """Return the words that set a hyperparameter on the command line."""
    return f"--set {name}" if name in SETTINGS else f"--{name.replace('_', '-')}"


def read_settings(given: Sequence[str]) -> dict[str, Any]:
    """Read `--set NAME=VALUE`. Raises MerinoError for an unknown name, and for a value of another type."""
    values = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in SETTINGS or not value:
            raise MerinoError(f"--set {text} is not known: give NAME=VALUE, with one of {', '.join(SETTINGS)}")
        try:
            values[name] = SETTINGS[name](value)
        except ValueError:
            kind = "an integer" if SETTINGS[name] is int else "a number"
            raise MerinoError(f"--set {text}: {value!r} must be {kind}") from None
    return values


def read_preset(name: str) -> dict[str, Any]:
    """Return `about`, `needs`, `accumulate` and `recipe` of a preset. Raises MerinoError for an unknown name."""
    presets = tomllib.loads((files("merino_edge.training") / "presets.toml").read_text(encoding="utf-8"))
    if name not in presets:
        choices = "; ".join(f"{known}: {preset['about']}" for known, preset in presets.items())
        raise MerinoError(f"--preset {name} is not known. Choose from: {choices}")
    return dict(presets[name])


def new_recipe(
    options: Mapping[str, Any], preset: Mapping[str, Any], *, fine_tuned: bool, context: int, bf16: bool
) -> Recipe:
    """Return the recipe of a new run. `options` take precedence over `preset`, and both over the defaults.

    fine_tuned: whether the run starts from trained weights. context: the model's. bf16: the default of that option.
    """
    if fine_tuned:
        tuning = {"optimizer": "adamw", "learning_rate": LORA_RATE if options.get("lora") else TUNING_RATE}
        return Recipe(**{"bf16": bf16, "length": min(context, TUNING_LENGTH), **preset, **tuning, **options})
    recipe = Recipe(**{"bf16": bf16, **preset, **options})
    if "weight_decay" in options:
        return recipe
    return replace(recipe, weight_decay=usual_weight_decay(recipe.steps, recipe.learning_rate))


def usual_weight_decay(steps: int, learning_rate: float) -> float:
    """Return the weight decay of a run from random weights, 5 / (rate x steps) and at most 0.5.

    With it, weights are an average over the updates of the last fifth of the steps (Bergsma et al., arXiv 2505.13738).
    """
    return min(MOST_DECAY, float(f"{1 / (DECAY_SHARE * learning_rate * steps):.2g}"))
