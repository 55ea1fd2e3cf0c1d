"""`flash`: a packed file onto boards."""

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from merino_edge.cli.options import HOST, AcceptNew, Json
from merino_runtime.errors import MerinoError


def flash(
    file: Annotated[Path, typer.Argument(metavar="NAME.merino", help="the packed file, of `pack`")],
    ssh: Annotated[
        list[str] | None, typer.Option(metavar=HOST, help="a board; repeat for more")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, max=64, help="so many boards at a time")] = 4,
    accept_new: AcceptNew = False,
    root: Annotated[str | None, typer.Option(help="folder of releases on the board; default: `install`'s")] = None,
    trust: Annotated[
        list[Path] | None, typer.Option(metavar="KEY.pub", help="the boards trust this key from now on")
    ] = None,
    allow_unsigned: Annotated[bool, typer.Option("--allow-unsigned", help="a file that nobody signed")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="also on another board than it was packed for, or where it will be slow")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done, and change nothing")] = False,
    as_json: Json = False,
) -> None:
    """Install a packed file on boards over ssh; test it there and measure it beside the prediction."""
    if not ssh:
        raise MerinoError("flash needs a board: give --ssh [USER@]HOST[:PORT]")
    from merino_edge.cli.terminal import boards_progress, say, working
    from merino_edge.delivery.extra import needed

    needed("asyncssh")
    from merino_edge.delivery.ssh.address import parse_addresses
    from merino_edge.delivery.ssh.flash import flash_all, parcel

    addresses = parse_addresses(ssh)
    with working(f"checking {file}"):
        goods = parcel(file, trust or (), allow_unsigned=allow_unsigned, force=force, root=root, tell=say)
    with boards_progress() as tell:
        done = asyncio.run(
            flash_all(
                addresses, goods, at_once=at_once, accept_new=accept_new, dry_run=dry_run, tell=tell, say=say
            )
        )
    show_flashed(done, dry_run, as_json)
    raise typer.Exit(1 if any(one.error for one in done) else 0)


def show_flashed(done: list[Any], dry_run: bool, as_json: bool) -> None:
    """The summary on stdout, what boards had to say on stderr."""
    from merino_edge.cli.tables.flash import flashed_json, flashed_table
    from merino_edge.cli.tables.layout import show
    from merino_edge.cli.terminal import say
    from merino_edge.delivery.ssh.visible import visible

    if as_json:
        print(json.dumps([flashed_json(one) for one in done]))
        return
    for one in done:
        for line in one.plan:
            print(f"{one.host}: {visible(line)}")
        for note in one.notes:
            say(f"note: {one.host}: {note}")
    if not dry_run:
        show(flashed_table(done))
    for one in done:
        if one.error:
            say(f"{one.host}: {one.error}")
