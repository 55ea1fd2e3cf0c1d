"""The command `deploy`: `export`, `pack` and `flash` in a row, from a model to a board that answers."""

import hashlib
import shlex
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from merino_edge.cli.deliver import flash, flash_boards, only_place
from merino_edge.cli.options import HOST
from merino_edge.cli.terminal import put, say, working
from merino_runtime.delivery.verbs import ANY_BOARD
from merino_runtime.errors import MerinoError

if TYPE_CHECKING:
    from merino_edge.delivery.ssh.board import Facts
    from merino_edge.delivery.ssh.connect import Board
    from merino_edge.families.geometry import Geometry
    from merino_edge.profiles.profile import DeviceProfile

MODULES = ["numpy", "onnxruntime", "tokenizers"]
WhereOption, TrustOption, ThenOption = (
    partial(typer.Option, rich_help_panel=panel) for panel in ("Where", "Trust", "Then")
)


class Target(NamedTuple):
    """The board. `facts`: of a running board; None for a system that boots later. `ready`: whether its own Python has
    the packages."""

    profile: "DeviceProfile"
    facts: "Facts | None" = None
    ready: bool = False


def deploy(
    source: Annotated[str, typer.Argument(help="what `export` takes: a GGUF file, a checkpoint, a model's name; or a"
                                               " finished bundle")],
    ssh: Annotated[str | None, WhereOption(metavar=HOST, help="running board to install on")] = None,
    image: Annotated[Path | None, WhereOption(help="disk image of a system: FILE.img or FILE.img.xz")] = None,
    rootfs: Annotated[Path | None, WhereOption(help="root file system of a board, mounted or staged")] = None,
    board_name: Annotated[str | None, WhereOption(
        "--board", help="board id or profile; needed without --ssh, and for a board that no profile names"
    )] = None,
    precision: Annotated[str, typer.Option(
        help="weight format: int4, int8, fp32 or fp16; auto: the fastest that keeps 95 % of the model's answers"
    )] = "auto",
    sign: Annotated[Path | None, TrustOption(
        metavar="NAME.key", help="private key that signs, with NAME.pub beside it; default: a key of yours, made at the"
        " first use"
    )] = None,
    yes: Annotated[bool, TrustOption(
        "--yes", help="at the first contact, trust the board's host key and let it trust yours, without questions"
    )] = False,
    chat: Annotated[bool, ThenOption("--chat", help="chat with the model on the board")] = False,
    serve: Annotated[bool, ThenOption(
        "--serve", help="as root: serve it on port 8080 of the board at each boot"
    )] = False,
) -> None:  # fmt: skip
    """Bring a model onto a board in one step: export for it, pack, install, test and measure there."""
    from merino_edge.cli.board_verbs import called
    from merino_edge.cli.over_ssh import let_trust
    from merino_edge.cli.record_tables import speeds_ms
    from merino_edge.delivery.first_boot import checked_root
    from merino_edge.delivery.keys import own_key
    from merino_edge.delivery.pack import pack
    from merino_edge.delivery.root_tree import FolderTree, root_facts
    from merino_edge.storage.atomic import cache_folder
    from merino_edge.text.documents import check_files
    from merino_runtime.bundle import load_bundle
    from merino_runtime.delivery.keys import SUFFIX

    # 1. The board, and the key that signs, before minutes of work.
    place = only_place("deploy", ssh=ssh, image=image, rootfs=rootfs)
    if not ssh and (chat or serve):
        raise MerinoError(f"--chat and --serve go with --ssh, not {place}: leave them out")
    target = target_of(ssh, board_name, yes)
    if rootfs:
        root_facts(FolderTree(checked_root(rootfs)))
    check_files([image] if image else [], "--image")
    private, public = (sign, sign.with_suffix(SUFFIX)) if sign else own_key(say)
    trust = [public] if let_trust(ssh, target.facts, public, yes) else []
    # 2. The bundle, from the cache if this source was exported for this board before.
    folder = bundle_for(source, target.profile, precision)
    bundle = load_bundle(str(folder), verify=False)
    # 3. The package, with wheels unless the board's own Python has the packages.
    file = cache_folder() / "deploy" / f"{bundle.name.replace('/', '--')}.merino"
    with working(f"packing {file.name}"):
        packed = pack([folder], file, [target.profile], with_wheels=not target.ready, key=private, say=say)
    say(f"{file}: {packed.size_bytes / 2**20:,.1f} MB, {'without' if target.ready else 'with'} Python packages")
    # 4. The board gets it.
    if not ssh:
        flash(file, rootfs=rootfs, image=image, trust=trust)
        return
    # A board that is only like the profile's has another model, which the package would refuse.
    is_like = target.facts is not None and target.facts.profile != target.profile
    done, = flash_boards(
        file, [ssh], dry_run=False, keys=trust, service=serve, serve=serve, allow=[ANY_BOARD] * is_like, quick=True
    )
    for note in done.notes:
        say(f"note: {note}")
    if done.error:
        raise MerinoError(f"{ssh}: {done.error}")
    measured, predicted = speeds_ms(done, target.profile)
    speeds = [
        f"{what} {ms:,.1f} ms" + (f" (predicted {predicted[what]:,.1f})" if what in predicted else "")
        for what, ms in measured.items()
    ]
    rate = f": {1e3 / measured['decode']:,.1f} tokens/s" if measured.get("decode") else ""
    put(f"{ssh} runs {done.bundle} in {done.precision}{rate}; {', '.join(speeds) or 'not measured'}")
    verb = "chat" if bundle.chat else "generate"
    words = ["installed", "--ssh", ssh]
    put(f"to talk to it: merino-edge {verb} {shlex.join(words)}")
    raise typer.Exit(called(verb, words) if chat else 0)


