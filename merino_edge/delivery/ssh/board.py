"""What a board is and what it has installed: asked with the application over stdin, which leaves nothing there."""

from dataclasses import dataclass
from typing import Any

from merino_edge.delivery.ssh.command import answer, ended, give, json_of, started
from merino_edge.delivery.ssh.connect import Board
from merino_edge.profiles.detect import known_models, profile_of_model
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.delivery.machine import Machine, machine_of
from merino_runtime.delivery.releases import ID
from merino_runtime.errors import MerinoError
from merino_runtime.json_shape import integer, listed, problems_in, text
from merino_runtime.visible import visible

ASKED_S = 60.0
MOST_BYTES = 1 << 18
CALLED: dict[str, Any] = {"code": integer(-255, 255), "out": lambda value: _a_string(value),
                          "err": lambda value: _a_string(value)}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """`root`: the folder of releases that its install would use. `current`: the id of the release in use, or None."""

    machine: Machine
    root: str
    current: str | None

    @property
    def profile(self) -> DeviceProfile | None:
        return profile_of_model(self.machine.model)

    @property
    def model(self) -> str:
        return self.machine.model or f"{self.machine.board.architecture}, no device tree"


async def ask(board: Board, app: bytes, root: str | None = None) -> Facts:
    """Raises MerinoError where the board does not answer as one that can run the application."""
    doing = "tell what the board is"
    at = [] if root is None else ["--root", root]
    calls = [["board", "--json", *at], ["status", "--json", *at]]
    request = {"do": "ask", "app_bytes": len(app), "calls": calls, "timeout_s": ASKED_S}
    async with started(board, doing, request, timeout_s=3 * ASKED_S) as session:
        give(session, app)
        answers = await answer(session, MOST_BYTES)
        await ended(session)
    problems = problems_in(answers, [CALLED])
    if problems or len(answers) != len(calls):
        raise session.fault(f"its answer is wrong: {listed(problems) or 'another number of answers'}")
    for one in answers:
        if one["code"]:
            raise session.fault(visible(one["err"].strip().rpartition("\n")[2]) or f"exit code {one['code']}")
    machine, status = (json_of(board, doing, one["out"]) for one in answers)
    return Facts(machine_of(machine, f"{board.address.text}: its answer"), *_installed(board, status))


def _installed(board: Board, status: Any) -> tuple[str, str | None]:
    """Of `status --json`: the root, and the current release's id. Other keys may stand beside."""
    root = status.get("root") if isinstance(status, dict) else None
    current = status.get("current") if isinstance(status, dict) else None
    found = current.get("id") if isinstance(current, dict) else None
    known = found is None or (isinstance(found, str) and ID.match(found))
    if text(root) or not str(root).startswith("/") or not known:
        raise MerinoError(f"{board.address.text}: its answer to `status` is wrong: {visible(repr(status), 200)}")
    sound = isinstance(current, dict) and "problem" not in current
    return str(root), found if sound else None


def profile_of(address: str, facts: Facts) -> DeviceProfile:
    """Raises MerinoError where no shipped profile names the board's model."""
    found = facts.profile
    if found is None:
        raise MerinoError(
            f"{address} is {visible(repr(facts.model))}, which no profile names; named are {', '.join(known_models())}."
            " Give --device in place of --ssh: the id of a board that is like it, or a profile of your own"
        )
    return found


def _a_string(value: Any) -> str | None:
    return None if isinstance(value, str) else "a string"
