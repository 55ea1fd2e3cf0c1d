"""What is asked of an export, judged before torch is loaded: what a SOURCE names, which weight format is possible."""

from pathlib import Path
from typing import NamedTuple

from merino_edge.bundles.files import is_bundle
from merino_edge.design.design_file import DESIGN, Design, load_design, read_plan
from merino_edge.families.checkpoint import check_checkpoint, check_tokenizer
from merino_edge.families.designed import Architecture
from merino_edge.families.gguf.named import is_gguf
from merino_edge.families.hub import HubModel, hub_name
from merino_edge.families.names import resolve
from merino_edge.families.operators import Core
from merino_edge.families.zoo import Model, exportable_models
from merino_edge.prediction.formats import (
    EMPTY,
    cache_needs,
    core_of_board,
    dialect_of,
    has_cache,
    quantised_kv,
)
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.errors import MerinoError

RANDOM = Path("random")  # as --weights: no published ones
LEAST_CONTEXT = 8
ROUNDED = ("int8", "int4")  # weight formats
PRECISIONS = {"fused": ("fp32", "fp16", "int8", "int4"), "portable": ("fp32", "fp16", "int8")}


class Target(NamedTuple):
    """Which graph is written: its dialect, and for which kind of core its products of whole numbers are."""

    dialect: str
    core: Core


def target_of(dialect: str | None, board: DeviceProfile | None, design: Design | None) -> Target:
    """What was asked for, else what suits the design's backend and the board; else `fused` for cores with dotprod."""
    suits = "portable" if board and dialect_of(board) == "portable" else default_dialect(design)
    return Target(suits if dialect is None else dialect, core_of_board(board) if board else "dotprod")


class Plan(NamedTuple):
    """A file that says what to build. It has no weights."""

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
            f"{what!r} is nothing to export: give a checkpoint folder, a GGUF file, a name on the hub such as"
            f" HuggingFaceTB/SmolLM2-135M-Instruct, a design.json, an architecture's JSON, a bundle in fp32, embedded,"
            f" or {names}"
        )
    if not is_bundle(path):
        check_checkpoint(path)
    return path


def default_dialect(design: Design | None) -> str:
    """The one that the design's backend runs: TensorRT builds its engines from portable graphs alone."""
    return "portable" if design and design.backend == "tensorrt" else "fused"


def published(found: Model | HubModel | Plan | Path, weights: Path | None) -> HubModel | None:
    """The model of the hub whose files the source consists of; None where nothing is taken from there."""
    if isinstance(found, Model):
        return None if weights else HubModel(found.hub)
    return found if isinstance(found, HubModel) else None


def check_text(found: Model | HubModel | Plan | Path, weights: Path | None) -> None:
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
            f"--calibrate {text} rounds weights or a cache to int8 or int4, but the weights are {precision} and the"
            " cache is not quantised: give --precision int4 or int8, or --kv int8, or leave --calibrate out"
        )


def needs_text() -> str:
    """Why an export in the fastest format needs a text, and what helps."""
    return (
        "--precision auto measures what each format costs in perplexity: give a text that the model was not trained on"
        " with --text FILE, or name a format"
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
