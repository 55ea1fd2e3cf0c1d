"""design.json and text to a checkpoint in Hugging Face's layout, by transformers' Trainer.

During a run its state is saved in `OUT/trainer/`, from where it can be resumed. The finished model, its tokenizer and
the record of the run (`training.json`) are written into `OUT` itself.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from merino_edge.families.designed import Architecture
from merino_edge.families.hugging_face import build_model
from merino_edge.storage.atomic import write_text
from merino_edge.training.data import (
    END_OF_TEXT,
    PackedTokens,
    describe_files,
    load_tokenizer,
    read_documents,
    split_held_out,
    train_tokenizer,
)
from merino_runtime.errors import MerinoError

STATE = "trainer"
TOKENIZER = "tokenizer.json"
RECORD = "training.json"


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


def train(
    arch: Architecture,
    data: Sequence[Path],
    out: Path,
    *,
    recipe: Recipe,
    tokenizer_file: Path | None = None,
    held_out: Sequence[Path] = (),
    resume: bool = False,
) -> dict[str, Any]:
    """Train, write the checkpoint into `out`, and return the record of the run.

    `held_out`: text files for the evaluation; without them the last documents of `data` are held out. `resume`: go on
    from the last saved state in `out`, with the tokenizer there. Raises MerinoError where `out` is in use, and for
    text or a tokenizer that does not do.
    """
    check_out(out, resume)
    documents = read_documents(data)
    if held_out:
        held_out_documents = read_documents(held_out)
    else:
        documents, held_out_documents = split_held_out(documents)
    tokenizer = tokenizer_for(arch, documents, tokenizer_file, out / TOKENIZER if resume else None)
    train_rows = PackedTokens(documents, tokenizer, arch.context)
    held_out_rows = PackedTokens(held_out_documents, tokenizer, arch.context)
    write_text(out / TOKENIZER, tokenizer.to_str())
    set_seed(recipe.seed)
    end = tokenizer.token_to_id(END_OF_TEXT)
    model = build_model(arch, bos_token_id=end, eos_token_id=end)
    trainer = Trainer(
        model=model,
        args=training_arguments(recipe, out / STATE),
        train_dataset=train_rows,
        eval_dataset=held_out_rows,
    )
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(out / STATE)) if resume else None)
    seconds = time.perf_counter() - started
    loss = float(trainer.evaluate()["eval_loss"])
    record = {
        "schema": 1,
        "architecture": arch.model_dump(),
        "recipe": asdict(recipe),
        "data": describe_files(data),
        "held_out": describe_files(held_out) or "the last 2 % of the documents",
        "train_tokens": train_rows.tokens,
        "seen_tokens": recipe.steps * recipe.batch * arch.context,
        "held_out_tokens": held_out_rows.tokens,
        "held_out_loss": loss,
        "held_out_perplexity": math.exp(loss),
        "seconds_of_last_run": round(seconds, 1),
        "losses": [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry],
    }
    model.save_pretrained(out)
    special = {} if end is None else {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(out)
    write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
    return record


def training_arguments(recipe: Recipe, folder: Path) -> TrainingArguments:
    """AdamW, linear warm-up, cosine decay, gradients clipped at norm 1. Ten evaluations and saved states per run, of
    which the last two are kept."""
    tenth = max(1, recipe.steps // 10)
    return TrainingArguments(
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
        seed=recipe.seed,
        data_seed=recipe.seed,
        report_to=[],
        dataloader_pin_memory=False,
    )


def check_out(out: Path, resume: bool) -> None:
    """Raises MerinoError where `out` holds no state to resume from, or more than an aborted run to start over."""
    state = out / STATE
    if resume:
        if not state.is_dir() or get_last_checkpoint(str(state)) is None:
            raise MerinoError(f"{out} holds no run to resume: leave out --resume to begin one")
    elif out.exists() and not (out.is_dir() and begun_only(out)):
        raise MerinoError(f"{out} is not empty: go on with --resume, or choose another -o")


def begun_only(out: Path) -> bool:
    """Whether `out` holds nothing but what a run leaves that was stopped before its first saved state."""
    names = {path.name for path in out.iterdir()}
    return names <= {TOKENIZER, STATE} and (STATE not in names or get_last_checkpoint(str(out / STATE)) is None)


def tokenizer_for(arch: Architecture, documents: list[str], given: Path | None, kept: Path | None) -> Tokenizer:
    """The tokenizer in the file `given`, or one trained on the documents; of a resumed run the file `kept` in `out`.

    Raises MerinoError where it has more entries than the architecture, or where `given` is not the resumed run's.
    """
    if kept:
        tokenizer = load_tokenizer(kept)
        if given and load_tokenizer(given).get_vocab() != tokenizer.get_vocab():
            raise MerinoError(f"--tokenizer {given} is not that of the run to resume, {kept}: leave it out")
    else:
        tokenizer = load_tokenizer(given) if given else train_tokenizer(documents, arch.vocab)
    if tokenizer.get_vocab_size() > arch.vocab:
        raise MerinoError(
            f"the tokenizer has {tokenizer.get_vocab_size()} entries, the design's vocabulary {arch.vocab}:"
            f" design again with --vocab {tokenizer.get_vocab_size()}"
        )
    return tokenizer
