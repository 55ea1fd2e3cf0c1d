"""Templates in hassil's form, expanded at random: `(a|b)`, `[optional]`, `(a;b)` in any order, `{slot}`."""

import random
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from merino_runtime.errors import MerinoError

PIECE = re.compile(r"[()\[\]|;]|\{[^{}]*\}|[^()\[\]|;{}]+")
Node = tuple[str, Any]  # ("text" or "slot", str), or ("all", "one" or "permuted", nodes)


@cache
def parsed(template: str) -> Node:
    """Raises MerinoError for brackets that do not match."""
    pieces = PIECE.findall(template)
    node, end = alternatives(pieces, 0)
    if end != len(pieces) or "".join(pieces) != template or template.count("(") != template.count(")"):
        raise MerinoError(f"the brackets of {template!r} do not match: close each (, [ and {{ that is opened")
    return node


def alternatives(pieces: list[str], place: int) -> tuple[Node, int]:
    """Return what stands up to the closing bracket, and the place of that bracket."""
    rows: list[list[Node]] = [[]]
    kind = "one"
    while place < len(pieces) and pieces[place] not in ")]":
        piece = pieces[place]
        place += 1
        if piece in "|;":
            kind = "permuted" if piece == ";" else kind
            rows.append([])
        elif piece in "([":
            inner, place = alternatives(pieces, place)
            place += 1
            rows[-1].append(inner if piece == "(" else ("one", [("text", ""), inner]))
        else:
            rows[-1].append(("slot", piece[1:-1]) if piece[0] == "{" else ("text", piece))
    nodes = [row[0] if len(row) == 1 else ("all", row) for row in rows]
    return (nodes[0] if len(nodes) == 1 else (kind, nodes)), place


def slots_of(node: Node) -> set[str]:
    """Return the slots that any sentence of a template has."""
    kind, held = node
    if kind in ("text", "slot"):
        return {held} if kind == "slot" else set()
    return set().union(*map(slots_of, held))


def sentence(template: str, rng: random.Random, values: Mapping[str, str | Callable[[], str]]) -> tuple[str, set[str]]:
    """Return (a sentence in lower case, the slots that it has). `values`: of the slots, or what makes them."""
    parts, used = [], set()

    def write(node: Node) -> None:
        kind, held = node
        if kind == "slot":
            value = values[held]
            parts.append(value if isinstance(value, str) else value())
            used.add(held)
        elif kind == "text":
            parts.append(held)
        elif kind == "one":
            write(rng.choice(held))
        else:
            for inner in held if kind == "all" else rng.sample(held, len(held)):
                parts.append("" if kind == "all" else " ")
                write(inner)

    write(parsed(template))
    return " ".join("".join(parts).lower().split()), used
