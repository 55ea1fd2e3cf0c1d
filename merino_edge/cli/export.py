"""`export`: a model of any source to a bundle, in one dialect and format, for a board or for all."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merino_edge.cli.options import Kv
from merino_edge.cli.terminal import put, say

if TYPE_CHECKING:
    from merino_edge.export.one_format import Exported
    from merino_edge.export.request import ExportRequest

def export(
    source: Annotated[str, typer.Argument(help="folder, GGUF, name of the hub or catalogue, design.json, ...")],
    out: Annotated[Path, typer.Option("-o", help="the bundle's folder")],
    precision: Annotated[
        str | None, typer.Option(help="format of the weights; default: the design's, or fp32; auto: the fastest on the"
                                 " board of --for that keeps the perplexity of --text")
    ] = None,
    board_name: Annotated[
        str | None, typer.Option("--for", metavar="BOARD", help="a graph for this board's runtime and kind of core")
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="fused: ONNX Runtime 1.18 and later, the default; portable: 1.10 and TensorRT,"
                                 " the default for their boards and designs")
    ] = None,
    context: Annotated[int | None, typer.Option(help="KV slots; default: the model's context")] = None,
    kv: Kv = None,
    weights: Annotated[Path | None, typer.Option(help="of a catalogue's name: a folder, or random")] = None,
    text: Annotated[Path | None, typer.Option(help="measure the bundle's perplexity on this text")] = None,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="TEXT", help="round weights, and find the scales of --kv, so that the model"
                                  " changes least on it")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="random weights may replace trained ones")] = False,
    no_chat: Annotated[bool, typer.Option("--no-chat", help="without the model's chat template")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="list quantised matrices with their errors")] = False,
) -> None:
    """Export to an ONNX bundle with KV cache, and prove it equal to torch."""
    from merino_edge.calibration.board import board
    from merino_edge.cli.terminal import working
    from merino_edge.export.named import export_named
    from merino_edge.export.request import ExportRequest

    request = ExportRequest(
        precision=precision, board=board(board_name, say) if board_name else None, dialect=dialect, kv=kv,
        context=context, calibration=calibrate, text=text, chat=not no_chat, overwrite=overwrite,
    )  # fmt: skip
    with working(f"exporting {source}"):
        done = export_named(source, out, request, weights, say)
    print_export(done, request, verbose)


def print_export(done: "Exported", request: "ExportRequest", verbose: bool) -> None:
    """`verbose`: with a row for each quantised matrix."""
    from merino_edge.bundles.files import bundle_bytes
    from merino_edge.cli.tables.bundles import matrices_line, matrix_table
    from merino_edge.cli.tables.layout import show
    from merino_edge.export.request import ROUNDED
    from merino_runtime.bundle import cache_formats

    out, calibrate, text = done.folder, request.calibration, request.text
    made = done.bundle
    put(
        f"{out}: {made.name}, {made.dialect} {made.precision}, cache of {cache_formats(made)},"
        f" {made.params / 1e6:.1f} M parameters"
        f" ({made.weights} weights), {bundle_bytes(out) / 2**20:.1f} MB;"
        f" {'worst logit' if made.precision == 'fp32' else 'root mean square'} against torch with the same weights"
        f" {done.error:.1e} relative, over prefill and {done.steps} steps"
        f"{'' if done.unrounded is None else f', {done.unrounded:.1e} of the worst logit with float activations'};"
        f" fits {', '.join(made.boards) or 'no board of ours'}"
    )
    for slower in made.slower_on:
        put(f"on {slower.board} {slower.times:g} times slower than an export with --for {slower.board}")
    if done.cache_rise is not None:
        on = calibrate or "what the model itself writes"
        put(f"the cache of {cache_formats(made)} changes the perplexity of {on} by {done.cache_rise:+.2%}")
    for each in done.stored:
        say(f"{each.kind}: {each.exact} matrices taken over exactly, {each.requantised} quantised again")
    if done.note:
        say(f"{done.note}, by {calibrate or 'what the model itself writes'}; in float32 it computes what it did")
    if calibrate and made.precision in ROUNDED:
        say(f"{done.calibrated} matrices were rounded for {calibrate.name}; blocks of the source are as they were")
    if made.chat:
        needed = f"jinja2 on the board, since {done.why_jinja}" if done.why_jinja else "nothing but the bundle"
        put(f"it talks (`merino-edge chat {out}`): its chat template needs {needed}")
    if done.matrices and verbose:
        show(matrix_table(done.matrices))
    elif done.matrices:
        put(f"{matrices_line(done.matrices)}; --verbose lists them")
    if text and done.perplexity:
        read = done.perplexity
        put(f"perplexity {read.perplexity:.3f} over {read.tokens} tokens of {text.name}, by the board's runtime")
