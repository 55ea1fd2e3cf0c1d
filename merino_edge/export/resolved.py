"""A request for an export, resolved against its loaded source before any work: defaults applied, impossible requests
refused.

`request` checks what needs no torch. The same checks run here for callers from Python.
"""

from pathlib import Path
from typing import NamedTuple

import tokenizers

from merino_edge.bundles.description import GraphFormat
from merino_edge.bundles.files import described, is_bundle
from merino_edge.export.chat import BundleChat, chat_of
from merino_edge.export.memory import IMPORTS_MB, check_memory, weights_mb
from merino_edge.export.request import LEAST_CONTEXT, ROUNDED, ExportRequest, chosen_format
from merino_edge.export.source import Source
from merino_edge.storage.atomic import check_keeps
from merino_runtime.errors import MerinoError
from merino_runtime.generation.text import Tokenizer
from merino_runtime.io.json_file import JSON, read_text

MOST_COLUMNS = 768  # of a matrix, for GPTQ on the 2,048 tokens that the model generates (docs/decisions/quantization)


class ResolvedExport(NamedTuple):
    """A request without defaults.

    Attributes:
        calibration: text for GPTQ and for the scales of a quantized cache; None: text that the model generates.
        chat: the chat template's entry in bundle.json; None: the bundle has none.
        template: the template's text; None: the bundle has none.
        gptq: whether weights are rounded by GPTQ.
        eight_bits: names of the matrices of an int4 export that get 8 bits.
    """

    form: GraphFormat
    calibration: Path | None
    chat: BundleChat | None
    template: str | None
    gptq: bool
    eight_bits: frozenset[str] = frozenset()


def resolve(request: ExportRequest, source: Source, out: Path) -> ResolvedExport:
    """`request` names one precision, or none. Raises MerinoError for a request that is not possible."""
    precision, dialect, core, kv, by_groups = chosen_format(request, source.design)
    context = chosen_context(source, request.context)
    form = GraphFormat(precision, dialect, context, core, kv, request.all_logits, by_groups)
    check_replaces(source, out, request.overwrite)
    check_readable(source)
    template = source.chat if request.chat else None
    resolved = ResolvedExport(
        form, request.calibration, chat_of(template) if template else None, template.text if template else None,
        precision in ROUNDED and request.calibration is not None or precision == "int4" and gptq_pays(source),
    )  # fmt: skip
    check_memory(source.arch, source.name, precision, IMPORTS_MB + weights_mb(source.arch), resolved.gptq)
    return resolved


def gptq_pays(source: Source) -> bool:
    """Whether int4 is rounded by GPTQ without a text from the user: trained float weights, of matrices so narrow that
    the text that the model generates tells enough of their inputs."""
    columns = max(op.columns for op in source.arch.operators if op.kind == "linear" and op.own)
    return source.weights == "trained" and source.blocks is None and columns <= MOST_COLUMNS


def chosen_context(source: Source, context: int | None) -> int:
    """The bundle's context in tokens. Raises MerinoError, with what is allowed, for one that the model cannot have."""
    longest = source.arch.context
    if context is not None and not LEAST_CONTEXT <= context <= longest:
        raise MerinoError(
            f"--context {context} is not allowed: {source.name} takes {LEAST_CONTEXT} to {longest} tokens"
        )
    return context or longest


def check_readable(source: Source) -> None:
    """Raises MerinoError where the board's runtime cannot read the source's tokenizer, or its largest id is outside the
    model's vocabulary."""
    if source.tokenizer is None:
        return
    if isinstance(source.tokenizer, str):
        where, text = f"the tokenizer of {source.name}", source.tokenizer
    else:
        where, text = str(source.tokenizer), read_text(str(source.tokenizer), JSON, "Copy the checkpoint again.")
    Tokenizer(text, where)
    largest = max(tokenizers.Tokenizer.from_str(text).get_vocab().values(), default=0)
    if largest >= source.arch.vocab:
        raise MerinoError(
            f"{where} has a token {largest}, and {source.name} has a vocabulary of {source.arch.vocab}: they do not"
            " belong together. Copy both again from one place"
        )


def check_replaces(source: Source, out: Path, overwrite: bool) -> None:
    """Raises MerinoError where `out` may not be replaced: it is the source itself, or random weights would replace ones
    that may be trained."""
    check_keeps(out, [Path(source.bundle.folder)] if source.bundle else [])
    there = described(out)
    kind, origin = there.get("weights", "unknown"), there.get("weights_source", "bundle.json is damaged")
    if source.weights == "random" and is_bundle(out) and kind != "random" and not overwrite:
        raise MerinoError(
            f"{out} holds {kind} weights ({origin}), and those of {source.name} are random: choose another -o, or give"
            " --overwrite to replace them"
        )
