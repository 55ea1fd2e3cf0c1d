"""The request for an export, and the checks that need no torch: whether weight format, dialect and KV cache can be
combined."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from merino_edge.bundles.description import GraphFormat
from merino_edge.design.design_file import Design
from merino_edge.prediction.formats import EMPTY, cache_needs, dialect_of, has_cache, quantized_kv
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.errors import MerinoError

LEAST_CONTEXT = 8  # tokens
ROUNDED = ("int8", "int4")  # weight formats of integers
PRECISIONS = ("fp32", "fp16", *ROUNDED)
DIALECTS = ("fused", "portable")
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)  # of a bundle or an adapter


class ExportRequest(NamedTuple):
    """How to export a model. None is the default, which `plan` resolves.

    Attributes:
        precision: weight format; `auto`: the fastest on `board` that keeps the model's answers; `mixed`: int4, with 8
            bits for the matrices in which they reduce divergence most. By default the design's; without a design fp32.
        board: the graph is written for its runtime.
        dialect: by default that of the board, else of the design, else `fused`.
        kv: format of the KV cache; by default the design's, else int8 if this project's kernels compute the attention
            and the model's answers do not change, else that of the activations.
        context: KV slots, in tokens; by default the model's context.
        calibration: text for GPTQ and for the scales of a quantized cache. Without it there is no GPTQ, and the scales
            are fitted to a text that the model generates.
        chat: whether the bundle has the source's chat template.
        all_logits: whether the graph returns the logits of all positions, so that one prefill scores a whole text.
        embeddings: whether the graph returns the sum of the last hidden states, of which embeddings are made.
        adapters: folders of LoRA adapters, one of which a request may choose.
        file_mb: for `mixed`, the largest size of all weights.
        decode_ms: for `mixed`, the largest predicted decode latency on `board`. Without either limit the weights take
            the mean of their sizes in int4 and int8.
    """

    precision: str | None = None
    board: DeviceProfile | None = None
    dialect: str | None = None
    kv: str | None = None
    context: int | None = None
    calibration: Path | None = None
    chat: bool = True
    all_logits: bool = False
    embeddings: bool = False
    adapters: tuple[Path, ...] = ()
    file_mb: float | None = None
    decode_ms: float | None = None


def in_one_format(request: ExportRequest) -> ExportRequest:
    """Check the options of `auto` and `mixed`. Return the request in the format that they begin with, fp32 and int4.

    Raises MerinoError for limits of `mixed` that are not possible, and for a board that is missing.
    """
    limits = {"--set file_mb": request.file_mb, "--set decode_ms": request.decode_ms}
    for option, limit in limits.items():
        if limit is not None and request.precision != "mixed":
            raise MerinoError(f"{option} is a limit of --precision mixed: give that, or leave {option} out")
        if limit is not None and not 0 < limit < float("inf"):
            raise MerinoError(f"{option}={limit:g} is not allowed: give a number above 0")
    if request.precision == "auto":
        if request.board is None:
            raise MerinoError("--precision auto takes the fastest format on a board: name it with --board")
        return request._replace(precision="fp32", calibration=None)
    if request.decode_ms is not None and request.board is None:
        raise MerinoError("--set decode_ms is predicted for a board: name it with --board")
    return request._replace(precision="int4") if request.precision == "mixed" else request


def graph_format(request: ExportRequest, design: Design | None, context: int) -> GraphFormat:
    """Resolve the format of the graph. Raises MerinoError for a combination that is not possible."""
    board, precision = request.board, request.precision
    dialect = request.dialect
    if dialect is None and board and not (design and design.backend == "tensorrt"):
        dialect = dialect_of(board)
    if dialect is None:
        dialect = design.dialect if design else "fused"
    if dialect not in DIALECTS:
        raise MerinoError(f"--dialect {dialect or EMPTY} is not known: choose one of {', '.join(DIALECTS)}")
    if precision is None:
        precision, origin = (design.precision, "the design's weight format, {}") if design else ("fp32", "")
    else:
        origin = "--precision {}"
    if precision not in PRECISIONS:
        known = (*PRECISIONS, "auto", "mixed")
        raise MerinoError(f"{origin.format(precision or EMPTY)} is not known: choose one of {', '.join(known)}")
    if precision == "fp16" and board and "tensorrt" not in board.backends:
        raise MerinoError(f"{origin.format(precision)} is for GPUs, and a {board.name} has none: give int8 or int4")
    kv = cache_format(request.kv, dialect, precision, design=design, board=board)
    check_calibration(precision, kv, request.calibration)
    return GraphFormat(
        precision, dialect, context, kv, all_logits=request.all_logits, embeddings=request.embeddings,
        adapters=adapter_names(request.adapters),
    )  # fmt: skip


def adapter_names(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the names of adapters: those of their folders. Raises MerinoError for two alike, and for other signs than
    a bundle's name has."""
    names = tuple(folder.absolute().name for folder in folders)
    for name in names:
        if not NAME.fullmatch(name) or names.count(name) > 1:
            raise MerinoError(
                f"--set adapters: {name!r:.80} is the name of {names.count(name)} folders, and requests choose an"
                " adapter by it. Rename folders so that their names differ, of up to 64 letters, digits and . _ -"
            )
    return names


def cache_format(
    kv: str | None, dialect: str, precision: str, *, design: Design | None = None, board: DeviceProfile | None = None
) -> str | None:
    """Return the format of the quantized cache that --kv or a design names; None: the cache has the type of the
    activations.

    Raises MerinoError if the dialect, the weight format or the board's runtime does not support it.
    """
    chosen = quantized_kv(kv if kv is not None else design.kv if design else None)
    if chosen is None:
        return None
    origin = f"--kv {kv}" if kv else f"the design's cache, {chosen},"
    if board and not has_cache(board.with_backend("onnxruntime"), chosen, precision):
        needs, has = cache_needs(chosen, precision), board.software.onnxruntime
        raise MerinoError(f"{origin} needs {needs}, and a {board.name} has {has}: give --kv fp32")
    if dialect != "fused":
        raise MerinoError(
            f"{origin} is not possible in dialect {dialect}, which TensorRT and older versions of ONNX Runtime run: its"
            f" cache has the type of the activations. Give --kv fp32, or --dialect fused"
        )
    if precision == "fp16":
        raise MerinoError(f"{origin} is not possible with --precision fp16, which is for GPUs: give --kv fp32")
    return chosen


def check_context(context: int | None, longest: int | None) -> None:
    """Raises MerinoError for a context that is too short for any model, or above `longest`, the model's own."""
    if context is not None and (context < LEAST_CONTEXT or (longest is not None and context > longest)):
        most = f"to {longest} tokens" if longest else "tokens or more, up to the model's context"
        raise MerinoError(f"--context {context} is not allowed: choose {LEAST_CONTEXT} {most}")


def check_calibration(precision: str, kv: str | None, text: Path | None) -> None:
    """Raises MerinoError for a calibration text if neither weights nor the cache are quantized to integers."""
    if text and kv is None and precision not in ROUNDED:
        raise MerinoError(
            f"--text {text} is for weights or a KV cache in int8 or int4, but the weights are {precision} and the"
            " cache is not quantized: give --precision int4 or int8, or --kv int8, or leave --text out"
        )
