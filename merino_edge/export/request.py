"""An export as it is requested, and what can be judged of it before torch is loaded: what a SOURCE names, and which
weight format, dialect and KV cache are possible."""

from pathlib import Path
from typing import NamedTuple

from merino_edge.bundles.files import is_bundle, is_bundle_alone
from merino_edge.design.design_file import DESIGN, Design, load_design, read_plan
from merino_edge.families.checkpoint import check_checkpoint, check_tokenizer
from merino_edge.families.designed import Architecture
from merino_edge.families.gguf.named import is_gguf
from merino_edge.families.hub import HubModel, hub_name
from merino_edge.families.names import resolve
from merino_edge.families.operators import Core, core_of
from merino_edge.families.zoo import Model, exportable_models
from merino_edge.prediction.formats import (
    EMPTY,
    attends_by_groups,
    cache_needs,
    core_of_board,
    dialect_of,
    has_cache,
    quantised_kv,
)
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.storage.atomic import check_folder, check_keeps
from merino_edge.text.documents import check_files, read_documents
from merino_runtime.errors import MerinoError

RANDOM = Path("random")  # as --weights: no published ones
LEAST_CONTEXT = 8
AUTO, MIXED = "auto", "mixed"  # as precisions: see ExportRequest
ROUNDED = ("int8", "int4")  # weight formats
PRECISIONS = {"fused": ("fp32", "fp16", "int8", "int4"), "portable": ("fp32", "fp16", "int8")}


class ExportRequest(NamedTuple):
    """How a model is to be exported. None leaves a choice to the defaults, which `chosen_format` resolves, once.

    Attributes:
        precision: weight format; AUTO: the fastest on `board` that keeps the model's answers; MIXED: int4, with 8 bits
            for the matrices where they save most divergence. By default the design's, or fp32 without a design.
        board: the graph suits its runtime and its kind of core, and uses this project's kernels where it loads them.
        dialect: by default that of the board and of the design's backend, else `fused`.
        core: the kind of Arm core that integer matmuls are written for; by default the board's, else `dotprod`.
        kv: format of the KV cache; by default the design's, else that of the activations.
        context: KV slots, in tokens; by default the model's context.
        calibration: text for GPTQ and for the scales of a quantised cache. Without one no weight is rounded by GPTQ,
            and the scales come from a text that the model generates.
        text: the bundle's perplexity is measured on it.
        chat: whether the bundle has the source's chat template.
        all_logits: whether the graph returns the logits of all positions, so that one prefill scores a whole text.
        overwrite: whether random weights may replace trained ones.
        file_mb: of MIXED, the most MB that all weights may take.
        decode_ms: of MIXED, the most predicted milliseconds of a decode step on `board`. Without both limits the
            weights take the mean of what int4 and int8 take.
    """

    precision: str | None = None
    board: DeviceProfile | None = None
    dialect: str | None = None
    core: Core | None = None
    kv: str | None = None
    context: int | None = None
    calibration: Path | None = None
    text: Path | None = None
    chat: bool = True
    overwrite: bool = False
    all_logits: bool = False
    file_mb: float | None = None
    decode_ms: float | None = None


class ChosenFormat(NamedTuple):
    """What a request comes to with its defaults. `core`: see `core_of`. `kv`: None where the cache is not quantised.
    `by_groups`: see `GraphFormat`."""

    precision: str
    dialect: str
    core: Core | None
    kv: str | None
    by_groups: bool = False


class Plan(NamedTuple):
    """A file that describes a model to build. It has no weights."""

    path: Path
    content: Design | Architecture


