"""`flash`: install a package on boards over ssh, or write it into the root file system or image that a board boots."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from merino_edge.cli.options import HOST, AcceptNew, Json
from merino_edge.cli.terminal import put, say
from merino_runtime.errors import MerinoError

if TYPE_CHECKING:  # imports asyncssh
    from merino_edge.delivery.ssh.flash import Flashed


def flash(
    file: Annotated[Path, typer.Argument(metavar="NAME.merino", help="package made by `pack`")],
    ssh: Annotated[
        list[str] | None, typer.Option(metavar=HOST, help="running board to install on; repeat for more")
    ] = None,
    rootfs: Annotated[Path | None, typer.Option(help="root file system of a board, mounted or staged")] = None,
    image: Annotated[Path | None, typer.Option(help="disk image of a system: FILE.img or FILE.img.xz")] = None,
    at_once: Annotated[
        int | None, typer.Option(min=1, max=64, help="with --ssh: number of boards in parallel; default: 4")
    ] = None,
    accept_new: AcceptNew = False,
    root: Annotated[
        str | None, typer.Option(help="with --ssh: folder of releases on the board; default: as `install`")
    ] = None,
    trust: Annotated[
        list[Path] | None, typer.Option(metavar="KEY.pub", help="public key to trust from now on; repeat for more")
    ] = None,
    allow_unsigned: Annotated[bool, typer.Option("--allow-unsigned", help="accept an unsigned package")] = False,
    allow_downgrade: Annotated[
        bool, typer.Option("--allow-downgrade", help="with --ssh: accept a package older than one that was installed")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="with --ssh: install even if the package is for another board or slow on it")
    ] = False,
    service: Annotated[
        bool, typer.Option("--service", help="with --ssh as root: test the release at each boot, roll back if it fails")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="as --service, and serve the release on port 8080 of the board itself")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be done, and change nothing")] = False,
    as_json: Json = False,
) -> None:
    """Install a package on boards over ssh, tested and measured there; or write it into a system that boots later."""
    places = {"--ssh": bool(ssh), "--rootfs": rootfs, "--image": image}
    targets = [name for name, value in places.items() if value]
    if len(targets) != 1:
        raise MerinoError(f"flash has {' and '.join(targets) or 'no place'}: give one of {', '.join(places)}")
    if ssh:
        done = flash_boards(
            file, ssh, at_once=at_once or 4, accept_new=accept_new, dry_run=dry_run, keys=trust or (),
            allow_unsigned=allow_unsigned, allow_downgrade=allow_downgrade, force=force, service=service or serve,
            serve=serve, root=root,
        )  # fmt: skip
        show_flashed(done, dry_run, as_json)
        raise typer.Exit(1 if any(board.error for board in done) else 0)
    if root or force or accept_new or at_once or service or serve or allow_downgrade:
        raise MerinoError(
            "--root, --force, --accept-new, --at-once, --service, --serve and --allow-downgrade go with --ssh, not with"
            f" {targets[0]}: leave them out"
        )
    from merino_edge.delivery.first_boot import flash_rootfs
    from merino_edge.delivery.image import finished_image, flash_image

    options: Any = {"trust": trust or (), "allow_unsigned": allow_unsigned, "dry_run": dry_run, "report": say}
    steps = flash_rootfs(file, rootfs, **options) if rootfs else flash_image(file, cast(Path, image), **options)
    for line in [json.dumps(steps)] if as_json else steps:
        put(line)
    if not dry_run:
        place = rootfs or finished_image(cast(Path, image))
        say(f"done: {file.name} is in {place}; the board that starts from it installs it")


def flash_boards(
    file: Path, ssh: list[str], *, at_once: int, accept_new: bool, dry_run: bool, keys: Sequence[Path], **options: Any
) -> "list[Flashed]":
    """Check the package, then install it on the boards. `options`: those of `package`, such as `root` and `force`."""
    from merino_edge.cli.terminal import boards_progress, working
    from merino_edge.delivery.ssh.address import parse_addresses
    from merino_edge.delivery.ssh.flash import flash_all, package

    addresses = parse_addresses(ssh)
    with working(f"checking {file}"):
        checked = package(file, keys, report=say, **options)
    with boards_progress() as report:
        return asyncio.run(flash_all(
            addresses, checked, at_once=at_once, accept_new=accept_new, dry_run=dry_run, report=report, say=say
        ))  # fmt: skip


def show_flashed(done: "list[Flashed]", dry_run: bool, as_json: bool) -> None:
    """Print the summary to stdout, the boards' notes and errors to stderr."""
    from merino_edge.cli.record_tables import flashed_json, flashed_table
    from merino_edge.cli.tables import show
    from merino_runtime.io.visible import visible

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
