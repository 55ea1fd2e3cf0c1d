"""Runs the application of this workstation on a board, by the Python there that has the packages for it.

Nothing need be installed: the application and bundles are copied by hash into the cache of the board's user, and stay
there for the next time.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from merino_edge.bundles.board_app import board_app
from merino_edge.bundles.files import DESCRIPTION_FILE
from merino_edge.delivery.ssh.board import Facts, described
from merino_edge.delivery.ssh.command import SHORT_S, Finished, Session, Take, answer, ended, finished, started
from merino_edge.delivery.ssh.connect import Board
from merino_edge.delivery.ssh.transfer import Source, send, source_of
from merino_runtime.bundle import load_bundle
from merino_runtime.delivery.agent import CACHE, PYTHON
from merino_runtime.errors import MerinoError

INSTALLED = "installed"  # as BUNDLE: the release in use there
MODULES = ["numpy", "onnxruntime"]
PROBE_S = 600.0
PROBE_BYTES = 4 << 20

Copied = Callable[[str, int, int], None]  # a file's name, bytes that are copied, of how many


async def facts_of(board: Board, root: str | None = None) -> Facts:
    return await described(board, board_app(), root)


class Program:
    """The application on one board, ready to be run."""

    def __init__(self, board: Board, facts: Facts, command: list[str], root: str | None) -> None:
        self.board, self.facts, self.command, self.root = board, facts, command, root

    def installed(self) -> str:
        """Return the release in use, as the program's BUNDLE. Raise MerinoError if --root has none."""
        if self.root is None:
            return INSTALLED
        if self.facts.current is None:
            raise MerinoError(
                f"{self.board.address.text}: no release is installed in {self.facts.root}. Install one there:"
                f" merino-edge flash NAME.merino --ssh {self.board.address.text} --root {self.root}"
            )
        return f"{self.facts.root}/releases/{self.facts.current}/bundle"

    async def run(
        self, arguments: list[str], data: bytes = b"", *, doing: str, timeout_s: float, most_bytes: int,
        report: Take | None = None, take: Take | None = None,
    ) -> Finished:  # fmt: skip
        """Raise MerinoError if the program's answer is too long or too late. Its exit code is the caller's."""
        request = {"do": "run", "arguments": [*self.command, *arguments], "stdin_bytes": len(data)}
        return await finished(
            self.board, doing, request, data, timeout_s=timeout_s, most_bytes=most_bytes, report=report, take=take
        )

    @asynccontextmanager
    async def interactive(self, arguments: list[str], report: Take) -> AsyncIterator[Session]:
        """Run the program with an open stdin while the body runs."""
        request = {"do": "interact", "arguments": [*self.command, *arguments]}
        async with started(self.board, "chat", request, report) as session:
            yield session


async def program(board: Board, root: str | None = None) -> Program:
    """Copy the application to the board if it is not there yet. root: the folder of releases there; None: the default
    of `install` for its user. Raise MerinoError if no Python there has the packages."""
    app = board_app()
    facts = await described(board, app, root)
    doing = "find a Python with numpy and onnxruntime"
    candidates = [PYTHON] if facts.foreign else [f"{facts.root}/current/env/bin/python", PYTHON]
    async with started(board, doing, {"do": "find_python", "candidates": candidates, "modules": MODULES}) as session:
        python = await answer(session)
        await ended(session)
    if python not in candidates:
        raise session.fault(
            "there is none. Install a packed file with its wheels (`merino-edge flash`), or on the board:"
            " python3 -m pip install numpy tokenizers onnxruntime"
        )
    source = source_of("merino.pyz", app)
    place = await send(board, f"{CACHE}/apps/{source.sha256[:16]}", source)
    return Program(board, facts, [python, place], root)


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
    await finished(program.board, "remove what was measured", request, timeout_s=SHORT_S)


async def probe(program: Program, backend: str, report: Take) -> str:
    """Probe the board with this backend, in one to five minutes -> the text of its probe.json. Raise MerinoError."""
    ran = await program.run(
        ["probe", "-o", "-", f"--backend={backend}"], doing="probe", timeout_s=PROBE_S, most_bytes=PROBE_BYTES,
        report=report,
    )  # fmt: skip
    if ran.code:
        refusal = ran.last_words or f"it ended with code {ran.code}"
        raise MerinoError(f"{program.board.address.text}: cannot probe: {refusal}")
    return ran.out
