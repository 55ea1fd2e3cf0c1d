"""The command `deploy`: `export`, `pack` and `flash` in a row, from a model to a board that answers."""

import asyncio
import hashlib
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from merino_edge.cli.options import ACCEPT_NEW, HOST
from merino_edge.cli.terminal import put, say, working
from merino_runtime.errors import MerinoError

if TYPE_CHECKING:
    from merino_edge.delivery.ssh.board import Facts
    from merino_edge.delivery.ssh.connect import Board
    from merino_edge.families.geometry import Geometry
    from merino_edge.prediction.cost_model import Predicted
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
    accept_new: Annotated[bool, WhereOption("--accept-new", help=ACCEPT_NEW)] = False,
    root: Annotated[str | None, WhereOption(help="with --ssh: folder of releases on the board")] = None,
    precision: Annotated[str, typer.Option(
        help="weight format: int4, int8, fp32 or fp16; auto: the fastest that keeps 95 % of the model's answers"
    )] = "auto",
    context: Annotated[int | None, typer.Option(
        help="length of the KV cache in tokens; default: the board's, or the model's if that is shorter"
    )] = None,
    sign: Annotated[Path | None, TrustOption(
        metavar="NAME.key", help="private key that signs; default: a key of yours, made at the first use"
    )] = None,
    trust: Annotated[Path | None, TrustOption(
        metavar="NAME.pub", help="public key that the board trusts from now on, without a question"
    )] = None,
    yes: Annotated[bool, TrustOption("--yes", help="let the board trust the default key without a question")] = False,
    chat: Annotated[bool, ThenOption("--chat", help="chat with the model on the board")] = False,
    serve: Annotated[bool, ThenOption(
        "--serve", help="as root: serve it on port 8080 of the board at each boot"
    )] = False,
) -> None:  # fmt: skip
    """Bring a model onto a board in one step: export for it, pack, install, test and measure there."""
    from merino_edge.cli.board_verbs import called
    from merino_edge.delivery.first_boot import flash_rootfs
    from merino_edge.delivery.image import finished_image, flash_image
    from merino_edge.delivery.keys import own_key
    from merino_runtime.bundle import load_bundle

    # 1. The board.
    places = {"--ssh": ssh, "--image": image, "--rootfs": rootfs}
    given = [name for name, value in places.items() if value]
    if len(given) != 1:
        raise MerinoError(f"deploy has {' and '.join(given) or 'no place'}: give one of {', '.join(places)}")
    if not ssh and (chat or serve or accept_new or root):
        raise MerinoError(f"--accept-new, --root, --chat and --serve go with --ssh, not {given[0]}: leave them out")
    target = target_of(ssh, board_name, accept_new, root)
    # 2. The key, before minutes of work.
    signer, public = sign, trust
    if signer is None:
        signer, own = own_key(say)
        public = trust or (own if asked(ssh, target.facts, own, yes) else None)
    # 3. The bundle, from the cache if this source was exported for this board before.
    folder = bundle_for(source, target.profile, precision, context)
    # 4. The package, and the board.
    if ssh:
        installed(ssh, target, folder, signer, public, accept_new=accept_new, serve=serve, root=root)
        verb = "chat" if load_bundle(str(folder), verify=False).chat else "generate"
        words = ["installed", "--ssh", ssh, *(["--root", root] if root else [])]
        put(f"to talk to it: merino-edge {verb} {shlex.join(words)}")
        raise typer.Exit(called(verb, words) if chat else 0)
    file = packed(target, folder, signer)
    trusted = [public] if public else []
    if rootfs:
        flash_rootfs(file, rootfs, trust=trusted, report=say)
    elif image:
        flash_image(file, image, trust=trusted, report=say)
    place = rootfs or finished_image(image or Path())
    put(f"{file.name} is in {place}; the board that starts from it installs it. There: merino chat, or merino generate")


def target_of(ssh: str | None, board_name: str | None, accept_new: bool, root: str | None) -> Target:
    """Ask a running board what it is. Raise MerinoError if no profile names it and no --board does."""
    from merino_edge.calibration.board import board as named

    if ssh is None:
        if board_name is None:
            raise MerinoError("--board is missing: name the board that will start from it (`merino-edge devices`)")
        return Target(named(board_name, say))
    from merino_edge.cli.over_ssh import on_board
    from merino_edge.delivery.ssh.board import PYTHON, facts_of, profile_of, python_with

    async def look(board: "Board") -> "tuple[Facts, bool]":
        facts = await facts_of(board, root)
        return facts, await python_with(board, [PYTHON], MODULES) is not None

    with working(f"asking {ssh} what it is"):
        facts, ready = on_board(ssh, accept_new, look)
    profile = named(board_name, say) if board_name else profile_of(ssh, facts)
    say(f"{ssh} is a {facts.model}: planned as {profile.name}")
    return Target(profile, facts, ready)


def asked(ssh: str | None, facts: "Facts | None", public: Path, yes: bool) -> bool:
    """Return whether the board is to trust the key from now on; False if it does so already. Raise MerinoError if the
    user declines, or cannot be asked."""
    from merino_runtime.delivery.keys import key_base64, read_public_key

    key = read_public_key(str(public)).key
    if facts and key_base64(key) in facts.keys:
        return False
    print_of = f"SHA256:{hashlib.sha256(key).hexdigest()[:32]}"
    if yes or not ssh:
        say(f"the board will trust the key {print_of} ({public})")
        return True
    question = f"{ssh} does not trust your key {print_of} yet. Install it there, and what it signs?"
    if not sys.stdin.isatty():
        raise MerinoError(f"{question} This is no terminal, so nobody can answer: give --yes, or --trust NAME.pub")
    if not typer.confirm(question, err=True):
        raise MerinoError("nothing was changed on the board")
    return True


