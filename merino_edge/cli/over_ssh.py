"""What runs on a board over ssh: the `--ssh` of generate, chat, bench and calibrate, and `--board USER@HOST`."""

import asyncio
import hashlib
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from merino_runtime.errors import MerinoError

if TYPE_CHECKING:
    from merino_edge.calibration.probe import MeasuredDesign, Probe
    from merino_edge.delivery.ssh.board import Facts, Program
    from merino_edge.delivery.ssh.command import Session
    from merino_edge.delivery.ssh.connect import Board
    from merino_edge.profiles.profile import DeviceProfile

GENERATED_BYTES, PROBE_BYTES = 64 << 20, 4 << 20
GENERATED_S, PROBE_S = 24 * 3600.0, 600.0
Result = TypeVar("Result")


class ReaderGoneError(Exception):
    """The reader of stdout is gone. It is no OSError, because those belong to the connection."""


def ask_about(hosts: Sequence[str], yes: bool = False) -> None:
    """Show the key of each host that no known_hosts file names, and add it if the user accepts it, as ssh does. Raise
    MerinoError if not. yes: add it without a question. If nobody can be asked, the connection is refused later."""
    from merino_edge.cli.terminal import say
    from merino_edge.delivery.ssh.connect import new_host_key, parse_addresses

    for address in parse_addresses(hosts):
        key = asyncio.run(new_host_key(address)) if yes or is_terminal() else None
        if key is None:
            continue
        question = f"{address.text} has the new host key {key.fingerprint}. Is it your board's?"
        if not yes and not typer.confirm(question, err=True):
            raise MerinoError("nothing was changed on the board")
        key.keep()
        say(f"{address.text}: its host key {key.fingerprint} is new and now in {key.known_hosts}")


def let_trust(ssh: str | None, facts: "Facts | None", public: Path, yes: bool) -> bool:
    """Return whether the board is to trust the key from now on; False if it does so already. Raise MerinoError if the
    user declines, or cannot be asked."""
    from merino_edge.cli.terminal import say
    from merino_runtime.delivery.keys import key_base64, read_public_key

    key = read_public_key(str(public)).key
    if facts and key_base64(key) in facts.keys:
        return False
    print_of = f"SHA256:{hashlib.sha256(key).hexdigest()[:32]}"
    if yes or not ssh:
        say(f"the board will trust the key {print_of} ({public})")
        return True
    question = f"{ssh} does not trust your key {print_of} yet. Add it to the keys that the board trusts?"
    if not is_terminal():
        raise MerinoError(f"{question} This is no terminal, so nobody can answer: give --yes")
    if not typer.confirm(question, err=True):
        raise MerinoError("nothing was changed on the board")
    return True


def is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def on_board(
    host: str, work: "Callable[[Board], Coroutine[Any, Any, Result]]", doing: str = "", yes: bool = False
) -> Result:
    """Connect to a board and run `work`, with `doing` on the terminal meanwhile. yes: as in `ask_about`, whose question
    comes first, because a spinner would hide it. Raise MerinoError if the connection fails."""
    from merino_edge.cli.terminal import working
    from merino_edge.delivery.ssh.connect import connected, parse_address

    ask_about([host], yes)

    async def run() -> Result:
        async with connected(parse_address(host)) as board:
            return await work(board)

    with working(doing) if doing else nullcontext():
        return asyncio.run(run())


async def with_bundle(board: "Board", folder: str) -> "tuple[Program, str]":
    """Copy what is missing -> the program on the board, and the bundle's folder there."""
    from merino_edge.cli.terminal import copy_progress
    from merino_edge.delivery.ssh.board import bundle_there, program

    program_there = await program(board)
    with copy_progress(board.address.text) as copied:
        return program_there, await bundle_there(program_there, folder, copied)


def generate_there(arguments: Namespace, options: Sequence[str]) -> int:
    """Run `generate` on a board and stream its stdout -> its exit code. options: words for the board."""
    from merino_edge.cli.terminal import say
    from merino_edge.delivery.ssh.board import INSTALLED
    from merino_edge.families.names import bundle_path
    from merino_runtime.commands import STDIN, prompt_from_stdin
    from merino_runtime.io.streams import write_out

    bundle, prompt = arguments.bundle, arguments.prompt
    folder = bundle if bundle == INSTALLED else bundle_path(bundle)
    prompt = prompt_from_stdin() if prompt in (None, STDIN) else str(prompt)

    def take(text: str) -> None:
        try:
            write_out(text)
        except BrokenPipeError as error:
            raise ReaderGoneError from error

    async def work(board: "Board") -> int:
        program_there, place = await with_bundle(board, folder)
        ran = await program_there.run(
            ["generate", place, "-", *options], (prompt + "\n").encode("utf-8", "surrogateescape"), doing="generate",
            timeout_s=GENERATED_S, most_bytes=GENERATED_BYTES, report=say, take=take,
        )  # fmt: skip
        return ran.code

    try:
        return on_board(arguments.ssh, work)
    except ReaderGoneError:
        raise BrokenPipeError from None


