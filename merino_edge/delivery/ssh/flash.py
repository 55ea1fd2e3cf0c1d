"""`flash --ssh`: one packed file onto boards. Each board reports its facts, is judged here, gets the file, installs it
and is measured.

This workstation's application verifies and installs the file there. The application in the file runs only after that.
`fit.choose` judges a board's facts before gigabytes are copied, and the board judges them again. A board that fails
does not stop the others.
"""

import asyncio
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merino_edge.delivery.first_boot import checked_archive
from merino_edge.delivery.ssh.board import LOOK, Facts, described
from merino_edge.delivery.ssh.command import finished, json_of, refusal_of, run_request
from merino_edge.delivery.ssh.connect import Address, Board, connected
from merino_edge.delivery.ssh.transfer import INCOMING, Source, check_name, send, source_of
from merino_edge.records.reading import parse_records
from merino_edge.records.schema import Record
from merino_runtime.bundle import sha256_of
from merino_runtime.delivery.agent import PYTHON
from merino_runtime.delivery.archive import Archive
from merino_runtime.delivery.fit import Choice, choose
from merino_runtime.delivery.keys import key_base64, read_public_key
from merino_runtime.delivery.verbs import ALLOWED, ANY_BOARD, UNSIGNED
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_shape import listed, or_null, problems_in, text
from merino_runtime.io.streams import visible

INSTALL_S = 3600.0  # of a Pi Zero 2 W: an environment from wheels, and the self-test of a large model
BENCH_S = 3600.0
BENCH = ("bench", "installed", "-r", "3", "--format", "jsonl")
QUICK = ("-r", "1", "-p", "64", "-n", "32")  # seconds, where a person waits
BENCH_BYTES = 16 << 20
LONGEST_ERROR = 1200  # characters: all refusals of several bundles
AT_ONCE = 4  # boards
INSTALLED: dict[str, Any] = {"id": text, "launcher": text, "replaced": or_null(text), "notes": [text]}