def target_of(ssh: str | None, board_name: str | None, yes: bool) -> Target:
    """Ask a running board what it is. Raise MerinoError if no profile names it and no --board does."""
    from merino_edge.calibration.board import board as named

    if ssh is None:
        if board_name is None:
            raise MerinoError("--board is missing: name the board that will start from it (`merino-edge devices`)")
        return Target(named(board_name, say))
    from merino_edge.cli.over_ssh import on_board
    from merino_edge.delivery.ssh.board import PYTHON, described, profile_of, python_with

    async def look(board: "Board") -> "tuple[Facts, bool]":
        return await described(board), await python_with(board, [PYTHON], MODULES) is not None

    facts, ready = on_board(ssh, look, f"asking {ssh} what it is", yes)
    profile = named(board_name, say) if board_name is not None else profile_of(ssh, facts)
    say(f"{ssh}: {facts.model}, planned as {profile.name}")
    return Target(profile, facts, ready)


def bundle_for(source: str, profile: "DeviceProfile", precision: str) -> Path:
    """Return the bundle of `source` for a board: itself if it is a quantized one, else an export, kept in the cache by
    the source's content. Raise MerinoError as `export` does, and if no format fits into the memory."""
    from merino_edge.bundles.files import is_bundle
    from merino_edge.bundles.source_name import DesignFile, describe, find_source, published
    from merino_edge.cli.export import print_export
    from merino_edge.export.request import ExportRequest
    from merino_edge.families.hub import fetch
    from merino_edge.families.zoo import Model
    from merino_edge.prediction.shape import default_lengths
    from merino_edge.storage.atomic import cache_folder
    from merino_edge.storage.digest import content_digest, exporter_digest
    from merino_runtime.bundle import load_bundle

    # 1. The source, fetched once if it is on the hub.
    found = find_source(source)
    if isinstance(found, DesignFile):
        raise MerinoError(f"{source} has no weights: make a checkpoint with `merino-edge train {source} --data TEXT`")
    if isinstance(found, Path) and is_bundle(found) and load_bundle(str(found)).precision != "fp32":
        return found
    model = published(found)
    path = fetch(model, say) if model else found
    assert isinstance(path, Path)
    with working(f"reading {source}"):
        decoder = describe(str(path))
    name = found.id if isinstance(found, Model) else source.rpartition("/")[2] if model else decoder.name
    # 2. What fits the board.
    slots = min(default_lengths(profile, None, None)[0], decoder.geometry.context)
    formats = fitting_formats(decoder.geometry, profile, slots)
    if precision != "auto" and precision not in formats:
        raise MerinoError(f"--precision {precision} is not for {profile.name}: choose auto, {', '.join(formats)}")
    # 3. The export, unless it is in the cache.
    key = "\n".join([content_digest(path), precision, str(slots), profile.model_dump_json(), exporter_digest()])
    stem = f"{name.replace('/', '--')}-{profile.id}-"
    folder = cache_folder() / "deploy" / f"{stem}{hashlib.sha256(key.encode()).hexdigest()[:16]}" / "bundle"
    if is_bundle(folder):
        say(f"exported before: {folder}")
        return folder
    from merino_edge.export.export import export  # imports torch
    from merino_edge.export.source import load_source

    request = ExportRequest(precision=precision, board=profile, context=slots)
    with working(f"exporting {source}") as progress:
        loaded = load_source(str(path), say=say)
        if model:
            loaded = loaded._replace(name=name, weights_source=f"hub {model.name}", design=None)
        print_export(export(loaded, folder, request, last_use=True, say=say, progress=progress), request)
    for older in folder.parents[1].glob(f"{stem}*"):  # of another content, or by an earlier exporter
        if older != folder.parent:
            shutil.rmtree(older, ignore_errors=True)
    return folder


def fitting_formats(decoder: "Geometry", profile: "DeviceProfile", context: int) -> list[str]:
    """Predict and print the costs of each format. Raise MerinoError if the board's free memory holds none of them."""
    from merino_edge.cli.recommend import costs_of
    from merino_edge.design.budgets import surely_over

    fitting, free_mb = [], profile.memory.free_mb.value
    for name, cost in costs_of(profile, decoder, context).items():
        fits = not surely_over({"memory_mb": free_mb}, cost)
        fitting += [name] * fits
        verdict = f"{1e3 / cost.decode_ms:,.1f} tokens/s" if fits else f"too large: {free_mb:,.0f} MB are free"
        say(f"{name} on {profile.name}, predicted: {cost.memory_mb:,.0f} MB, {verdict}")
    if not fitting:
        raise MerinoError(f"no format fits: `merino-edge recommend --board {profile.id}` lists models that do")
    return fitting
