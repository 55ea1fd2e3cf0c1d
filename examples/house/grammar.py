"""Templates as Home Assistant writes them, expanded at random.

`(a|b)`, `[optional]`, `(a;b)` in any order, `<rule>`, `{slot}`.

They stand in `phrases/*.txt`: `== HEAD`, then one a line. A line that begins with `#` is a comment.
"""

import random
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

PHRASES = Path(__file__).parent / "phrases"

# ("text", str), ("slot", str), ("rule", str), or ("all" | "one" | "any order", nodes)
Node = tuple[str, Any]
PIECE = re.compile(r"[()\[\]|;]|<[^>]*>|\{[^}]*\}|[^()\[\]|;<{]+")


@cache
def blocks(file: str) -> dict[str, tuple[str, ...]]:
    """The lines of a file of phrases by the head above them. ValueError for a head that stands twice."""
    by_head: dict[str, tuple[str, ...]] = {}
    for block in (PHRASES / f"{file}.txt").read_text(encoding="utf-8").split("\n== ")[1:]:
        head, *lines = block.strip().splitlines()
        if head.strip() in by_head:
            raise ValueError(f"{file}.txt has == {head.strip()} twice")
        by_head[head.strip()] = tuple(line for line in lines if not line.startswith("#"))
    return by_head


@cache
def rules(split: str = "train") -> dict[str, str]:
    """What `<rule>` stands for; in a test some words are others."""
    lines = [*blocks("rules")["rules"], *(blocks("rules")["held out"] if split == "test" else ())]
    return {name: template for name, _, template in (line.partition(" = ") for line in lines)}


@cache
def parse(template: str) -> Node:
    node, rest = alternatives(PIECE.findall(template), 0)
    if rest != len(PIECE.findall(template)):
        raise ValueError(f"template {template!r} closes a bracket that it does not open")
    return node


def alternatives(pieces: list[str], at: int) -> tuple[Node, int]:
    """What stands in one pair of brackets, and where it ends."""
    rows: list[list[Node]] = [[]]
    how = "one"
    while at < len(pieces) and pieces[at] not in ")]":
        piece = pieces[at]
        at += 1
        if piece in "|;":
            how = "any order" if piece == ";" else how
            rows.append([])
        elif piece in "([":
            inner, at = alternatives(pieces, at)
            at += 1
            rows[-1].append(inner if piece == "(" else ("one", [("text", ""), inner]))
        elif piece[0] == "<":
            rows[-1].append(("rule", piece[1:-1]))
        elif piece[0] == "{":
            rows[-1].append(("slot", piece[1:-1].partition(":")[0]))
        else:
            rows[-1].append(("text", piece))
    nodes: list[Node] = [row[0] if len(row) == 1 else ("all", row) for row in rows]
    return (nodes[0] if len(nodes) == 1 else (how, nodes)), at


def expand(
    template: str, rng: random.Random, rules: Mapping[str, str], slots: Mapping[str, str | Callable[[], str]]
) -> str:
    """One sentence of a template. A slot is its text, or what makes it."""
    parts: list[str] = []
    spell(parse(template), rng, rules, slots, parts)
    return " ".join("".join(parts).split())


def spell(node: Node, rng: random.Random, rules: Mapping[str, str], slots: Mapping[str, Any], parts: list[str]) -> None:
    kind, held = node
    if kind == "text":
        parts.append(held)
    elif kind == "slot":
        value = slots[held]
        parts.append(value if isinstance(value, str) else value())
    elif kind == "rule":
        spell(parse(rules[held]), rng, rules, slots, parts)
    elif kind == "one":
        spell(rng.choice(held), rng, rules, slots, parts)
    elif kind == "all":
        for inner in held:
            spell(inner, rng, rules, slots, parts)
    else:
        for inner in rng.sample(held, len(held)):
            parts.append(" ")
            spell(inner, rng, rules, slots, parts)
