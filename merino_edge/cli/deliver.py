"""The commands that bring a bundle onto boards: `check`, `keygen`, `pack` and `flash`."""

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from merino_edge.cli.options import HOST, Json
from merino_edge.cli.terminal import put, say, working
from merino_runtime.delivery.verbs import ALLOW, ALLOWED, UNSIGNED
from merino_runtime.errors import MerinoError

if TYPE_CHECKING:  # imports asyncssh
    from merino_edge.delivery.ssh.flash import Flashed

PlaceOption, TrustOption, SshOption = (
    partial(typer.Option, rich_help_panel=panel) for panel in ("One place", "Trust", "With --ssh")
)


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
    boards: Annotated[list[str] | None, typer.Option(
        "--board", metavar="BOARD", help="board or profile that may install it; repeat for more; default: any"
    )] = None,
    wheels: Annotated[
        bool, typer.Option("--wheels", help="include the Python wheels, so that boards need no network")
    ] = False,
    sign: Annotated[Path | None, typer.Option(metavar="NAME.key", help="private key that signs the package")] = None,
    withdraw: Annotated[
        list[Path] | None, typer.Option(metavar="NAME.pub", help="boards stop trusting this key; repeat for more")
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Pack bundles into one package, which a board verifies and installs."""
    from merino_edge.cli.over_ssh import board
    from merino_edge.delivery.pack import pack as run
    from merino_edge.families.names import bundle_path

    folders = [Path(bundle_path(name)) for name in bundles]
    profiles = [board(name, say) for name in dict.fromkeys(boards or ())]
    with working(f"packing {out.name}"):
        packed = run(folders, out, profiles, wheels, key=sign, say=say, withdraw=withdraw or ())
    if as_json:
        print(json.dumps({"path": str(out), "id": packed.id, "bytes": packed.size_bytes, "signed": packed.signed,
                          "counter": packed.manifest.counter}))  # fmt: skip
        return
    names = ", ".join(need.id for need in packed.manifest.boards) or "any board"
    pythons = ", ".join(f"Python {wheels.python} ({wheels.architecture})" for wheels in packed.manifest.wheels)
    size_mb = packed.size_bytes / 2**20
    put(f"{out}: release {packed.id}, {size_mb:.1f} MB, for {names}; packages for {pythons or 'none'}")
    if not packed.signed:
        say("it is not signed: boards install it with --allow unsigned only")


def check(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="bundle folder, or `embedded`")],
    tensorrt: Annotated[
        str, typer.Option(metavar="VERSION", help="TensorRT version: 8.2 (JetPack 4.6) or 10.3 (JetPack 6)")
    ],
) -> None:
    """Check that TensorRT's parser supports the graph; else list unsupported nodes and exit 1. Builds no engine."""
    from merino_edge.bundles.tensorrt import check_bundle
    from merino_edge.families.names import bundle_path
    from merino_runtime.bundle import load_bundle

    loaded = load_bundle(bundle_path(bundle))
    result = check_bundle(loaded, tensorrt)
    if not result.problems:
        put(
            f"{loaded.name}: the parser of TensorRT {result.version} takes its graph: {result.nodes:,} nodes of opset"
            f" {result.opset}"
        )
    else:
        for problem in result.problems:
            put(f"{problem.node}{f' ({problem.operator})' if problem.operator else ''}: {problem.what}")
        remedy = "" if loaded.dialect == "portable" and loaded.precision in ("fp32", "fp16") else (
            "; TensorRT takes graphs of `merino-edge export --dialect portable` in fp32 or fp16")  # fmt: skip
        say(f"merino-edge: {loaded.name} is not for TensorRT {result.version}{remedy}")
    if result.problems:
        raise typer.Exit(1)


def flash(
    file: Annotated[Path, typer.Argument(metavar="NAME.merino", help="package made by `pack`")],
    ssh: Annotated[list[str] | None, PlaceOption(
        metavar=HOST, help="running board to install on; repeat for more: four at a time"
    )] = None,
    rootfs: Annotated[Path | None, PlaceOption(help="root file system of a board, mounted or staged")] = None,
    image: Annotated[Path | None, PlaceOption(help="disk image of a system: FILE.img or FILE.img.xz")] = None,
    trust: Annotated[list[Path] | None, TrustOption(
        metavar="KEY.pub", help="public key to trust from now on; repeat for more"
    )] = None,
    allow: Annotated[list[str] | None, TrustOption(metavar="|".join(ALLOWED), help=ALLOW)] = None,
    service: Annotated[bool, SshOption(
        "--service", help="as root: test the release at each boot, roll back if it fails"
    )] = False,
    serve: Annotated[bool, SshOption(
        "--serve", help="as --service, and serve the release on port 8080 of the board itself"
    )] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be done, and change nothing")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Install a package on boards over ssh, tested and measured there; or write it into a system that boots later."""
    place = only_place("flash", ssh=ssh, rootfs=rootfs, image=image)
    allowed = allow or []
    if unknown := {*allowed} - {*ALLOWED}:
        raise MerinoError(f"--allow {min(unknown)!r} is not known: choose from {', '.join(ALLOWED)}")
    if ssh:
        done = flash_boards(
            file, ssh, keys=trust or (), allow=allowed, service=service or serve, serve=serve, dry_run=dry_run
        )
        show_flashed(done, dry_run, as_json)
        raise typer.Exit(1 if any(board.error for board in done) else 0)
    if service or serve or {*allowed} - {UNSIGNED}:
        raise MerinoError(
            f"--service, --serve and --allow downgrade or any-board go with --ssh, not with {place}: leave them out"
        )
    from merino_edge.delivery.first_boot import flash_rootfs
    from merino_edge.delivery.image import finished_image, flash_image

    options: dict[str, Any] = {
        "allow_unsigned": UNSIGNED in allowed, "dry_run": dry_run, "trust": trust or (), "report": say
    }
    steps = flash_rootfs(file, rootfs, **options) if rootfs else flash_image(file, cast(Path, image), **options)
    for line in [json.dumps(steps)] if as_json else steps:
        put(line)
    if not dry_run:
        system = rootfs or finished_image(cast(Path, image))
        say(f"done: {file.name} is in {system}; the board that starts from it installs it")


def only_place(command: str, **places: Any) -> str:
    """Return the one option that names where the package goes. Raise MerinoError if none or several were given."""
    given = [f"--{name}" for name, value in places.items() if value]
    if len(given) != 1:
        allowed = ", ".join(f"--{name}" for name in places)
        raise MerinoError(f"{command} has {' and '.join(given) or 'no place'}: give one of {allowed}")
    return given[0]


def flash_boards(file: Path, ssh: list[str], *, dry_run: bool, **options: Any) -> "list[Flashed]":
    """Check the package, then install it on the boards. `options`: those of `package`, such as `keys` and `allow`."""
    from merino_edge.cli.over_ssh import ask_about
    from merino_edge.cli.terminal import boards_progress
    from merino_edge.delivery.ssh.connect import parse_addresses
    from merino_edge.delivery.ssh.flash import flash_all, package

    addresses = parse_addresses(ssh)
    with working(f"checking {file}"):
        checked = package(file, report=say, **options)
    ask_about(ssh)
    with boards_progress() as report:
        return asyncio.run(flash_all(addresses, checked, dry_run=dry_run, report=report))


def show_flashed(done: "list[Flashed]", dry_run: bool, as_json: bool) -> None:
    """Print the summary to stdout, the boards' notes and errors to stderr."""
    from merino_edge.cli.record_tables import flashed_json, flashed_table
    from merino_edge.cli.tables import show
    from merino_runtime.io.streams import visible

    if as_json:
        print(json.dumps([flashed_json(board) for board in done]))
        return
    for board in done:
        for line in board.plan:
            put(f"{board.host}: {visible(line)}")
        for note in board.notes:
            say(f"note: {board.host}: {note}")
    if not dry_run:
        show(flashed_table(done))
    for board in done:
        if board.error:
            say(f"{board.host}: {board.error}")