def find_source(what: str, weights: Path | None = None) -> Model | HubModel | Plan | Path:
    """A model of the zoo or of the hub, the plan in a file, a GGUF file, or the folder of a bundle or checkpoint.

    `weights`: for a model of the zoo a local Hugging Face folder, or RANDOM, in place of the published weights. Raises
    MerinoError where `what` is no source or is ambiguous, or where such a folder is none.
    """
    found = resolve(what)
    if isinstance(found, Model):
        if weights and weights != RANDOM:
            check_checkpoint(weights)
        return found
    names = ", ".join(exportable_models())
    if weights:
        raise MerinoError(f"--weights goes with {names}; a checkpoint folder is exported by its own path")
    path = Path(found)
    if path.is_file():
        return path if is_gguf(path) else Plan(path, read_plan(path))
    if not path.is_dir():
        published = hub_name(what)
        if published:
            return published
        raise MerinoError(
            f"{what!r} names no model: give a checkpoint folder, a GGUF file, a name on the hub such as"
            f" HuggingFaceTB/SmolLM2-135M-Instruct, a design.json, an architecture's JSON, a bundle in fp32, embedded,"
            f" or {names}"
        )
    if not is_bundle(path):
        check_checkpoint(path)
    return path


def chosen_format(request: ExportRequest, design: Design | None) -> ChosenFormat:
    """Raises MerinoError for a combination that is not possible."""
    board = request.board
    dialect = request.dialect if request.dialect is not None else default_dialect(board, design)
    precision = chosen_precision(dialect, request.precision, design)
    kv = chosen_cache(request.kv, dialect, precision, design=design, board=board)
    check_calibration(precision, kv, request.calibration)
    core = request.core or (core_of_board(board) if board else "dotprod")
    groups = board is not None and dialect == "fused" and attends_by_groups(board, precision)
    return ChosenFormat(precision, dialect, core_of(dialect, precision, core), kv, groups)


def board_for_auto(request: ExportRequest) -> DeviceProfile:
    """Raises MerinoError where a request for AUTO names none."""
    if request.board is None:
        raise MerinoError("--precision auto takes the fastest format on a board: name it with --for")
    return request.board


def in_int4(request: ExportRequest) -> ExportRequest:
    """What a request for MIXED begins with. Raises MerinoError for limits that are not possible."""
    for option, limit in (("--file-mb", request.file_mb), ("--decode-ms", request.decode_ms)):
        if limit is not None and not 0 < limit < float("inf"):
            raise MerinoError(f"{option} {limit:g} is not allowed: give a number above 0")
    if request.decode_ms is not None and request.board is None:
        raise MerinoError("--decode-ms is predicted for a board: name it with --for")
    return request._replace(precision="int4")


def in_float32(request: ExportRequest) -> ExportRequest:
    """What a request for AUTO compares the other formats with."""
    return request._replace(precision="fp32", calibration=None)


def default_dialect(board: DeviceProfile | None, design: Design | None) -> str:
    """`portable` where the board's ONNX Runtime has no other, or the design is for TensorRT, which builds its engines
    from portable graphs alone."""
    portable = (board and dialect_of(board) == "portable") or (design and design.backend == "tensorrt")
    return "portable" if portable else "fused"


def check_request(request: ExportRequest, what: str, weights: Path | None, out: Path) -> HubModel | None:
    """The model of the hub that is to be fetched for it, if any; see `find_source` for `what` and `weights`.

    Raises MerinoError for what is wrong already without the model: files that cannot be read, an output that would
    replace an input, a source that is none, a combination that is not possible.
    """
    texts = {"--text": request.text, "--calibrate": request.calibration}
    for option, file in texts.items():
        if file:
            check_files([file], option)
            read_documents([file], option)
    inputs = (weights, *texts.values(), resolve(what))
    check_keeps(out, [Path(each) for each in inputs if isinstance(each, str | Path)])
    check_folder(out, is_bundle_alone)
    found = find_source(what, weights)
    check_source_tokenizer(found, weights)
    check_context(request.context, found)
    if request.precision != MIXED:
        check_limits(request)
    if request.precision == AUTO:
        board_for_auto(request)
        chosen_format(in_float32(request), design_of(found))
    elif request.precision == MIXED:
        chosen_format(in_int4(request), design_of(found))
    else:
        chosen_format(request, design_of(found))
    return published(found, weights)


def check_limits(request: ExportRequest) -> None:
    """Raises MerinoError for limits of MIXED beside another precision."""
    for option, limit in (("--file-mb", request.file_mb), ("--decode-ms", request.decode_ms)):
        if limit is not None:
            raise MerinoError(f"{option} is a limit of --precision mixed: give that, or leave {option} out")


