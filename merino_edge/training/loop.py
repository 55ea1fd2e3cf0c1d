"""The training loop: transformers' Trainer with this project's loss, optimizer, checks and saved states, and a callback
that reports and stops on a signal."""

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, pad
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as Arguments

from merino_edge.training.checkpoint import SAVING, saved_states
from merino_edge.training.dataset import NO_LOSS, RowDataset
from merino_edge.training.distill import distillation_loss
from merino_edge.training.optimizer import optimizer_for
from merino_edge.training.recipe import Recipe
from merino_edge.training.resources import any_process, peak_mb, process_count
from merino_edge.training.shards import Say, Tokenization
from merino_runtime.errors import MerinoError

TIMED_STEPS = 3  # steps after the first, which is slower, before the time to go is printed
SAVE_SECONDS = 600  # longest time between two saved states
SAMPLE_PROMPT, SAMPLE_TOKENS, SAMPLE_CHARACTERS = 12, 32, 60  # of the text that is written at each evaluation
Progress = Callable[[int, int, str], None]  # (steps done, total steps, text to show beside them)
# ruff: noqa: ARG002 - the signatures of callbacks are transformers' own


class CheckedTrainer(Trainer):
    """A Trainer that ends at a loss or gradient that is not finite, before it reaches a weight.

    Its losses are means over tokens, however rows, micro-batches and processes divide them.
    `padding`: the id that fills a row after its last sample. `by_width`: whether learning rates depend on the widths.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(self, recipe: Recipe, padding: int, by_width: bool, **keys: Any):
        self.recipe, self.padding, self.by_width = recipe, padding, by_width
        self.sum_of_losses = torch.compile(weighted_loss) if recipe.compile else weighted_loss
        super().__init__(**keys)
        self.model_accepts_loss_kwargs = True  # so that transformers counts a step's tokens

    def create_optimizer(self, *_: Any, **__: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = optimizer_for(self.model, self.recipe, self.by_width)
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return this process's share of the mean over `num_items_in_batch` tokens of all processes."""
        labels, ids = inputs["labels"], inputs["input_ids"]
        taught = self.recipe.teacher_weight if "teacher_ids" in inputs else 0.0
        prompt_weight = self.recipe.prompt_weight if model.training else 0.0
        outputs = model(**{name: inputs[name] for name in ("input_ids", "position_ids") if name in inputs})
        # The weight of each position's next token, 0 for padding. [B, T]
        learned = labels[:, 1:] != NO_LOSS
        prompts = ~learned & (ids[:, 1:] != self.padding)
        weights = pad((1 - taught) * learned + prompt_weight * prompts, (0, 1))
        loss = self.sum_of_losses(outputs["logits"], ids, weights)
        if taught:
            loss = loss + taught * distillation_loss(
                outputs["logits"], labels, inputs["teacher_ids"], inputs["teacher_logits"], self.recipe.temperature
            )
        loss = loss * self.accelerator.num_processes / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: torch.nn.Module, *arguments: Any, **keys: Any) -> torch.Tensor:
        loss = super().training_step(model, *arguments, **keys)
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        step = self.state.global_step + 1
        check_finite("loss", float(loss), step, self.recipe)
        check_finite("gradient's norm", float(torch.nn.utils.get_total_norm(gradients)), step, self.recipe)
        return loss

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(super()._get_output_dir(trial)) / SAVING)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a state, and move it to its place when all of its files are on the disk, so that each state there is
        whole. Remove the others but the newest two and, with patience, the one with the lowest held-out loss."""
        super()._save_checkpoint(model, trial)
        folder, state = Path(str(self.args.output_dir)), self.state
        best_step = state.best_global_step if self.recipe.patience else None
        best = folder / f"checkpoint-{best_step}" if best_step else None
        state.best_model_checkpoint = str(best) if best else None
        if process_count() > 1:
            torch.distributed.barrier()  # each process writes the state of its generators
        if state.is_world_process_zero:
            made = folder / SAVING / f"checkpoint-{state.global_step}"
            state.save_to_json(str(made / "trainer_state.json"))
            for path in filter(Path.is_file, made.rglob("*")):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            made.replace(folder / made.name)
            for older in saved_states(folder)[2:]:
                if older != best:
                    shutil.rmtree(older)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
        """Return a loss whose mean over all rows, which transformers takes, is the mean over tokens."""
        inputs, held_out = self._prepare_inputs(inputs), self.eval_dataset
        with torch.no_grad(), self.compute_loss_context_manager():
            total = self.compute_loss(model, inputs, num_items_in_batch=self.accelerator.num_processes)
        return total * len(held_out) / (held_out.learned * len(inputs["labels"])), None, None


def weighted_loss(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum of the next tokens' cross-entropies: [B, T, V], [B, T], [B, T] -> []."""
    losses = cross_entropy(logits.float().flatten(0, 1), ids.roll(-1, 1).flatten(), reduction="none")
    return losses @ weights.flatten()


def check_finite(what: str, value: float, step: int, recipe: Recipe) -> None:
    """Raises MerinoError if the value is not finite, because no weight would stay finite."""
    if not math.isfinite(value):
        options = f"a --learning-rate below {recipe.learning_rate:g}"
        if step == 1 and (recipe.bf16 or recipe.compile):  # no weight has changed yet: the arithmetic is at fault
            options = "--set bf16=false" if recipe.bf16 else "--set compile=false"
        raise MerinoError(
            f"the {what} is {value} at step {step}: training diverged. Start a new run, with another -o and {options}"
        )