# (host as given, what is being done, bytes that are copied, of how many; 0 of 0 for the rest)
Report = Callable[[str, str, int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Package:
    """The checked package and how to install it, the same for every board. `keys`: the files of --trust; `trusted`:
    the same keys in base64."""

    archive: Archive
    whole: Source
    keys: tuple[Source, ...] = ()
    trusted: frozenset[str] = frozenset()
    allow: Collection[str] = ()  # of ALLOWED
    service: bool = False
    serve: bool = False  # and the service
    quick: bool = False  # measured by QUICK


@dataclass
class Flashed:
    """The result of one board. `error`: empty after a success."""

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


def package(path: Path, keys: Sequence[Path] = (), *, report: Say = lambda _: None, **how: Any) -> Package:
    """Check the package here: layout, signature, every hash. Raise MerinoError.

    keys: files of public keys that the boards will trust; one of them must have signed the file. Without any, the
    signature is still checked, and each board decides whether it trusts the key. how: the
    options of `install`, as in Package.
    """
    report(f"hashing {path.name}")
    archive = checked_archive(path, keys, UNSIGNED in how.get("allow", ()), boards_decide=True)
    return Package(
        archive, Source(check_name(path.name), path, archive.bytes, sha256_of(str(path))),
        tuple(source_of(check_name(key.name), key.read_bytes()) for key in keys),
        frozenset(key_base64(read_public_key(str(key)).key) for key in keys),
        **how,
    )  # fmt: skip


async def flash_all(
    addresses: Sequence[Address], package: Package, *, dry_run: bool = False, report: Report = lambda *_: None
) -> list[Flashed]:
    """Flash at most AT_ONCE boards at a time -> their results in the order of `addresses`."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def flash_one(address: Address) -> Flashed:
        done = Flashed(address.text)
        async with slots:
            try:
                await flash(address, package, done, dry_run=dry_run, report=report)
            except MerinoError as error:
                done.error = visible(str(error).removeprefix(f"{address.text}: "), LONGEST_ERROR)
        done.notes = [visible(note) for note in done.notes]
        report(address.text, "failed" if done.error else "done", 0, 0)
        return done

    return list(await asyncio.gather(*map(flash_one, addresses)))


async def flash(address: Address, package: Package, done: Flashed, *, dry_run: bool, report: Report) -> None:
    """Flash one board and record every finished step in `done`. Raise MerinoError."""
    host = address.text
    report(host, "connecting", 0, 0)
    async with connected(address) as board:
        report(host, "asking what it is", 0, 0)
        done.facts = facts = await described(board)
        done.notes += check_service(address, facts)
        if facts.foreign:
            done.notes.append(f"{facts.foreign} can be changed by another user of the board")
        check_signer(package, facts)
        choice = choose(package.archive, facts.machine, ANY_BOARD in package.allow)
        done.bundle, done.precision = choice.bundle.name, choice.bundle.precision
        done.notes += choice.notes
        done.was_there = facts.current == package.archive.id
        if dry_run:
            done.plan = plan_of(package, facts, choice)
            return
        launcher = f"{facts.root}/current/merino"
        if done.was_there and not (facts.foreign or missing(package, facts)):
            report(host, "installing", 0, 0)
            ran = await finished(
                board, "run the self-test", run_request([launcher, "selftest", "installed"]), timeout_s=INSTALL_S
            )
            if ran.code:
                raise MerinoError(f"{host}: {refusal_of(ran)}")
        else:
            for small in package.keys:
                await send(board, INCOMING, small)
            place = await send(board, INCOMING, package.whole, lambda sent, total: report(host, "copying", sent, total))
            report(host, "installing", 0, 0)
            launcher = await _install(board, package, place, done, facts)
        done.tested = True
        report(host, "measuring", 0, 0)
        await _measure(board, launcher, done, QUICK if package.quick and choice.bundle.context >= 128 else ())


def check_signer(package: Package, facts: Facts) -> None:
    """Raise MerinoError if neither the board nor --trust names the key that signed the package. The board's `install`
    decides; this check saves copying a package that it will refuse."""
    signature = package.archive.signature
    if signature is None or key_base64(signature.key) in facts.keys | package.trusted:
        return
    known = f"the board trusts {len(facts.keys)} other keys" if facts.keys else "the board trusts no key yet"
    raise MerinoError(
        f"{package.archive.path} is signed by the key {key_base64(signature.key)}, which is not trusted there: {known}."
        " If the key is yours, trust it: --trust NAME.pub"
    )


def check_service(address: Address, facts: Facts) -> list[str]:
    """Return notes. Raise MerinoError if the default folder of releases is not that of the board's service: there would
    be two installations, and the service would keep the old one."""
    if facts.service in (None, facts.root):
        return []
    if address.root is not None:
        return [f"merino.service keeps the release in {facts.service}: this is a second installation"]
    for_service, second = shlex.quote(facts.service), shlex.quote(facts.root)
    raise MerinoError(
        f"merino.service on the board uses the releases in {for_service}, and this user's would be others, in {second}."
        f" To install for the service: --ssh root@HOST{for_service}. For a second installation: --ssh HOST{second}"
    )


def missing(package: Package, facts: Facts) -> list[str]:
    """Return what the board lacks beside the release: keys to trust, the service."""
    keys = sorted(package.trusted - facts.keys)
    lacking = [f"trust {len(keys)} new key{'s' * (len(keys) > 1)}"] * bool(keys)
    lacking += ["set up merino.service"] * (package.service and facts.service != facts.root)
    return lacking + ["set up merino-serve.service"] * package.serve


def plan_of(package: Package, facts: Facts, choice: Choice) -> list[str]:
    """Describe what a flash would do, in lines."""
    here = f"{facts.model}; Python {facts.machine.python}; {facts.machine.free_bytes / 2**20:,.0f} MB free"
    more = missing(package, facts)
    if facts.current == package.archive.id and not (facts.foreign or more):
        return [here, f"release {package.archive.id} is installed already: it would be tested and measured"]
    wheels = f", with the wheels of {choice.wheels.path}" if choice.wheels else ", with the packages that are there"
    return [
        here,
        f"copy {package.whole.name}, {package.whole.size_bytes / 2**20:,.1f} MB, and verify it",
        f"install {choice.path} ({choice.bundle.name}, {choice.bundle.precision}){wheels} as release"
        f" {package.archive.id} in {facts.root}, in place of {facts.current or 'none'}",
        *more,
        "test it by its golden ids, then measure it",
    ]


async def _install(board: Board, package: Package, place: str, done: Flashed, facts: Facts) -> str:
    """Install the copied package -> the launcher's path on the board."""
    host = board.address.text
    keys = [f"{INCOMING}/{key.name}" for key in package.keys]
    arguments = [PYTHON, facts.app, "install", place, "--json", "--root", facts.root]
    arguments += [f"--allow={name}" for name in ALLOWED if name in package.allow]
    for option in ("service", "serve"):
        arguments += [f"--{option}"] * getattr(package, option)
    for key in keys:
        arguments += ["--trust", key]
    ran = await finished(board, "install", run_request(arguments), timeout_s=INSTALL_S)
    if ran.code:
        raise MerinoError(f"{host}: not installed: {refusal_of(ran)}")
    reply = json_of(board, "install", ran.out)
    own = {name: reply[name] for name in INSTALLED if name in reply} if isinstance(reply, dict) else reply
    problems = problems_in(own, INSTALLED)
    if not problems and (own["id"] != package.archive.id or not own["launcher"].startswith("/")):
        problems = ["it is of another release"]
    if problems:
        raise MerinoError(f"{host}: its answer to `install` is wrong: {listed(problems)}. {LOOK}")
    done.replaced = own["replaced"]
    done.notes += [note for note in own["notes"] if note not in done.notes]
    await finished(board, "clear up", {"do": "discard", "paths": [place, *keys]})
    return str(own["launcher"])


async def _measure(board: Board, launcher: str, done: Flashed, options: Sequence[str]) -> None:
    """Run a benchmark. If it fails, add a note, because the release is installed and tested."""
    try:
        call = run_request([launcher, *BENCH, *options])
        ran = await finished(board, "measure", call, timeout_s=BENCH_S, most_bytes=BENCH_BYTES)
        rows, faults, _ = parse_records(ran.out)
    except MerinoError as error:
        done.notes.append(f"not measured: {error}")
        return
    done.records = [row for row in rows if row.failure is None]
    if faults or not done.records:
        done.notes.append(f"not measured: {'; '.join(faults) or refusal_of(ran)}")