def chat_there(arguments: Namespace, options: Sequence[str]) -> int:
    """Chat with a model on a board, typed and shown here -> the exit code. options: words for the board."""
    from merino_edge.cli.terminal import say
    from merino_edge.delivery.ssh.board import INSTALLED
    from merino_edge.delivery.ssh.connect import connected, parse_address
    from merino_edge.delivery.ssh.remote_chat import opened
    from merino_edge.families.names import bundle_path
    from merino_runtime.bundle import load_bundle, own_files
    from merino_runtime.chat.session import converse, converse_in_json, write_json

    bundle, host = arguments.bundle, arguments.ssh
    folder = bundle if bundle == INSTALLED else bundle_path(bundle)
    kept = [] if bundle == INSTALLED else own_files(load_bundle(folder, verify=False))

    @asynccontextmanager
    async def session() -> AsyncIterator["Session"]:
        async with connected(parse_address(host)) as board:
            program_there, place = await with_bundle(board, folder)
            words = [word for word in options if word != "--json"]
            async with program_there.interactive(["chat", place, "--json", *words], say) as started:
                yield started

    ask_about([host])
    with opened(session()) as chat:
        if arguments.json:
            write_json(chat.greeting)
            return converse_in_json(chat, kept)
        return converse(chat, f"{chat.greeting['chat']} on {host}", kept)


def bench_there(host: str, bundles: Sequence[str], options: Sequence[str], **how: Any) -> int:
    """Run `bench` on a board -> its exit code."""
    from merino_edge.benchmarking.run import run_there
    from merino_edge.cli.terminal import copy_progress, say

    ask_about([host])
    with copy_progress(host) as copied:
        return run_there(host, bundles, options, say=say, copied=copied, **how)


def probe_there(host: str, profile: "DeviceProfile") -> "Probe":
    """Probe the profile's board with its backend. Raise MerinoError, for another machine before it is measured."""
    from merino_edge.calibration.calibrate import check_machine
    from merino_edge.calibration.probe import parse_probe
    from merino_edge.cli.terminal import say
    from merino_edge.delivery.ssh.board import program

    async def work(board: "Board") -> str:
        program_there = await program(board)
        machine = program_there.facts.machine
        check_machine(machine.board.architecture, machine.model, profile.backend, profile)
        say(f"{host} measures itself for a minute, a slow board for up to five; let nothing else run there")
        ran = await program_there.run(
            ["probe", "-o", "-", f"--backend={profile.backend}"], doing="probe", timeout_s=PROBE_S,
            most_bytes=PROBE_BYTES, report=say,
        )  # fmt: skip
        if ran.code:
            raise MerinoError(f"{host}: cannot probe: {ran.last_words or f'it ended with code {ran.code}'}")
        return ran.out

    text = on_board(host, work, f"{host} measures itself")
    return parse_probe(text, f"what {host} answered")


def choose_and_measure(host: str | None, profile: "DeviceProfile", number: int) -> "list[MeasuredDesign]":
    """Measure designs that the search chooses with the profile, on the board, or on this machine if host is None."""
    from merino_edge.benchmarking.chosen import bench_here, bench_on, measured_designs  # loads torch
    from merino_edge.cli.terminal import bench_progress, copy_progress, say
    from merino_edge.delivery.ssh.connect import parse_address

    if host is None:
        return measured_designs(profile, number, bench_here(bench_progress), say)
    with copy_progress(host) as copied:
        return measured_designs(profile, number, bench_on(parse_address(host), say, copied), say)


def board(name: str | Path, say: Callable[[str], None]) -> "DeviceProfile":
    """Return the profile that `--board` names. A running board, USER@HOST, is asked over ssh what it is.

    Raise MerinoError as `calibration.board.board` does, or if no shipped profile names the board's model.
    """
    from merino_edge.calibration.board import board as named
    from merino_edge.calibration.board import with_backend

    where, backend = with_backend(name)
    if not is_address(where):
        return named(name, say)
    from merino_edge.delivery.ssh.board import described, profile_of

    profile = profile_of(where, on_board(where, described, f"asking {where} what it is"))
    say(f"{where} is a {profile.name}: --board {profile.id}")
    return profile.with_backend(backend)


def is_address(name: str | Path) -> bool:
    """Return whether `--board` is USER@HOST. A profile's file may have an @ in its name."""
    return "@" in str(name) and not Path(name).is_file() and not str(name).endswith(".toml")


def refuse_local(**options: Any) -> None:
    """Raise MerinoError if an option was given that only works on this machine."""
    wrong = ", ".join(f"--{name.replace('_', '-')}" for name, value in options.items() if value not in (None, False))
    if wrong:
        raise MerinoError(f"{wrong} is of this machine, and --ssh runs on the board: leave one of them out")


