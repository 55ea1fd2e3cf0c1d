"""Memory and disk of a training run: an estimate before it starts, and the message where either runs out all the same.

Counted are bytes on top of the process with its libraries:

* weights, gradients and AdamW's two moments, 4 bytes each per parameter;
* tensors for the backward pass, at each use of a layer: LAYER_TENSORS of its width and FFN_TENSORS of its FFN's width,
  4 bytes per token; with bf16 a part of them takes half;
* attention's scores only where `keeps_scores` is true: SCORE_BYTES for each head, of [batch, length, length];
* LOGIT_TENSORS of [batch, context, vocabulary], 4 bytes each: the logits, their log-softmax, its gradient.

The three counts were fitted to measured peaks on a CPU: docs/decisions/training.md."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from merino_edge.families.geometry import Geometry
from merino_edge.families.operators import params
from merino_edge.training.recipe import Recipe
from merino_edge.training.run_folder import remove_torn, saved_states
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import peak_rss_mb
from merino_runtime.io.memory import is_out_of_memory
from merino_runtime.io.outputs import check_room

LAYER_TENSORS = 16
FFN_TENSORS = 2
LOGIT_TENSORS = 3
BF16_SHARE = 0.75  # of what layers keep
SCORE_BYTES = 6  # in bfloat16 and in float32
MOST_EAGER = 512  # tokens of a row: scores grow with their square
FIXED_BYTES = 25 << 20
TORCH_WORDS = re.compile(r"can't allocate memory|out of memory", re.ASCII)
STATES = 3  # two are kept while one is written; with patience the best one too
STATE_BYTES, MODEL_BYTES = 12, 4  # per parameter: weights and AdamW's two moments; weights
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Of safetensors (Rust) and of torch's archive writer, which raise errors of their own.
WORDS = re.compile(r"No space left|File too large|quota exceeded|PytorchStreamWriter|unexpected pos|file write failed")


class Need(NamedTuple):
    """Bytes. `state`: weights, gradients and moments."""

    state: int
    layers: int
    logits: int

    @property
    def total(self) -> int:
        return FIXED_BYTES + self.state + self.layers + self.logits

    def __str__(self) -> str:
        return (
            f"{size(self.total)} ({size(self.state)} for weights, gradients and optimizer, {size(self.layers)} for"
            f" activations, {size(self.logits)} for the logits)"
        )


def training_need(
    arch: Geometry,
    batch: int,
    bf16: bool,
    length: int | None = None,
    trained: int | None = None,
    scores: bool = False,
) -> Need:
    """`batch`: rows that are computed at once, of `length` tokens; None: the context. `trained`: the number of weights
    that are trained of a model that the process holds already; None: all of one that it does not hold. `scores`:
    whether attention keeps its scores."""
    row = length or arch.context
    tokens = batch * row
    kept = sum(LAYER_TENSORS * layer.width + FFN_TENSORS * layer.ffn_width for layer in arch.layer_shapes)
    heads = sum(layer.heads for layer in arch.layer_shapes) if scores else 0
    return Need(
        state=16 * params(arch.operators) if trained is None else 12 * trained,
        layers=round(4 * tokens * kept * (BF16_SHARE if bf16 else 1.0)) + SCORE_BYTES * tokens * row * heads,
        logits=4 * LOGIT_TENSORS * tokens * arch.vocab,
    )


def need_of(arch: Geometry, recipe: Recipe, trained: int | None, batch: int | None = None) -> Need:
    scores = keeps_scores(recipe, arch)
    return training_need(arch, batch or recipe.batch, recipe.bf16, recipe.length, trained, scores)


def keeps_scores(recipe: Recipe, arch: Geometry) -> bool:
    """Whether attention is computed by separate operators, which in short rows are faster than the fused one where
    they are compiled for a CPU."""
    return recipe.compile and (recipe.length or arch.context) <= MOST_EAGER and not torch.cuda.is_available()


def available_bytes() -> int:
    """Free bytes of the memory that training runs in: the GPU's where torch has one, else the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def process_bytes() -> int:
    """Bytes that this process holds in the memory that training runs in."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss


def peak_mb() -> float:
    """The peak since the process began, on the GPU where torch has one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_rss_mb()


def check_memory(
    arch: Geometry, recipe: Recipe, *, ignore: bool, trained: int | None = None, rows: int | None = None
) -> str:
    """A line with the needed and the available memory. `rows`: those that are computed at once; None: a batch.

    Raises MerinoError where it does not fit, unless `ignore`.
    """
    need, there, now = need_of(arch, recipe, trained, rows), available_bytes(), process_bytes()
    line = f"training needs about {size(now + need.total)}: {size(now)} that this process holds with its libraries, and"
    line += f" {need}; {size(there)} are available for these"
    if need.total > there and not ignore:
        raise MerinoError(
            f"{line}. {largest_batch(arch, recipe, there, trained)}; --accumulate computes a"
            " batch in parts. Shorter rows (--length) and a smaller vocabulary"
            " (`design --vocab`) need less too. --ignore-memory starts all the same"
        )
    return line


def largest_batch(arch: Geometry, recipe: Recipe, there: int, trained: int | None = None) -> str:
    one, two = (need_of(arch, recipe, trained, batch).total for batch in (1, 2))
    if one > there:
        return "Not even --batch 1 fits: close other programs, or train a smaller design"
    return f"--batch {1 + (there - one) // (two - one)} fits"


@contextmanager
def reported_memory(arch: Geometry, recipe: Recipe, trained: int | None = None) -> Iterator[None]:
    """Raises MerinoError with the figures where memory runs out in the body."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (is_out_of_memory(error) or TORCH_WORDS.search(str(error))):
            raise
        need = need_of(arch, recipe, trained)
        raise MerinoError(
            f"out of memory in training with --batch {recipe.batch}. About {need} were expected on top of the process,"
            f" which has held up to {peak_mb():,.0f} MB; {size(available_bytes())} are available. Close other programs,"
            " lower --batch or --length (a new run, with another -o), or design with a smaller --vocab"
        ) from error


def size(count: float) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"


def check_disk(arch: Geometry, out: Path, resume: bool, patience: int = 0, trained: int | None = None) -> None:
    """Raises MerinoError where nothing can be written, or the saved states and the model would not fit. `out` need not
    exist."""
    count = params(arch.operators)
    states = 1 if resume else STATES + (patience > 0)
    need = (count if trained is None else trained) * STATE_BYTES * states + count * MODEL_BYTES
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    check_room(str(out), str(folder))  # a read-only place has no bytes free either
    there = shutil.disk_usage(folder).free
    if need > there:
        raise MerinoError(
            f"the saved states and the model take {size(need)} in {out}, {size(there)} are free: free some, or choose"
            " an -o on another disk"
        )


@contextmanager
def reported_disk(folder: Path) -> Iterator[None]:
    """Raises MerinoError where the disk is full in the body. The saved state that it cut short is removed."""
    try:
        yield
    except Exception as error:  # torch, safetensors and tokenizers each raise their own
        cause = error.__cause__ if isinstance(error, MerinoError) else error
        if not (getattr(cause, "errno", None) in FULL or WORDS.search(str(cause))):
            raise
        remove_torn(folder)
        step = next((state.name for state in saved_states(folder)), None)
        go_on = f"go on from {step} with the same command and --resume" if step else "give the same command again"
        raise MerinoError(f"cannot write {folder}: {cause}. Free some space, then {go_on}") from error
