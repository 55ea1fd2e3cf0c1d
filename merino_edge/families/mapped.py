"""Weights of a torch model in files that are mapped into memory. The system drops their pages where memory is short and
reads them again: a model larger than the memory can be exported, and a large one leaves the memory to others."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from merino_runtime.errors import machine_fault

LEAST_BYTES = 1 << 20  # smaller weights stay in memory
ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"  # of transformers, which otherwise reads weights ahead in threads


@contextmanager
def mapped_weights(folder: Path) -> Iterator[None]:
    """Models that are made or loaded meanwhile have their large weights in nameless files on the disk of `folder`, for
    as long as the weights are used. Raise MerinoError if one cannot be written."""
    register, before = torch.nn.Module.register_parameter, os.environ.get(ONE_BY_ONE)

    def register_mapped(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        register(module, name, parameter if parameter is None else mapped(parameter, folder))

    os.environ[ONE_BY_ONE] = "1"
    torch.nn.Module.register_parameter = register_mapped  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]
        del os.environ[ONE_BY_ONE]
        os.environ.update({} if before is None else {ONE_BY_ONE: before})


def mapped(parameter: torch.nn.Parameter, folder: Path) -> torch.nn.Parameter:
    """Return the parameter with its values in a file; a small one, or one without values, as it is."""
    if parameter.is_meta or parameter.nbytes < LEAST_BYTES or is_mapped(parameter):
        return parameter
    kept = in_file(parameter.detach().numpy(), folder)
    result = torch.nn.Parameter(torch.from_numpy(kept), parameter.requires_grad)
    result.__dict__.update(parameter.__dict__, in_file=True)  # transformers marks weights that are set
    return result


def in_file(values: np.ndarray, folder: Path) -> np.ndarray:
    """Return the values in a nameless file on the disk of `folder`. Raise MerinoError if it cannot be written."""
    values = np.ascontiguousarray(values)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(values.data)  # `tofile` would lose the reason why it fails
            file.flush()
            return np.asarray(np.memmap(file, values.dtype, "r+", shape=values.shape))
    except OSError as error:
        raise machine_fault(f"keep weights in {folder} (XDG_CACHE_HOME names another place)", error) from error


def is_mapped(parameter: torch.nn.Parameter) -> bool:
    return hasattr(parameter, "in_file")