def bundle_for(source: str, profile: "DeviceProfile", precision: str, context: int | None) -> Path:
    """Return the bundle of `source` for a board: itself if it is a quantized one, else an export, kept in the cache by
    the source's content. Raise MerinoError as `export` does, and if no format fits into the memory."""
    from merino_edge.bundles.files import is_bundle
    from merino_edge.cli.export import print_export
    from merino_edge.export.digest import content_digest, exporter_digest
    from merino_edge.export.named import describe, export_named
    from merino_edge.export.request import DesignFile, ExportRequest, find_source, published
    from merino_edge.families.names import resolve
    from merino_edge.prediction.shape import default_lengths
    from merino_edge.storage.atomic import cache_folder
    from merino_runtime.bundle import load_bundle

    named = resolve(source)
    path = Path(named if isinstance(named, str) else "")
    if is_bundle(path) and load_bundle(str(path)).precision != "fp32":
        return path
    found = find_source(source)
    if isinstance(found, DesignFile):
        raise MerinoError(f"{source} has no weights: make a checkpoint with `merino-edge train {source} --data TEXT`")
    if model := published(found):
        from merino_edge.families.hub import fetch  # loads torch

        path = fetch(model, say)
    decoder = describe(source)
    slots = min(default_lengths(profile, context, None)[0], decoder.geometry.context) if context is None else context
    costs = budgeted(decoder.geometry, profile, slots)
    if precision != "auto" and precision not in costs:
        raise MerinoError(f"--precision {precision} is not for {profile.name}: choose auto, {', '.join(costs)}")
    request = ExportRequest(precision=precision, board=profile, context=slots)
    key = "\n".join([content_digest(path), precision, str(slots), profile.model_dump_json(), exporter_digest()])
    stem = f"{decoder.name.replace('/', '--')}-{profile.id}-"
    folder = cache_folder() / "deploy" / f"{stem}{hashlib.sha256(key.encode()).hexdigest()[:16]}" / "bundle"
    if is_bundle(folder):
        say(f"exported before: {folder}")
        return folder
    with working(f"exporting {source}"):
        print_export(export_named(source, folder, request, None, say), request)
    for older in folder.parents[1].glob(f"{stem}*"):  # of another content, or by an earlier exporter
        if older != folder.parent:
            shutil.rmtree(older, ignore_errors=True)
    return folder


def budgeted(decoder: "Geometry", profile: "DeviceProfile", context: int) -> "dict[str, Predicted]":
    """Predict and print the costs of each format. Raise MerinoError if the board's free memory holds none of them."""
    from merino_edge.cli.score import costs_of
    from merino_edge.design.budgets import surely_over

    costs = costs_of(profile, decoder, context, None)
    free_mb = profile.memory.free_mb.value
    refused = {name: surely_over({"memory_mb": free_mb}, cost) for name, cost in costs.items()}
    for name, cost in costs.items():
        speed = f"{1e3 / cost.decode_ms:,.1f} tokens/s"
        verdict = f"too large: {free_mb:,.0f} MB are free" if refused[name] else speed
        say(f"{name} on {profile.name}, predicted: {cost.memory_mb:,.0f} MB, {verdict}")
    if all(refused.values()):
        raise MerinoError(f"no format fits: `merino-edge recommend --board {profile.id}` lists models that do")
    return {name: cost for name, cost in costs.items() if not refused[name]}


def packed(target: Target, folder: Path, signer: Path | None) -> Path:
    """Pack the bundle, with wheels unless the board's own Python has the packages -> the package, in the cache."""
    from merino_edge.delivery.pack import pack
    from merino_edge.storage.atomic import cache_folder
    from merino_runtime.bundle import load_bundle

    file = cache_folder() / "deploy" / f"{load_bundle(str(folder), verify=False).name.replace('/', '--')}.merino"
    with working(f"packing {file.name}"):
        done = pack([folder], file, [target.profile], with_wheels=not target.ready, key=signer, say=say)
    say(f"{file}: {done.size_bytes / 2**20:,.1f} MB, {'without' if target.ready else 'with'} Python packages")
    return file


def installed(
    ssh: str, target: Target, folder: Path, signer: Path | None, public: Path | None, *, accept_new: bool, serve: bool,
    root: str | None,
) -> None:
    """Install, test and measure the bundle on a running board, and print its speed. Raise MerinoError if it fails."""
    from merino_edge.cli.record_tables import speeds_ms
    from merino_edge.cli.terminal import boards_progress
    from merino_edge.delivery.ssh.connect import parse_address
    from merino_edge.delivery.ssh.flash import flash_all, package

    file = packed(target, folder, signer)
    # A board that is only like the profile's has another model, which the package would refuse.
    is_like = target.facts is not None and target.facts.profile != target.profile
    checked = package(
        file, [public] if public else [], report=say, service=serve, serve=serve, force=is_like, quick=True, root=root
    )
    with boards_progress() as report:
        done, = asyncio.run(flash_all([parse_address(ssh)], checked, accept_new=accept_new, report=report, say=say))
    for note in done.notes:
        say(f"note: {note}")
    if done.error:
        raise MerinoError(f"{ssh}: {done.error}")
    measured, predicted = speeds_ms(done)
    speeds = [f"{what} {ms:,.1f} ms (predicted {predicted.get(what, 0):,.1f})" for what, ms in measured.items()]
    rate = f": {1e3 / measured['decode']:,.1f} tokens/s" if measured.get("decode") else ""
    put(f"{ssh} runs {done.bundle} in {done.precision}{rate}; {', '.join(speeds) or 'not measured'}")
