"""Describes a board and its releases, by the application that is installed there. If there is none, this workstation's
is sent over stdin and leaves nothing behind. Unverified applications are never run: neither that of a package, nor one
that another user of the board can change.
"""

import shlex
from dataclasses import dataclass
from typing import Any

from merino_edge.delivery.ssh.command import TRY_THERE, answer, ended, give, json_of, started
from merino_edge.delivery.ssh.connect import Board
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.profiles.reading import known_models, profile_of_model
from merino_runtime.delivery.machine import Machine, machine_of
from merino_runtime.delivery.releases import ID
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_shape import integer, listed, or_null, problems_in, text
from merino_runtime.io.visible import visible

FACTS_S = 60.0
MOST_BYTES = 1 << 18
LOOK = "See `merino.pyz status` there"
CALLED: dict[str, Any] = {
    "code": integer(-255, 255), "out": lambda value: None if isinstance(value, str) else "a string",
    "err": lambda value: None if isinstance(value, str) else "a string",
}  # fmt: skip
ANSWER: dict[str, Any] = {
    "root": text, "app": or_null(text), "foreign": or_null(text), "service": or_null(text), "keys": [text],
    "calls": [CALLED],
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """`root`: the folder of releases that its `install` would use. `current`: the id of the release in use, or None.
    `app`: the path of the application installed there, which answered, or None. `foreign`: a path that another user can
    change there, so that nothing of it is run, or None. `service`: the folder of releases that merino.service uses, or
    None. `keys`: those that the board trusts, in base64, as far as its user can read them."""

    machine: Machine
    root: str
    current: str | None
    app: str | None = None
    foreign: str | None = None
    service: str | None = None
    keys: frozenset[str] = frozenset()

    @property
    def profile(self) -> DeviceProfile | None:
        return profile_of_model(self.machine.model)

    @property
    def model(self) -> str:
        return self.machine.model or f"{self.machine.board.architecture}, no device tree"


async def described(board: Board, app: bytes, root: str | None = None) -> Facts:
    """Describe a board. app: this workstation's application. Raise MerinoError if the board gives no valid answer."""
    doing = "describe the board"
    calls = [["board", "--json"], ["status", "--json"]]
    request = {"do": "describe", "app_bytes": len(app), "root": root, "calls": calls, "timeout_s": FACTS_S}
    async with started(board, doing, request, timeout_s=3 * FACTS_S) as session:
        give(session, app)
        reply = await answer(session, MOST_BYTES)
        await ended(session)
    problems = problems_in(reply, ANSWER)
    if problems or len(reply["calls"]) != len(calls):
        raise session.fault(f"its answer is wrong: {listed(problems) or 'another number of answers'}. {TRY_THERE}")
    for call in reply["calls"]:
        if call["code"]:
            raise session.fault(visible(call["err"].strip().rpartition("\n")[2]) or f"exit code {call['code']}")
    machine, status = (json_of(board, doing, call["out"]) for call in reply["calls"])
    try:
        facts = machine_of(machine, f"{board.address.text}: its answer")
        current = _installed(board, reply["root"], status)
    except MerinoError as error:
        raise MerinoError(f"{error}.{older_there(reply['root'])}" if reply["app"] else str(error)) from error
    return Facts(
        machine=facts, current=current, keys=frozenset(reply["keys"]),
        **{name: reply[name] for name in ("root", "app", "foreign", "service")},
    )


def older_there(root: str) -> str:
    """Return the end of a message: what to do if the installed application is older than this workstation's."""
    return (
        " The application installed there may be older than this workstation's. Install once by this one: `python3 -m"
        " merino_edge.bundles.board_app merino.pyz` here, copy it and NAME.merino to the board, and there: python3"
        f" merino.pyz install NAME.merino --root {shlex.quote(root)}"
    )


def _installed(board: Board, root: str, status: Any) -> str | None:
    """Return the current release's id from `status --json`, whose other keys are ignored."""
    same = isinstance(status, dict) and status.get("root") == root and root.startswith("/")
    current = status.get("current") if isinstance(status, dict) else None
    release = current.get("id") if isinstance(current, dict) else None
    known = release is None or (isinstance(release, str) and ID.match(release))
    if not same or not known:
        raise MerinoError(
            f"{board.address.text}: its answer to `status` is wrong: {visible(repr(status), 200)}. {LOOK}"
        )
    sound = isinstance(current, dict) and "problem" not in current
    return release if sound else None


def profile_of(address: str, facts: Facts) -> DeviceProfile:
    """Raise MerinoError if no shipped profile names the board's model."""
    profile = facts.profile
    if profile is None:
        raise MerinoError(
            f"{address} is {visible(repr(facts.model))}, which no profile names; named are {', '.join(known_models())}."
            " Give --device in place of --ssh: the id of a board that is like it, or a profile of your own"
        )
    return profile
