"""`export`: a model of any source to a bundle, in one dialect and format, for a board or for all."""

from pathlib import Path
from typing import Annotated

import typer

from merino_edge.cli.options import Kv
from merino_edge.cli.terminal import put, say
from merino_runtime.errors import MerinoError


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
    from merino_edge.bundles.files import bundle_bytes, is_bundle_alone
    from merino_edge.calibration.board import board
    from merino_edge.cli.record_tables import matrices_line, matrix_table
    from merino_edge.cli.tables import show
    from merino_edge.cli.terminal import working
    from merino_edge.export.request import (
        ROUNDED,
        check_calibration,
        check_context,
        check_text,
        chosen_cache,
        chosen_precision,
        design_of,
        find_source,
        needs_text,
        published,
        target_of,
    )
    from merino_edge.families.hub import fetch
    from merino_edge.families.names import resolve
    from merino_edge.storage.atomic import check_folder, check_keeps
    from merino_edge.text.documents import check_files, read_documents
    from merino_runtime.bundle import cache_formats

    place = resolve(source)
    for option, file in (("--text", text), ("--calibrate", calibrate)):
        if file:
            check_files([file], option)
            read_documents([file], option)
    check_keeps(out, [Path(each) for each in (weights, text, calibrate, place) if isinstance(each, str | Path)])
    check_folder(out, is_bundle_alone)
    asked = find_source(source, weights)
    check_text(asked, weights)
    check_context(context, asked)
    design = design_of(asked)
    profile = board(board_name, say) if board_name else None
    target = target_of(dialect, profile, design)
    auto = precision == "auto"
    if auto and profile is None:
        raise MerinoError("--precision auto takes the fastest format on a board: name it with --for")
    form = chosen_precision(target.dialect, "fp32" if auto else precision, design)
    cache = chosen_cache(kv, target.dialect, form, design=design, board=profile)
    if not auto:
        check_calibration(form, cache, calibrate)
    hub_model = published(asked, weights)
    if auto and hub_model and not text:
        raise MerinoError(needs_text())
    if hub_model:
        with working(f"fetching {hub_model.name}"):
            fetch(hub_model, say)
    # These load torch.
    from merino_edge.export.calibration_text import check_text as check_readable_text
    from merino_edge.export.export import export as run
    from merino_edge.export.settled import chosen_context
    from merino_edge.export.source import load_source

    with working(f"exporting {source}"):
        found = load_source(source, weights)
        if text and not auto:
            check_readable_text(found, text, chosen_context(found, context), "Export without --text")
        if auto:
            from merino_edge.export.fastest_format import export_fastest

            assert profile is not None
            done = export_fastest(
                found, out, profile, target, text, say, context=context, overwrite=overwrite, chat=not no_chat, kv=kv,
                calibration=calibrate,
            )  # fmt: skip
        else:
            done = run(
                found, out, dialect=target.dialect, core=target.core, precision=precision, context=context,
                overwrite=overwrite, chat=not no_chat, last_use=True, kv=kv, calibration=calibrate,
            )  # fmt: skip
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
    if text:
        from merino_edge.text.perplexity import bundle_perplexity

        with working(f"reading {text.name}"):
            read = bundle_perplexity(out, text)
        put(f"perplexity {read.perplexity:.3f} over {read.tokens} tokens of {text.name}, by the board's runtime")
