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

from merino_edge.jobs.templates import Node, parsed

PHRASES = Path(__file__).parent / "phrases"

RULE = re.compile(r"<([^>]*)>")


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
def numbered(head: str) -> tuple[tuple[str, int], ...]:
    """What is said and the number that it means, of a block of choices.txt."""
    pairs = (line.split(" = ") for line in blocks("choices")[head])
    return tuple((said, int(number)) for said, number in pairs)


@cache
def rules(split: str = "train") -> dict[str, str]:
    """What `<rule>` stands for; in a test some words are others."""
    lines = [*blocks("rules")["rules"], *(blocks("rules")["held out"] if split == "test" else ())]
    return {name: template for name, _, template in (line.partition(" = ") for line in lines)}


def expand(
    template: str, rng: random.Random, rules: Mapping[str, str], slots: Mapping[str, str | Callable[[], str]]
) -> str:
    """One sentence of a template. A slot is its text, or what makes it."""
    parts: list[str] = []
    spell(parsed(with_rules(template, rules)), rng, slots, parts)
    return " ".join("".join(parts).split())


def with_rules(template: str, rules: Mapping[str, str]) -> str:
    """The template with each rule's own in its place, in brackets."""
    while "<" in template:
        template = RULE.sub(lambda rule: f"({rules[rule[1]]})", template)
    return template


def spell(node: Node, rng: random.Random, slots: Mapping[str, Any], parts: list[str]) -> None:
    kind, held = node
    if kind == "text":
        parts.append(held)
    elif kind == "slot":
        value = slots[held.partition(":")[0]]
        parts.append(value if isinstance(value, str) else value())
    elif kind == "one":
        spell(rng.choice(held), rng, slots, parts)
    else:
        for inner in held if kind == "all" else rng.sample(held, len(held)):
            parts.append("" if kind == "all" else " ")
            spell(inner, rng, slots, parts)
