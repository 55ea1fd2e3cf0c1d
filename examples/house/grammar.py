"""The phrases of the house: `phrases/*.txt`, `== HEAD` and then one a line; `#` begins a comment. English ones stand
beside this file, those of other languages in a folder each.

Templates have Home Assistant's form: `(a|b)`, `[optional]`, `(a;b)` in any order, `<rule>`, `{slot}`.
"""

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from num2words import num2words

from merino_edge.jobs.templates import parsed, sentence, slots_of

HERE = Path(__file__).parent
Slots = Mapping[str, str | Callable[[], str]]


@cache
def blocks(file: str, language: str = "en") -> dict[str, tuple[str, ...]]:
    """The lines of a file of phrases by the head above them. ValueError for a head that stands twice."""
    by_head: dict[str, tuple[str, ...]] = {}
    folder = HERE if language == "en" else HERE / language
    path = folder / f"{file}.txt" if file == "refusals" else folder / "phrases" / f"{file}.txt"
    for block in f"\n{path.read_text(encoding='utf-8')}".split("\n== ")[1:]:
        head, *lines = block.strip().splitlines()
        if head.strip() in by_head:
            raise ValueError(f"{path} has == {head.strip()} twice")
        by_head[head.strip()] = tuple(line for line in lines if not line.startswith("#"))
    return by_head


def pairs(file: str, head: str, apart: str = ": ", language: str = "en") -> list[tuple[str, str]]:
    """The lines of a block that have two parts."""
    return [(first, second) for first, _, second in (line.partition(apart) for line in blocks(file, language)[head])]


@cache
def home_assistant(language: str) -> dict[str, Any]:
    """Home Assistant's own templates, of the package home-assistant-intents."""
    import home_assistant_intents

    path = Path(home_assistant_intents.__file__).parent / "data" / f"{language}.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@cache
def rules(split: str) -> dict[str, str]:
    """What `<rule>` stands for; in a test some words are others."""
    if split == "home assistant":
        return {**home_assistant("en")["expansion_rules"], **dict(pairs("home_assistant", "rules", " = "))}
    listed = dict(pairs("rules", "rules", " = "))
    return {**listed, **dict(pairs("rules", "held out", " = "))} if split == "test" else listed


@cache
def with_rules(template: str, split: str) -> str:
    while "<" in template:
        template = re.sub("<([^>]*)>", lambda rule: f"({rules(split)[rule[1]]})", template)
    return template


def expand(template: str, rng: random.Random, slots: Slots, split: str = "train") -> str:
    return sentence(with_rules(template, split), rng, slots)[0]


def weighted(lines: tuple[str, ...], rng: random.Random) -> str:
    """One of the lines `WEIGHT TEXT`."""
    pairs = [line.split(" ", 1) for line in lines]
    return rng.choices([text for _, text in pairs], [float(weight) for weight, _ in pairs])[0]


@cache
def number_words(number: int, language: str = "en") -> str:
    return str(num2words(number, lang=language)).replace("-", " ") if number <= 100 else str(number)


def spelled(number: int, rng: random.Random, language: str = "en") -> str:
    return number_words(number, language) if rng.random() < 0.55 else str(number)


@cache
def value_heads(language: str) -> dict[str, tuple[dict[str, list[int]], tuple[str, ...]]]:
    """By head of values.txt: the numbers of each name, and the lines."""
    heads = {}
    for head, lines in blocks("values", language).items():
        name, _, drawn = head.partition(" ")
        pairs = [pair.split("=") for pair in drawn.split("; ") if pair]
        heads[name] = ({key: list(numbers(listed)) for key, listed in pairs}, lines)
    return heads


def numbers(listed: str) -> Iterator[int]:
    """Of such as "3,10-50/5"."""
    for part in listed.split(","):
        first, _, rest = part.partition("-")
        last, _, step = rest.partition("/")
        yield from range(int(first), int(last or first) + 1, int(step or 1))


def value(head: str, rng: random.Random, language: str = "en") -> tuple[str, Any]:
    """A value as said, and what it is."""
    drawn, lines = value_heads(language)[head]
    while True:
        template, _, expression = weighted(lines, rng).rpartition(" = ")
        template = with_rules(template, "train") if language == "en" else template
        known: dict[str, Any] = {name: rng.choice(listed) for name, listed in drawn.items()}
        slots: dict[str, str] = {}
        for slot in sorted(slots_of(parsed(template))):
            name, _, form = slot.partition(":")
            if name in value_heads(language):
                slots[slot], known[name] = value(name, rng, language)
                continue
            number = known["h"] % 12 + 1 if name == "h+" else known[name]
            slots[slot] = {"d": str(number), "w": number_words(number, language), "2": f"{number:02}"}.get(
                form, spelled(number, rng, language))  # fmt: skip
        result = eval(expression, {}, known)
        if result is not None:
            return sentence(template, rng, slots)[0], result
