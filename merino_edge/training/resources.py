"""What a run takes of its machine: processes under torchrun, memory, and the message if memory or the disk runs out.

Each process computes its share of the rows. The first one alone writes, locks, tokenizes and prints.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from torch import distributed

from merino_edge.families.geometry import Geometry
from merino_edge.families.operators import params
from merino_edge.training.checkpoint import SAVING, saved_states
from merino_edge.training.recipe import Recipe
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import peak_rss_mb
from merino_runtime.io.memory import is_out_of_memory

# Tensors that the backward pass needs, fitted to peaks on a CPU (docs/decisions/training.md): of a layer's width and of
# its FFN's at each use, and of the vocabulary (the logits, their log-softmax, its gradient).
LAYER_TENSORS, FFN_TENSORS, LOGIT_TENSORS = 16, 2, 3
BF16_SHARE = 0.75  # of the layers' tensors
SCORE_BYTES = 6  # of a score of a head, in bfloat16 and in float32
MOST_EAGER = 512  # tokens of a row: scores grow with their square
FIXED_BYTES = 25 << 20
TORCH_WORDS = re.compile(r"can't allocate memory|out of memory", re.ASCII)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Messages of safetensors (Rust) and of torch's archive writer, which raise their own errors.
DISK_WORDS = re.compile(r"No space left|File too large|quota exceeded|PytorchStreamWriter|unexpected pos|write failed")
TIMEOUT = timedelta(days=2)  # of the other processes, while the first one tokenizes
KEPT_GROUPS: list[Any] = []  # of processes, until this one ends
Result = TypeVar("Result")


def process_count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def joined() -> Iterator[None]:
    """Connect the processes if there are several: over NCCL between GPUs, else over gloo."""
    if process_count() == 1 or distributed.is_initialized():
        yield
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    # A group that ended with the trainer, its last owner, could wait forever: it joins gloo's threads while it holds
    # Python's lock, which such a thread takes to free the tensors of the last collective (torch 2.13).
    KEPT_GROUPS.append(distributed.group.WORLD)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def on_first_process(work: Callable[[], Result]) -> Result:
    """Return the first process's result of `work` in all processes. If it raises there, the others end silently."""
    if process_count() == 1:
        return work()
    shared: list[Any] = [None, False]
    try:
        if is_first():
            shared = [work(), True]
    finally:
        distributed.broadcast_object_list(shared)
    if not shared[1]:
        raise SystemExit(1)
    return shared[0]


def any_process(*flags: bool) -> list[bool]:
    """Return for each flag whether it is set in any process."""
    if process_count() == 1:
        return list(flags)
    shared = torch.tensor(flags, dtype=torch.int, device="cuda" if torch.cuda.is_available() else "cpu")
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return [bool(flag) for flag in shared]


def size(count: float) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"


def training_need(arch: Geometry, recipe: Recipe, rows: int | None = None, trained: int | None = None) -> int:
    """Estimate the bytes of a run, on top of the process with its libraries.

    rows: those that are computed at once; None: a batch. trained: the number of trained weights of a model that the
    process holds already; None: all of a model that it does not hold yet.
    """
    length = recipe.length or arch.context
    tokens = (rows or recipe.batch) * length
    width = sum(LAYER_TENSORS * layer.width + FFN_TENSORS * layer.ffn_width for layer in arch.layer_shapes)
    heads = sum(layer.heads for layer in arch.layer_shapes) if uses_eager_attention(recipe, arch) else 0
    state = 16 * params(arch.operators) if trained is None else 12 * trained  # weights, gradients, AdamW's two moments
    layers = round(4 * tokens * width * (BF16_SHARE if recipe.bf16 else 1.0)) + SCORE_BYTES * tokens * length * heads
    return FIXED_BYTES + state + layers + 4 * LOGIT_TENSORS * tokens * arch.vocab


def uses_eager_attention(recipe: Recipe, arch: Geometry) -> bool:
    """Return whether attention is computed by separate operators, which in short rows are faster than the fused one
    if they are compiled for a CPU."""
    return recipe.compile and (recipe.length or arch.context) <= MOST_EAGER and not torch.cuda.is_available()


def available_bytes() -> int:
    """Return the free bytes of the GPU if torch has one, else of the machine."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available


def peak_mb() -> float:
    """Return the peak since the process started."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak_rss_mb()


def check_memory(arch: Geometry, recipe: Recipe, trained: int | None = None, rows: int | None = None) -> str:
    """Return a line with needed and available memory. Raises MerinoError if it does not fit, unless the recipe ignores
    that."""
    need, available = training_need(arch, recipe, rows, trained), available_bytes()
    held = torch.cuda.memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss
    line = (
        f"training needs about {size(held + need)}: {size(held)} that this process holds with its libraries, and"
        f" {size(need)}; {size(available)} are available for these"
    )
    if need > available and not recipe.ignore_memory:
        one, two = (training_need(arch, recipe, count, trained) for count in (1, 2))
        remedy = f"--batch {1 + (available - one) // (two - one)} fits"
        if one > available:
            remedy = "Not even --batch 1 fits: close other programs, or train a smaller design"
        raise MerinoError(
            f"{line}. {remedy}; --set accumulate=N computes a batch in parts."
            " A smaller --set length or vocabulary (`design --vocab`) needs less. --set ignore_memory=true starts it"
        )
    return line


@contextmanager
def reported_faults(folder: Path, batch: int) -> Iterator[None]:
    """Raises MerinoError if memory runs out in the body, or the disk is full. The part of a state is removed.

    folder: of the saved states.
    """
    try:
        yield
    except Exception as error:  # torch, safetensors and tokenizers each raise their own
        if not isinstance(error, MerinoError) and (is_out_of_memory(error) or TORCH_WORDS.search(str(error))):
            raise MerinoError(
                f"out of memory in training with --batch {batch}. The process has held up to {peak_mb():,.0f} MB;"
                f" {size(available_bytes())} are available. Close other programs, lower --batch or --set length (a new"
                " run, with another -o), or design with a smaller --vocab"
            ) from error
        cause = error.__cause__ if isinstance(error, MerinoError) else error
        if not (getattr(cause, "errno", None) in FULL or DISK_WORDS.search(str(cause))):
            raise
        shutil.rmtree(folder / SAVING, ignore_errors=True)
        whole = [state.name for state in saved_states(folder)]
        resumed = f"continue from {whole[0]} with the same command and --resume" if whole else "run the command again"
        raise MerinoError(f"cannot write {folder}: {cause}. Free some space, then {resumed}") from error
