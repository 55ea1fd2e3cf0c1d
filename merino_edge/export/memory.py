"""Memory of an export, estimated from the geometry before a weight is allocated or read, and where the weights lie."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import psutil
from transformers import PreTrainedModel

from merino_edge.families.geometry import Geometry
from merino_edge.families.mapped import is_mapped, mapped_weights
from merino_edge.families.operators import params
from merino_edge.storage.atomic import cache_folder, existing_parent
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB as BYTES_PER_MB

# Near the lowest of the measured peaks (docs/decisions/house.md), so that no export that fits is refused.
IMPORTS_MB = 450  # Python, torch, transformers and onnx
COPIES = 1.1  # float32 copies of the weights: torch's, which the bundle's proof replaces by ONNX Runtime's
QUANTIZED_COPIES = 1.3  # the same, with the codes
COPIES_IN_FILES = 0.2  # the same, with the weights and the codes in files: parts of the largest matrices
FILES = 1.4  # copies of the weights on the disk, with the codes
LARGE_MB = 2000  # float32 weights that lie in files even where they fit the memory, if the disk has room


def weights_mb_of(arch: Geometry) -> float:
    return 4 * params(arch.operators) / BYTES_PER_MB


def needed_mb(
    arch: Geometry, precision: str = "fp32", calibrated: bool = False, *, in_files: bool = False
) -> float:
    """Return the peak memory of an export in MB (2^20 bytes). `calibrated`: whether GPTQ keeps Hessians. `in_files`:
    torch's weights and the codes lie in files, whose pages do not count.

    The KV cache is not counted, because few of its pages are touched.
    """
    copies = COPIES if precision == "fp32" else COPIES_IN_FILES if in_files else QUANTIZED_COPIES
    needed = IMPORTS_MB + copies * weights_mb_of(arch)
    if calibrated:  # at most a float32 Hessian for each matrix: those that share an input share one
        needed += sum(4 * op.columns**2 for op in arch.operators if op.kind == "linear") / BYTES_PER_MB
    return needed


def room_for(arch: Geometry, name: str, say: Callable[[str], None] = lambda _: None) -> AbstractContextManager[None]:
    """Return the context to load a model in. The weights of a large model, or of one whose export does not fit the
    memory, lie in files in the user's cache folder, and `say` gets a line on it. Raise MerinoError if they fit neither.

    The precision is not known yet: the largest need decides, and the least one refuses.
    """
    available, weights_mb, folder = available_mb(), weights_mb_of(arch), cache_folder()
    fits = needed_mb(arch, "int8") <= available
    if fits and weights_mb < LARGE_MB:
        return nullcontext()
    needed = needed_mb(arch, "int8", in_files=True)
    free_mb = shutil.disk_usage(existing_parent(folder)).free / BYTES_PER_MB
    if needed > available or FILES * weights_mb > free_mb:
        if fits:
            return nullcontext()
        raise too_large(
            name, needed, available,
            f"beside {FILES * weights_mb:,.0f} MB on the disk of {folder}, where {free_mb:,.0f} MB are free",
        )  # fmt: skip
    say(f"{available:,.0f} MB of memory are available: {weights_mb:,.0f} MB of weights wait on disk, in {folder}")
    return mapped_weights(folder)


def folder_of(model: PreTrainedModel) -> Path | None:
    """Return the folder on whose disk the model's weights lie; None: in memory."""
    return cache_folder() if any(map(is_mapped, model.parameters())) else None


def check_memory(arch: Geometry, name: str, model: PreTrainedModel, precision: str, *, calibrated: bool) -> None:
    """Raise MerinoError if the export of a loaded model needs more memory than is available now, beside the model's."""
    in_files = folder_of(model) is not None
    weights_mb = weights_mb_of(arch)
    needed = needed_mb(arch, precision, calibrated, in_files=in_files)
    available = available_mb() + IMPORTS_MB + (0 if in_files else weights_mb)
    if needed > available:
        raise too_large(
            f"{name} in {precision}", needed, available, f"for copies of {weights_mb:,.0f} MB of float32 weights"
        )


def available_mb() -> float:
    return float(psutil.virtual_memory().available) / BYTES_PER_MB


def too_large(name: str, needed: float, available: float, what_for: str) -> MerinoError:
    return MerinoError(
        f"exporting {name} needs about {needed:,.0f} MB of memory, {what_for}, and {available:,.0f} MB are available."
        " Stop other programs, export on a machine with more memory, or choose a smaller model"
    )
