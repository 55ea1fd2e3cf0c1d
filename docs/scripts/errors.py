"""docs/reference/errors.md: the beginning of each message of a MerinoError, and its remedy, from the syntax trees."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "Workstation": "merino_edge",
    "Board": "runtime/merino_runtime",
    "Benchmark": "bench/merino_bench",
}
GAP = "…"
LONGEST = 100  # characters of a beginning


def raised(path: Path) -> Iterator[str]:
    """The messages of the errors that a file raises, with GAP for what is filled in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("MerinoError", "RefusedError")
        ):
            found = literal(node.args[0]) if node.args else ""
            if len(found.replace(GAP, "").strip()) >= 12:
                yield found


def literal(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return re.sub(f"{GAP}+", GAP, "".join(literal(part) for part in node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return literal(node.left) + literal(node.right)
    return GAP


def parts(message: str) -> tuple[str, str]:
    """(what is wrong, what to do). The remedy follows the last colon, semicolon or full stop; where that is filled in,
    the one before."""
    message = " ".join(message.split()).rstrip(". ")
    cuts = [match.start() for match in re.finditer(r"[.:;] ", message) if match.start() >= 15]
    while cuts and not re.search(r"\w{2}", message[cuts[-1] :]):
        cuts.pop()
    if not cuts:
        return message, ""
    head, remedy = message[: cuts[-1]], message[cuts[-1] + 2 :]
    if head.endswith(", allowed"):
        head, remedy = head.removesuffix(", allowed"), f"allowed: {remedy}"
    return head, remedy[:1].upper() + remedy[1:]


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + f" {GAP}"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("`", "").replace("*", "\\*").replace("_", "\\_")


def room_of(path: Path, folder: str) -> str:
    """The folder or file of a package that a file belongs to."""
    return path.relative_to(ROOT / folder).parts[0].removesuffix(".py")


def text() -> str:
    lines = [
        "# Errors",
        "",
        "Made from the code: how each message of a `MerinoError` begins, and its remedy. … stands for what is",
        "filled in, such as a path or a number. Messages that the code puts together in other ways are left out.",
        "A command then ends with exit code 1. The site's search finds words of a message.",
    ]
    for title, folder in PACKAGES.items():
        rooms: dict[str, set[tuple[str, str]]] = {}
        for path in sorted((ROOT / folder).rglob("*.py")):
            rooms.setdefault(room_of(path, folder), set()).update(map(parts, raised(path)))
        for room, found in rooms.items():
            if found:
                lines += ["", f"## {title}: {room}", "", "| message | remedy |", "| --- | --- |"]
                lines += [f"| {cell(shortened(what))} | {cell(remedy)} |" for what, remedy in sorted(found)]
    return "\n".join(lines) + "\n"