def published(found: Model | HubModel | Plan | Path, weights: Path | None) -> HubModel | None:
    """The model of the hub whose files the source consists of; None where nothing is taken from there."""
    if isinstance(found, Model):
        return None if weights else HubModel(found.hub)
    return found if isinstance(found, HubModel) else None


def check_source_tokenizer(found: Model | HubModel | Plan | Path, weights: Path | None) -> None:
    """Raises MerinoError where the source is a folder of published weights without a tokenizer."""
    folder = found if isinstance(found, Path) else weights if isinstance(found, Model) else None
    if folder and folder.is_dir() and folder != RANDOM and not is_bundle(folder):
        check_tokenizer(folder)


def chosen_precision(dialect: str, precision: str | None, design: Design | None) -> str:
    """The weight format: `precision`, else the design's, else fp32. Raises MerinoError where the dialect is not known
    or has no such format."""
    if dialect not in PRECISIONS:
        raise MerinoError(f"--dialect {dialect or EMPTY} is not known: choose one of {', '.join(PRECISIONS)}")
    found = precision if precision is not None else design.precision if design else "fp32"
    if found not in PRECISIONS[dialect]:
        asked = f"the design's weight format, {found}," if precision is None else f"--precision {precision or EMPTY}"
        choices = "; ".join(f"{name}: {', '.join(known)}" for name, known in PRECISIONS.items())
        raise MerinoError(f"{asked} is not possible in dialect {dialect}: choose a --precision of {choices}")
    return found


def check_context(context: int | None, asked: Model | HubModel | Plan | Path) -> None:
    """Raises MerinoError for a context that no model can have, or not this plan or model of the catalogue."""
    longest = None
    if isinstance(asked, Plan):
        longest = (asked.content.architecture if isinstance(asked.content, Design) else asked.content).context
    elif isinstance(asked, Model):
        longest = asked.geometry.context
    if context is not None and (context < LEAST_CONTEXT or (longest is not None and context > longest)):
        most = f"to {longest} tokens" if longest else "tokens or more, up to the model's context"
        raise MerinoError(f"--context {context} is not allowed: choose {LEAST_CONTEXT} {most}")


def check_calibration(precision: str, kv: str | None, text: Path | None) -> None:
    """Raises MerinoError where neither weights nor the cache are rounded to few bits."""
    if text and kv is None and precision not in ROUNDED:
        raise MerinoError(
            f"--calibrate {text} is for weights or a KV cache in int8 or int4, but the weights are {precision} and the"
            " cache is not quantised: give --precision int4 or int8, or --kv int8, or leave --calibrate out"
        )


def design_of(found: Model | HubModel | Plan | Path) -> Design | None:
    """The design that the source is, or that its checkpoint was trained from."""
    if isinstance(found, Plan):
        return found.content if isinstance(found.content, Design) else None
    path = found / DESIGN if isinstance(found, Path) else None
    return load_design(path) if path and path.is_file() else None


def chosen_cache(
    kv: str | None, dialect: str, precision: str, *, design: Design | None = None, board: DeviceProfile | None = None
) -> str | None:
    """The format of the cache where it is quantised, by default the design's; None: that of the activations.

    Raises MerinoError where the dialect, the weight format or the board's runtime takes no such cache.
    """
    found = quantised_kv(kv if kv is not None else design.kv if design else None)
    if found is None:
        return None
    asked = f"--kv {kv}" if kv else f"the design's cache, {found},"
    if board and not has_cache(board.with_backend("onnxruntime"), found):
        has = board.software.onnxruntime
        raise MerinoError(f"{asked} needs {cache_needs()}, and a {board.name} has {has}: give --kv fp32")
    if dialect != "fused":
        raise MerinoError(
            f"{asked} is not possible in dialect {dialect}, which TensorRT and older versions of ONNX Runtime run: its"
            f" cache has the type of the activations. Give --kv fp32, or --dialect fused"
        )
    if precision == "fp16":
        raise MerinoError(f"{asked} is not possible with --precision fp16, which is for GPUs: give --kv fp32")
    return found
