"""The commands `keygen`, `pack` and `check`, which write and check files for boards."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from merino_edge.cli.options import Json
from merino_edge.cli.terminal import put, say, working


def keygen(
    out: Annotated[Path, typer.Option("-o", metavar="NAME", help="output: NAME.key (private) and NAME.pub (public)")],
) -> None:
    """Generate an Ed25519 key pair: `pack --sign NAME.key` here, `install --trust NAME.pub` on boards."""
    from merino_edge.delivery.keys import make_key

    private, public = make_key(out)
    say(f"wrote {private}, which must stay secret, and {public}, which boards are to trust")


def pack(
    bundles: Annotated[
        list[str], typer.Argument(metavar="BUNDLE", help="one model in one or more formats, the preferred one first")
    ],
    out: Annotated[Path, typer.Option("-o", metavar="NAME.merino", help="output path of the package")],
    device: Annotated[
        list[str] | None, typer.Option(help="board id or profile that may install it; repeat for more; default: any")
    ] = None,
    wheels: Annotated[
        bool, typer.Option("--wheels", help="include the Python wheels, so that boards need no network")
    ] = False,
    sign: Annotated[Path | None, typer.Option(metavar="NAME.key", help="private key that signs the package")] = None,
    counter: Annotated[
        int | None,
        typer.Option(help="rollback counter: boards refuse a signed package with a lower one; default: the time"),
    ] = None,
    withdraw: Annotated[
        list[Path] | None, typer.Option(metavar="NAME.pub", help="boards stop trusting this key; repeat for more")
    ] = None,
    as_json: Json = False,
) -> None:
    """Pack bundles into one package, which a board verifies and installs."""
    from merino_edge.calibration.board import board
    from merino_edge.delivery.pack import pack as run
    from merino_edge.families.names import bundle_path

    folders = [Path(bundle_path(name)) for name in bundles]
    devices = [board(name, say) for name in dict.fromkeys(device or ())]
    with working(f"packing {out.name}"):
        packed = run(
            folders, out, devices, wheels, key=sign, say=say, counter=counter, withdraw=withdraw or ()
        )
    if as_json:
        print(json.dumps({"path": str(out), "id": packed.id, "bytes": packed.size_bytes, "signed": packed.signed,
                          "counter": packed.manifest.counter}))  # fmt: skip
        return
    boards = ", ".join(need.id for need in packed.manifest.boards) or "any board"
    pythons = ", ".join(f"Python {wheels.python} ({wheels.architecture})" for wheels in packed.manifest.wheels)
    size_mb = packed.size_bytes / 2**20
    put(f"{out}: release {packed.id}, {size_mb:.1f} MB, for {boards}; packages for {pythons or 'none'}")
    if not packed.signed:
        say("it is not signed: boards install it with --allow-unsigned only")


SCHEMA = 1
SHOWN = 20  # kinds of problems; --json has all


def check(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="bundle folder, or `embedded`")],
    tensorrt: Annotated[
        str, typer.Option(metavar="VERSION", help="TensorRT version: 8.2 (JetPack 4.6) or 10.3 (JetPack 6)")
    ],
    as_json: Json = False,
) -> None:
    """Check that TensorRT's parser supports the graph; else list unsupported nodes and exit 1. Builds no engine."""
    from merino_edge.bundles.tensorrt import check_bundle
    from merino_edge.families.names import bundle_path
    from merino_runtime.bundle import load_bundle

    loaded = load_bundle(bundle_path(bundle))
    result = check_bundle(loaded, tensorrt)
    if as_json:
        print(json.dumps({
            "schema": SCHEMA, "bundle": loaded.name, "tensorrt": result.version, "opset": result.opset,
            "nodes": result.nodes, "problems": [problem._asdict() for problem in result.problems],
        }, indent=1))  # fmt: skip
    elif not result.problems:
        put(
            f"{loaded.name}: the parser of TensorRT {result.version} takes its graph: {result.nodes:,} nodes of opset"
            f" {result.opset}"
        )
    else:
        kinds = Counter((problem.operator, problem.what) for problem in result.problems)
        first = {(problem.operator, problem.what): problem.node for problem in reversed(result.problems)}
        for (operator, what), count in list(kinds.items())[:SHOWN]:
            more = f" and {count - 1} more" if count > 1 else ""
            put(f"{first[operator, what]}{more}{f' ({operator})' if operator else ''}: {what}")
        hidden = f"; {len(kinds) - SHOWN} more kinds of problems stand in --json" if len(kinds) > SHOWN else ""
        remedy = "" if loaded.dialect == "portable" and loaded.precision in ("fp32", "fp16") else (
            "; TensorRT takes graphs of `merino-edge export --dialect portable` in fp32 or fp16")  # fmt: skip
        say(f"merino-edge: {loaded.name} is not for TensorRT {result.version}{hidden}{remedy}")
    if result.problems:
        raise typer.Exit(1)
