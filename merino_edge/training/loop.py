"""What transformers' Trainer does not do: say how long it will take, stop on ctrl-C, refuse values that are not finite,
and tell a whole saved state from a torn one."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as Arguments
from transformers.trainer_callback import PrinterCallback

from merino_edge.training.data.rows import NOT_LEARNED, RowSet
from merino_edge.training.needs import held_mb
from merino_edge.training.recipe import Recipe
from merino_edge.training.run_folder import mark_whole
from merino_runtime.errors import MerinoError

BRANCHES = ("attention.out.weight", "down.weight")  # of a layer, what adds to the residual stream
TIMED_STEPS = 3  # after the first one, which is slower
Progress = Callable[[int, int, str], None]  # (steps done, of how many, what to show beside them)


@torch.no_grad()
def shrink_branches(model: PreTrainedModel) -> None:
    """Divide attention's output and the FFN's second matrix by the root of the number of such branches, twice that of
    layers (GPT-2: Radford et al. 2019, section 2.3).

    Else the first layers drown the embedding, the more the wider they are. Figures: docs/decisions/training.md.
    """
    uses = sum(block.depth for block in model.config.architecture.blocks)  # of layers, shared ones at each use
    for name, weight in model.named_parameters():
        if name.endswith(BRANCHES):
            weight.div_((2 * uses) ** 0.5)


# ruff: noqa: ARG002 - the signatures of callbacks are transformers' own


class CheckedTrainer(Trainer):
    """A Trainer that ends at a loss or gradient that is not finite, before it reaches a weight, and whose held-out loss
    is the mean over tokens: transformers' is over rows, which differ in how many tokens of theirs are learned."""

    def training_step(self, model: torch.nn.Module, *arguments: Any, **keys: Any) -> torch.Tensor:
        loss = super().training_step(model, *arguments, **keys)
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        for what, value in (("loss", loss), ("gradient's norm", torch.nn.utils.get_total_norm(gradients))):
            check_finite(what, float(value), self.state.global_step + 1, self.args.learning_rate)
        return loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **keys: Any) -> Any:
        learned = int((inputs["labels"][:, 1:] != NOT_LEARNED).sum())
        rows, held_out = len(inputs["labels"]), self.eval_dataset
        assert isinstance(held_out, RowSet)
        loss, logits, labels = super().prediction_step(model, inputs, *rest, **keys)
        assert loss is not None
        return loss * (learned * len(held_out) / (held_out.learned * rows)), logits, labels


def check_finite(what: str, value: float, step: int, learning_rate: float) -> None:
    """Raises MerinoError where it is not: every weight would become like it."""
    if not math.isfinite(value):
        raise MerinoError(
            f"the {what} is {value} at step {step}: training diverged. Begin a new run, with another -o and a"
            f" --learning-rate below {learning_rate:g}"
        )


class Watch(TrainerCallback):
    """Progress, time and memory of a run; marks saved states as whole; ends the run after the step in which `stop` was
    set, with a saved state. `folder`: that of the saved states."""

    def __init__(self, folder: Path, stop: threading.Event, say: Callable[[str], None], progress: Progress):
        self.folder, self.stop, self.say, self.progress = folder, stop, say, progress
        self.first, self.began = 0, 0.0  # the first step of this process that is timed, and when it began

    def on_step_begin(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.began and self.first:
            self.began = time.perf_counter()

    def on_step_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.first:
            self.first = state.global_step
        elif state.global_step == self.first + TIMED_STEPS and state.global_step < state.max_steps:
            self.say(f"{self.step_seconds(state):.2g} s per step, {self.to_go(state)}; {held_mb():,.0f} MB held")
        if self.stop.is_set() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loss = kwargs["logs"].get("loss")
        if loss is not None:
            left = f", {self.to_go(state)}" if self.began else ""
            self.progress(state.global_step, state.max_steps, f"loss {loss:.3f}{left}")

    def on_evaluate(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        check_finite("held-out loss", kwargs["metrics"]["eval_loss"], state.global_step, args.learning_rate)

    def on_save(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        mark_whole(self.folder / f"checkpoint-{state.global_step}")

    def step_seconds(self, state: TrainerState) -> float:
        return (time.perf_counter() - self.began) / (state.global_step - self.first)

    def to_go(self, state: TrainerState) -> str:
        return f"about {duration(self.step_seconds(state) * (state.max_steps - state.global_step))} to go"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def stop_on_ctrl_c() -> Iterator[threading.Event]:
    """An event that the first ctrl-C sets; the second one interrupts as ever. Only the main thread gets signals."""
    stop = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield stop
        return

    def first(_signal: int, _frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def add_watch(trainer: Trainer, watch: Watch) -> None:
    """In place of transformers' own output, which goes to stdout."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watch)


def training_arguments(recipe: Recipe, folder: Path) -> Arguments:
    """AdamW, linear warm-up, cosine decay, gradients clipped at norm 1. Ten evaluations and saved states per run, of
    which the last two are kept."""
    tenth = max(1, recipe.steps // 10)
    return Arguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch,
        per_device_eval_batch_size=recipe.batch,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(recipe.steps * recipe.warmup_share)),
        weight_decay=recipe.weight_decay,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=recipe.bf16,
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps",
        eval_steps=tenth,
        save_steps=tenth,
        save_total_limit=2,
        logging_steps=max(1, recipe.steps // 100),
        logging_nan_inf_filter=False,  # it would log an average in place of a loss that is not finite
        disable_tqdm=True,
        seed=recipe.seed,
        train_sampling_strategy="sequential",  # the rows come in the order of the run
        report_to=[],
        include_num_input_tokens_seen="all",
        dataloader_pin_memory=False,
    )