class RunCallback(TrainerCallback):
    """Report progress, time and memory; save on a signal and by time; stop early.

    `stop`: set by a signal, in any process. `sample`: writes some text with the model.
    """

    def __init__(
        self, stop: threading.Event, recipe: Recipe, say: Say, progress: Progress, sample: Callable[[Any], str]
    ):
        self.stop, self.recipe, self.say, self.progress, self.sample = stop, recipe, say, progress, sample
        self.ended_early = False
        self.first_step, self.started = 0, 0.0  # the first step of this process, and its end
        self.saved = time.monotonic()

    def on_step_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.first_step:
            self.first_step, self.started = state.global_step, time.perf_counter()
        elif state.global_step == self.first_step + TIMED_STEPS and state.global_step < state.max_steps:
            step_s, left = self.timing(state)
            self.say(f"{step_s:.2g} s per step, {left}; peak memory {peak_mb():,.0f} MB")
        stop, late = any_process(self.stop.is_set(), time.monotonic() - self.saved > SAVE_SECONDS)
        if state.global_step < state.max_steps:
            control.should_save |= stop or late
            control.should_training_stop |= stop

    def on_log(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loss = kwargs["logs"].get("loss")
        if loss is not None:
            left = f", {self.timing(state)[1]}" if state.global_step > self.first_step else ""
            self.progress(state.global_step, state.max_steps, f"loss {loss:.3f}{left}")

    def on_evaluate(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        check_finite("held-out loss", kwargs["metrics"]["eval_loss"], state.global_step, self.recipe)
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        if process_count() == 1:  # a model that is sharded over processes runs in all of them at once
            self.say(f"step {state.global_step}: held-out loss {losses[-1]:.3f}; {self.sample(kwargs['model'])}")
        waited, patience = len(losses) - 1 - losses.index(min(losses)), self.recipe.patience
        if patience and waited >= patience and not self.ended_early:
            if state.global_step < state.max_steps:
                self.say(f"no lower held-out loss in {patience} evaluations: ended at step {state.global_step}")
            self.ended_early = control.should_training_stop = True

    def on_save(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.saved = time.monotonic()

    def timing(self, state: TrainerState) -> tuple[float, str]:
        """Return the seconds per step, and the remaining time in words."""
        step_s = (time.perf_counter() - self.started) / (state.global_step - self.first_step)
        left = timedelta(seconds=round(step_s * (state.max_steps - state.global_step)))
        return step_s, f"about {left} to go"


def written_sample(model: Any, tokenization: Tokenization, held_out: RowDataset) -> str:
    """Return a beginning of held-out text, and its likeliest continuation by the model: the prompt of the first sample
    and an answer, or the first tokens of the first document."""
    ids, labels = held_out[0]["input_ids"], held_out[0]["labels"]
    learned = (labels != NO_LOSS).nonzero().flatten()
    first = int(learned[0]) if held_out.has_samples and len(learned) else min(SAMPLE_PROMPT, len(ids) // 2)
    given, was_training = ids[None, : max(1, first)].to(model.device), model.training
    model.eval()
    written = model.generate(
        given, attention_mask=torch.ones_like(given), max_length=min(given.shape[1] + SAMPLE_TOKENS, len(ids)),
        do_sample=False, use_cache=False, eos_token_id=tokenization.stops() or None, pad_token_id=0,
    )  # fmt: skip
    model.train(was_training)
    parts = written[0].tensor_split([given.shape[1]])
    prompt, answer = (tokenization.tokenizer.decode(part.tolist()) for part in parts)
    return f"{prompt[-SAMPLE_CHARACTERS:].strip()!r} -> {answer.strip()!r}"


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT (ctrl-C) or SIGTERM sets; the second one interrupts as usual."""
    stop, handlers = threading.Event(), dict[int, Any]()

    def restore(*signaled: Any) -> None:
        if signaled:
            stop.set()
        for number, handler in handlers.items():
            signal.signal(number, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        is_main = threading.current_thread() is threading.main_thread()  # the other threads get no signals
        if is_main and signal.getsignal(number) not in (signal.SIG_IGN, None):
            handlers[number] = signal.signal(number, restore)
    try:
        yield stop
    finally:
        restore()


def training_arguments(recipe: Recipe, folder: Path, micro_batch: int) -> Arguments:
    """Return transformers' arguments: linear warm-up, cosine decay, gradients clipped at norm 1.

    micro_batch: number of rows that a process computes at once.
    """
    between = max(1, recipe.steps // recipe.evaluations)
    return Arguments(
        output_dir=str(folder), max_steps=recipe.steps, seed=recipe.seed,
        per_device_train_batch_size=micro_batch, per_device_eval_batch_size=micro_batch,
        gradient_accumulation_steps=recipe.accumulate,
        learning_rate=recipe.learning_rate, lr_scheduler_type="cosine", max_grad_norm=1.0,
        warmup_steps=max(1, round(recipe.steps * recipe.warmup_share)),
        bf16=recipe.bf16, torch_compile=recipe.compile, use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps", eval_steps=between, save_steps=between,
        save_total_limit=None,  # transformers would remove a whole state before the new one is marked whole
        load_best_model_at_end=recipe.patience > 0, metric_for_best_model="eval_loss",
        logging_steps=max(1, recipe.steps // 100), disable_tqdm=True, report_to=[],
        logging_nan_inf_filter=False,  # it would log an average instead of a loss that is not finite
        train_sampling_strategy="sequential",  # the dataset has the order of the run
        remove_unused_columns=False, include_num_input_tokens_seen="all", dataloader_pin_memory=False,
    )  # fmt: skip
