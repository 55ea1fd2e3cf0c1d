"""The processes of a run that torchrun started: which one this is, and their common steps.

Each rank computes its share of the rows. The first one alone writes, locks, tokenizes and prints.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from merino_runtime.errors import MerinoError

Result = TypeVar("Result")
PATIENCE = timedelta(days=2)  # of the others, while the first one tokenizes
KEPT_GROUPS: list[Any] = []  # until the process ends


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def joined() -> Iterator[None]:
    """Connects the processes, where there are several: over gloo, and over NCCL between GPUs."""
    if count() == 1 or distributed.is_initialized():
        yield
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    # A group that ended with the trainer, its last owner, could wait forever: it joins gloo's threads while it holds
    # Python's lock, which such a thread takes to free the tensors of the last collective (torch 2.13).
    KEPT_GROUPS.append(distributed.group.WORLD)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def by_the_first(work: Callable[[], Result]) -> Result:
    """The first process's result of `work`, in all processes. Where it raises there, the others end silently."""
    if count() == 1:
        return work()
    shared: list[Any] = [None, False]
    if is_first():
        try:
            shared = [work(), True]
        finally:
            distributed.broadcast_object_list(shared)
    else:
        distributed.broadcast_object_list(shared)
    if not shared[1]:
        raise SystemExit(1)
    return shared[0]


def wait_for_all() -> None:
    if count() > 1:
        distributed.barrier()


def any_of_them(here: bool) -> bool:
    """Whether it holds in any process."""
    if count() == 1:
        return here
    flag = torch.tensor(int(here), device="cuda" if torch.cuda.is_available() else "cpu")
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag)


def part_of(batch: int, parts: int) -> int:
    """Rows that a process computes at once. Raises MerinoError where the batch is not so divided."""
    divided = count() * parts
    if batch % divided:
        of = f"{count()} processes and --accumulate {parts}" if count() > 1 else f"--accumulate {parts}"
        raise MerinoError(
            f"--batch {batch} is not a multiple of {divided}, by {of}: give --batch {-(-batch // divided) * divided}"
        )
    return batch // divided
