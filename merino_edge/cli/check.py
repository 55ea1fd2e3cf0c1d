"""`merino-edge check`: what a version of TensorRT refuses in a bundle's graph."""

import json
from collections import Counter
from typing import Annotated

import typer

from merino_edge.cli.options import Json
from merino_edge.cli.terminal import put, say

SCHEMA = 1
SHOWN = 20  # kinds of problems; --json has all


def check(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="its folder, or `embedded`")],
    tensorrt: Annotated[str, typer.Option(metavar="VERSION", help="8.2 (JetPack 4.6) or 10.3 (JetPack 6)")],
    chunk: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="new tokens of a prefill; default: the context")
    ] = None,
    as_json: Json = False,
) -> None:
    """Does TensorRT's parser take this graph? If not, each node with what is wrong, and exit 1. Builds nothing."""
    from merino_edge.export.tensorrt.check import check_bundle
    from merino_edge.families.names import bundle_path
    from merino_runtime.bundle import load_bundle

    loaded = load_bundle(bundle_path(bundle))
    found = check_bundle(loaded, tensorrt, chunk)
    if as_json:
        print(json.dumps({
            "schema": SCHEMA, "bundle": loaded.name, "tensorrt": found.version, "opset": found.opset,
            "nodes": found.nodes, "lengths": found.lengths, "problems": [each._asdict() for each in found.problems],
        }, indent=1))  # fmt: skip
    elif not found.problems:
        lengths = " and ".join(f"{length:,}" for length in found.lengths)
        put(
            f"{loaded.name}: the parser of TensorRT {found.version} takes its graph: {found.nodes:,} nodes of opset"
            f" {found.opset}, {lengths} new tokens"
        )
    else:
        kinds = Counter((each.operator, each.what) for each in found.problems)
        first = {(each.operator, each.what): each.node for each in reversed(found.problems)}
        for (operator, what), count in list(kinds.items())[:SHOWN]:
            more = f" and {count - 1} more" if count > 1 else ""
            put(f"{first[operator, what]}{more}{f' ({operator})' if operator else ''}: {what}")
        hidden = f"; {len(kinds) - SHOWN} more kinds of problems stand in --json" if len(kinds) > SHOWN else ""
        remedy = "" if loaded.dialect == "portable" and loaded.precision in ("fp32", "fp16") else (
            "; TensorRT takes graphs of `merino-edge export --dialect portable` in fp32 or fp16")  # fmt: skip
        say(f"merino-edge: {loaded.name} is not for TensorRT {found.version}{hidden}{remedy}")
    if found.problems:
        raise typer.Exit(1)
