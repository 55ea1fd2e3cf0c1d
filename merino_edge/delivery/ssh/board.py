"""A board over ssh: its description and releases, and programs that run there.

The application of this workstation describes the board and verifies packages there. It and bundles are copied by hash
into the cache of the board's user, and stay there for the next time.
"""

import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from merino_edge.bundles.board_app import board_app
from merino_edge.bundles.files import DESCRIPTION_FILE
from merino_edge.delivery.ssh import command
from merino_edge.delivery.ssh.connect import Board
from merino_edge.delivery.ssh.transfer import Source, send, source_of
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.profiles.reading import known_models, profile_of_model
from merino_runtime.bundle import load_bundle
from merino_runtime.delivery.agent import CACHE, PYTHON
from merino_runtime.delivery.fit import Machine, machine_of
from merino_runtime.delivery.releases import ID
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_shape import listed, or_null, problems_in, text
from merino_runtime.io.streams import visible

FACTS_S = 60.0
MOST_BYTES = 1 << 18
LOOK = "See `merino.pyz status` there"
# What the board's verb `board` prints; `machine_of` checks the machine.
ANSWER: dict[str, Any] = {
    "machine": lambda _: None,
    "root": lambda value: text(value) or (None if value.startswith("/") else "an absolute path"),
    "current": or_null(lambda value: None if isinstance(value, str) and ID.match(value) else "the id of a release"),
    "foreign": or_null(text), "service": or_null(text), "keys": [text],
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """`app`: the path of this workstation's application there. `root`: the folder of releases that its `install` would
    use. `current`: the id of the release in use, or None. `foreign`: a path in it that another user can change there,
    so that nothing of it is run, or None. `service`: the folder of releases that merino.service uses, or None. `keys`:
    those that the board trusts, in base64."""

    machine: Machine
    app: str
    root: str
    current: str | None
    foreign: str | None = None
    service: str | None = None
    keys: frozenset[str] = frozenset()

    @property
    def profile(self) -> DeviceProfile | None:
        return profile_of_model(self.machine.model)

    @property
    def model(self) -> str:
        return self.machine.model or f"{self.machine.board.architecture}, no device tree"


async def described(board: Board) -> Facts:
    """Copy the application to the board if it is not there yet, and let it describe the board. Raise
    MerinoError if there is no valid answer."""
    doing = "describe the board"
    source = source_of("merino.pyz", board_app())
    app = await send(board, f"{CACHE}/apps/{source.sha256[:16]}", source)
    words = [PYTHON, app, "board", *(["--root", board.address.root] if board.address.root else [])]
    ran = await command.finished(board, doing, command.run_request(words), timeout_s=FACTS_S, most_bytes=MOST_BYTES)
    if ran.code:
        raise MerinoError(f"{board.address.text}: cannot {doing}: {command.refusal_of(ran)}")
    reply = command.json_of(board, doing, ran.out)
    if problems := problems_in(reply, ANSWER):
        raise MerinoError(f"{board.address.text}: its answer is wrong: {listed(problems)}. {LOOK}")
    machine = machine_of(reply.pop("machine"), f"{board.address.text}: its answer")
    return Facts(machine, app, keys=frozenset(reply.pop("keys")), **reply)


def profile_of(address: str, facts: Facts) -> DeviceProfile:
    """Raise MerinoError if no shipped profile names the board's model."""
    profile = facts.profile
    if profile is None:
        raise MerinoError(
            f"{address} is {visible(repr(facts.model))}, which no profile names; named are {', '.join(known_models())}."
            " Give --board the id of a board that is like it, or a profile of your own"
        )
    return profile


INSTALLED = "installed"  # as BUNDLE: the release in use there
MODULES = ["numpy", "onnxruntime"]
HAS_MODULES = (
    "import sys; sys.path[:] = filter(None, sys.path); import importlib.util as u; "  # not the current folder
    "sys.exit(not all(u.find_spec(name) for name in sys.argv[1:]))"
)

Copied = Callable[[str, int, int], None]  # a file's name, bytes that are copied, of how many


class Program:
    """The application on one board, ready to be run."""

    def __init__(self, board: Board, facts: Facts, command: list[str]) -> None:
        self.board, self.facts, self.command = board, facts, command

    def installed(self) -> str:
        """Return the release in use, as the program's BUNDLE. Raise MerinoError if the folder of --ssh has none."""
        if self.board.address.root is None:
            return INSTALLED
        if self.facts.current is None:
            raise MerinoError(
                f"{self.board.address.text}: no release is installed in {self.facts.root}. Install one there:"
                f" merino-edge flash NAME.merino --ssh {shlex.quote(self.board.address.text)}"
            )
        return f"{self.facts.root}/releases/{self.facts.current}/bundle"

    async def run(
        self, arguments: list[str], data: bytes = b"", *, doing: str, timeout_s: float, most_bytes: int,
        report: command.Take | None = None, take: command.Take | None = None,
    ) -> command.Finished:  # fmt: skip
        """Raise MerinoError if the program's answer is too long or too late. Its exit code is the caller's."""
        request = command.run_request([*self.command, *arguments], len(data))
        return await command.finished(
            self.board, doing, request, data, timeout_s=timeout_s, most_bytes=most_bytes, report=report, take=take
        )

    @asynccontextmanager
    async def interactive(self, arguments: list[str], report: command.Take) -> AsyncIterator[command.Session]:
        """Run the program with an open stdin while the body runs."""
        request = {"do": "interact", "arguments": [*self.command, *arguments]}
        async with command.started(self.board, "chat", request, report) as session:
            yield session


async def python_with(board: Board, candidates: list[str], modules: list[str]) -> str | None:
    """Return the first of the Pythons there that has the modules, which are not imported; None if none has."""
    for candidate in candidates:
        request = command.run_request([candidate, "-c", HAS_MODULES, *modules])
        if not (await command.finished(board, f"find a Python with {' and '.join(modules)}", request)).code:
            return candidate
    return None


async def program(board: Board) -> Program:
    """Copy the application to the board if it is not there yet. Raise MerinoError if no Python there has the
    packages."""
    facts = await described(board)
    candidates = [PYTHON] if facts.foreign else [f"{facts.root}/current/env/bin/python", PYTHON]
    python = await python_with(board, candidates, MODULES)
    if python is None:
        raise MerinoError(
            f"{board.address.text}: no Python there has numpy and onnxruntime. Install a packed file with its wheels"
            " (`merino-edge flash`), or on the board: python3 -m pip install numpy tokenizers onnxruntime"
        )
    return Program(board, facts, [python, facts.app])


async def bundle_there(program: Program, bundle: str, progress: Copied = lambda *_: None) -> str:
    """Copy the bundle to the board if it is not there yet -> its folder there. The description is copied last, so that
    a folder with one is complete."""
    board = program.board
    if bundle == INSTALLED:
        return program.installed()
    loaded = load_bundle(bundle, verify=False)
    description = source_of(DESCRIPTION_FILE, (Path(loaded.folder) / DESCRIPTION_FILE).read_bytes())
    folder = f"{CACHE}/bundles/{description.sha256}"
    for file in loaded.files:
        source = Source(file.path, Path(loaded.folder) / file.path, file.bytes, file.sha256)
        await send(board, folder, source, partial(progress, file.path))
    await send(board, folder, description)
    return folder


async def remove_bundle(program: Program, bundle: str, place: str) -> None:
    """Remove the files that `bundle_there` copied from the folder `bundle` to `place`."""
    names = [DESCRIPTION_FILE, *(file.path for file in load_bundle(bundle, verify=False).files)]
    request = {"do": "discard", "paths": [*(f"{place}/{name}" for name in names), place]}
    await command.finished(program.board, "remove what was measured", request, timeout_s=command.SHORT_S)
