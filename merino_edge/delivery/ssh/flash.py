"""`flash --ssh`: one packed file onto boards. Each is asked, judged here, sent the file, installs it, and is measured.

What a board says of itself is judged before the gigabytes travel: by `fit.choose`, as the board does again. Boards are
served side by side; one that fails keeps none of the others back.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merino_edge.delivery.ssh import transfer
from merino_edge.delivery.ssh.address import Address
from merino_edge.delivery.ssh.board import Facts, ask
from merino_edge.delivery.ssh.command import finished, json_of
from merino_edge.delivery.ssh.connect import Board, connected
from merino_edge.delivery.ssh.transfer import INCOMING, Source, check_name, send, source_of
from merino_edge.records.reading import parse_records
from merino_edge.records.schema import Record
from merino_runtime.bundle import sha256_of
from merino_runtime.delivery.archive import Archive, check_hashes, check_signature, open_archive, read_member
from merino_runtime.delivery.fit import Choice, choose
from merino_runtime.delivery.keys import read_public_key
from merino_runtime.delivery.manifest import APP
from merino_runtime.delivery.remote_end import PYTHON
from merino_runtime.errors import MerinoError
from merino_runtime.json_shape import integer, listed, one_of, or_null, problems_in, text
from merino_runtime.visible import visible

INSTALL_S = 3600.0  # of a Pi Zero 2 W: an environment from wheels, and the self-test of a large model
BENCH_S = 3600.0
BENCH = ("bench", "installed", "-r", "3", "-o", "jsonl")
BENCH_BYTES = 16 << 20
LONGEST_ERROR = 1200  # characters: all refusals of several bundles
STEPS = ("connecting", "asking what it is", "copying", "installing", "measuring")
INSTALLED: dict[str, Any] = {
    "schema": integer(1), "id": text, "name": text, "bundle": text, "precision": text, "python": text, "root": text,
    "launcher": text, "replaced": or_null(text), "selftest": one_of("ok"), "notes": [text],
}  # fmt: skip

# (host as given, what is being done, bytes that are copied, of how many; 0 of 0 for the rest)
Tell = Callable[[str, str, int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Parcel:
    """What goes to every board: the checked file, and how it is to be installed."""

    archive: Archive
    whole: Source
    app: Source
    keys: tuple[Source, ...] = ()
    allow_unsigned: bool = False
    force: bool = False
    root: str | None = None  # on the board; None: its default


@dataclass
class Flashed:
    """What became of one board. `error`: empty where all went well."""

    host: str
    error: str = ""
    facts: Facts | None = None
    bundle: str = ""
    precision: str = ""
    was_there: bool = False
    replaced: str | None = None
    tested: bool = False
    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plan: list[str] = field(default_factory=list)  # of a dry run


def parcel(
    path: Path, keys: Sequence[Path] = (), *, allow_unsigned: bool = False, force: bool = False,
    root: str | None = None, tell: Say = lambda _: None,
) -> Parcel:  # fmt: skip
    """Checks the packed file here: layout, signature, every hash. Raises MerinoError.

    keys: public keys' files, which the boards will trust. Without any the signature is still that of the file, and
    whether its key is trusted is the board's to judge.
    """
    archive = open_archive(str(path))
    read = [(key, read_public_key(str(key)).key) for key in keys]
    if archive.signature is None and not allow_unsigned:
        raise MerinoError(
            f"{path} has no signature, and a board refuses it: pack it with --sign, or give --allow-unsigned"
        )
    if archive.signature is not None:
        check_signature(archive, [key for _, key in read] or [archive.signature.key])
    tell(f"hashing {archive.bytes / 2**20:,.0f} MB")
    check_hashes(archive)
    content = read_member(archive, APP)
    sha256 = sha256_of(str(path))
    return Parcel(
        archive, Source(check_name(path.name), path, archive.bytes, sha256),
        source_of(f"merino-{archive.id}.pyz", content),
        tuple(source_of(check_name(key.name), key.read_bytes()) for key, _ in read), allow_unsigned, force, root,
    )  # fmt: skip


async def flash_all(
    addresses: Sequence[Address], goods: Parcel, *, at_once: int = 4, accept_new: bool = False, dry_run: bool = False,
    tell: Tell = lambda *_: None, say: Say = lambda _: None,
) -> list[Flashed]:  # fmt: skip
    """At most `at_once` boards at a time -> what became of each, in the order of `addresses`."""
    turn = asyncio.Semaphore(at_once)

    async def one(address: Address) -> Flashed:
        done = Flashed(address.text)
        async with turn:
            try:
                await flash(address, goods, done, accept_new, dry_run, tell, say)
            except MerinoError as error:
                done.error = visible(str(error).removeprefix(f"{address.text}: "), LONGEST_ERROR)
        done.notes = [visible(note) for note in done.notes]
        tell(address.text, "failed" if done.error else "done", 0, 0)
        return done

    return list(await asyncio.gather(*map(one, addresses)))


async def flash(
    address: Address, goods: Parcel, done: Flashed, accept_new: bool, dry_run: bool, tell: Tell, say: Say
) -> None:
    """Fills in `done` as far as it comes. Raises MerinoError."""
    host = address.text
    tell(host, STEPS[0], 0, 0)
    async with connected(address, accept_new, say, keep_key=not dry_run) as board:
        tell(host, STEPS[1], 0, 0)
        done.facts = await ask(board, goods.app.data, goods.root)
        choice = _choice(host, goods, done.facts)
        done.bundle, done.precision = choice.bundle.name, choice.bundle.precision
        done.notes += choice.notes
        done.was_there = done.facts.current == goods.archive.id
        if dry_run:
            done.plan = plan_of(goods, done.facts, choice)
            return
        launcher = f"{done.facts.root}/current/merino"
        if done.was_there:
            tell(host, STEPS[3], 0, 0)
            await _selftest(board, launcher)
        else:
            place = await _copy(board, goods, lambda sent, total: tell(host, STEPS[2], sent, total))
            tell(host, STEPS[3], 0, 0)
            launcher = await _install(board, goods, place, done)
        done.tested = True
        tell(host, STEPS[4], 0, 0)
        await _measure(board, launcher, done)


def plan_of(goods: Parcel, facts: Facts, choice: Choice) -> list[str]:
    """What a flash would do, in lines."""
    here = f"{facts.model}; Python {facts.machine.python}; {facts.machine.free_bytes / 2**20:,.0f} MB free"
    if facts.current == goods.archive.id:
        return [here, f"release {goods.archive.id} is installed already: it would be tested and measured"]
    wheels = f", with the wheels of {choice.wheels.path}" if choice.wheels else ", with the packages that are there"
    return [
        here,
        f"copy {goods.whole.name}, {goods.whole.size_bytes / 2**20:,.1f} MB",
        f"install {choice.path} ({choice.bundle.name}, {choice.bundle.precision}){wheels} as release {goods.archive.id}"
        f" in {facts.root}, in place of {facts.current or 'none'}",
        "test it by its golden ids, then measure it",
    ]


def _choice(host: str, goods: Parcel, facts: Facts) -> Choice:
    try:
        return choose(goods.archive, facts.machine, goods.force)
    except MerinoError as error:
        raise MerinoError(f"{host}: {error}") from error


async def _copy(board: Board, goods: Parcel, sent: transfer.Sent) -> str:
    for small in (goods.app, *goods.keys):
        await send(board, INCOMING, small)
    return await send(board, INCOMING, goods.whole, sent)


async def _install(board: Board, goods: Parcel, place: str, done: Flashed) -> str:
    """-> the launcher's path on the board."""
    arguments = [PYTHON, f"{INCOMING}/{goods.app.name}", "install", place, "--json"]
    arguments += [] if goods.root is None else ["--root", goods.root]
    arguments += ["--allow-unsigned"] * goods.allow_unsigned + ["--force"] * goods.force
    for key in goods.keys:
        arguments += ["--trust", f"{INCOMING}/{key.name}"]
    ran = await finished(board, "install", _run(arguments), timeout_s=INSTALL_S)
    if ran.code:
        raise MerinoError(f"{board.address.text}: not installed: {_words(ran.last_words, ran.code)}")
    found = json_of(board, "install", ran.out)
    problems = problems_in(found, INSTALLED)
    if not problems and (found["id"] != goods.archive.id or not found["launcher"].startswith("/")):
        problems = ["it is of another release"]
    if problems:
        raise MerinoError(f"{board.address.text}: its answer to `install` is wrong: {listed(problems)}")
    done.replaced = found["replaced"]
    done.notes += [note for note in found["notes"] if note not in done.notes]
    await finished(board, "clear up", {"do": "discard", "paths": [place, f"{INCOMING}/{goods.app.name}"]})
    return str(found["launcher"])


async def _selftest(board: Board, launcher: str) -> None:
    ran = await finished(board, "run the self-test", _run([launcher, "selftest", "installed"]), timeout_s=INSTALL_S)
    if ran.code:
        raise MerinoError(f"{board.address.text}: {_words(ran.last_words, ran.code)}")


async def _measure(board: Board, launcher: str, done: Flashed) -> None:
    """A benchmark that fails takes nothing back: the release is installed and tested."""
    try:
        ran = await finished(board, "measure", _run([launcher, *BENCH]), timeout_s=BENCH_S, most_bytes=BENCH_BYTES)
        rows, faults, _ = parse_records(ran.out)
    except MerinoError as error:
        done.notes.append(f"not measured: {error}")
        return
    done.records = [row for row in rows if row.failure is None]
    if faults or not done.records:
        done.notes.append(f"not measured: {_words(ran.last_words or '; '.join(faults), ran.code)}")


def _run(arguments: list[str]) -> dict[str, Any]:
    return {"do": "run", "arguments": arguments, "stdin_bytes": 0}


def _words(said: str, code: int) -> str:
    return said.removeprefix("merino: ") or f"it ended with code {code} and said nothing"
