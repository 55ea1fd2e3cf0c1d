"""The settings of a training run, and their defaults. Loads no torch."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from merino_edge.storage.faults import in_words
from merino_runtime.errors import MerinoError

ADAPTER = "adapter"  # the folder of a LoRA run's adapters, in peft's form
BETA2 = 0.95  # of AdamW
OPTIONS = ("steps", "batch", "learning_rate", "lora")  # the other settings: `--set NAME=VALUE`
DECAY_SHARE, MOST_DECAY = 0.2, 0.5
TUNING_RATE, LORA_RATE = 5e-5, 2e-4
TUNING_LENGTH = 1024  # tokens of a row in fine-tuning, if the context is not shorter
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Recipe(BaseModel):
    """Hyperparameters, and settings of the machine, which a resumed run may change. Strings, as `--set` gives them, are
    parsed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Count = 1000  # of the optimizer
    batch: Count = 16  # rows of a step
    # The peak. For random weights it is the rate of a matrix with 128 inputs; others scale it by their inputs.
    learning_rate: Positive = 1e-2
    warmup_share: Share = 0.05  # of the steps
    weight_decay: float = Field(0.1, ge=0, allow_inf_nan=False)  # per step, times the learning rate
    seed: int = Field(0, ge=0, lt=2**32)  # as numpy's generator takes it
    bf16: bool = False
    compile: bool = False
    length: int | None = Field(None, ge=2)  # tokens of a row; None: the model's context
    cut_long: bool = False  # truncate samples that are longer than a row instead of refusing them
    lora: int = Field(0, ge=0)  # rank of the adapters that are trained instead of the weights; 0: the weights
    teacher_weight: float = Field(0.5, gt=0, le=1)  # of the cross-entropy to a teacher; that to the text has the rest
    temperature: Positive = 1.0  # at which teacher and student are compared
    patience: int = Field(0, ge=0)  # evaluations without a lower held-out loss that end the run; 0: it takes all steps
    evaluations: Count = 10  # of the held-out loss in a whole run; each also saves the state
    optimizer: Literal["adamw", "muon"] = "muon"
    table_rate: Positive = 1.0  # of n-gram tables, relative to an embedding's
    prompt_weight: Share = 0.0  # of prompt tokens in the loss; completion tokens have 1
    # Of the machine: they are not written, and have no effect on the result.
    accumulate: Count = Field(1, exclude=True)  # micro-batches in which a process computes its rows of a step
    threads: Count | None = Field(None, exclude=True)  # None: torch's number
    ignore_memory: bool = Field(False, exclude=True)  # start even if the estimate exceeds the free memory

    def __init__(self, **values: Any):
        """Raises MerinoError for values that are not allowed."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            faults = []
            for fault in error.errors(include_url=False):
                name, value = str(fault["loc"][0]), fault["input"]
                shown = f"{value:g}" if isinstance(value, float) else value
                faults.append(f"{option_of(name)}{' ' if name in OPTIONS else '='}{shown} {in_words(fault['msg'])}")
            raise MerinoError("; ".join(faults)) from None


def option_of(name: str) -> str:
    """Return the words that set a hyperparameter on the command line."""
    return f"--{name.replace('_', '-')}" if name in OPTIONS else f"--set {name}"


def new_recipe(
    options: Mapping[str, Any], preset: Mapping[str, Any], *, fine_tuned: bool, context: int, bf16: bool
) -> Recipe:
    """Return the recipe of a new run. `options` take precedence over `preset`, and both over the defaults.

    fine_tuned: whether the run starts from trained weights. context: the model's. bf16: the default of that option.

    From random weights, weight decay is 5 / (rate x steps) and at most 0.5: then the weights are an average over the
    updates of the last fifth of the steps (Bergsma et al., arXiv 2505.13738).
    """
    if fine_tuned:
        tuning = {"optimizer": "adamw", "learning_rate": LORA_RATE if options.get("lora") else TUNING_RATE}
        return Recipe(**{"bf16": bf16, "length": min(context, TUNING_LENGTH), **preset, **tuning, **options})
    given = Recipe(**{"bf16": bf16, **preset, **options})
    decay = min(MOST_DECAY, float(f"{1 / (DECAY_SHARE * given.learning_rate * given.steps):.2g}"))
    return given if "weight_decay" in options else given.model_copy(update={"weight_decay": decay})
