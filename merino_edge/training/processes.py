"""The processes of a run that torchrun started: which one this is, and what they do together.

Each process computes its share of the rows. The first one alone writes, locks, tokenizes and prints.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

Result = TypeVar("Result")
TIMEOUT = timedelta(days=2)  # of the others, while the first one tokenizes
KEPT_GROUPS: list[Any] = []  # until the process ends


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def joined() -> Iterator[None]:
    """Connect the processes if there are several: over NCCL between GPUs, else over gloo."""
    if count() == 1 or distributed.is_initialized():
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
    if count() == 1:
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
    if count() == 1:
        return list(flags)
    shared = torch.tensor(flags, dtype=torch.int, device="cuda" if torch.cuda.is_available() else "cpu")
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return [bool(flag) for flag in shared]
