"""Invented houses: what a house may have, and one of them by a seed.

Names are made of lists, `phrases/names.txt`: a part is held out, so a test asks for names that no training house had.
Of words without a meaning one in eight is held out, by its hash. In training a word of the dictionary replaces one
word in half of the names. The decoder must copy names, and would memorize them if all houses used the same 400 words.
"""

import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

from grammar import blocks, expand, pairs, weighted
from wonderwords import RandomWord

from merino_runtime.house.candidates import MOST_DEVICES, candidates, whole_fits
from merino_runtime.house.house import COLORS, EVERYWHERE, NOWHERE, Device, House

SPLITS = ("train", "test")
WEIGHTS = {
    "light": 38,
    "switch": 15,
    "cover": 11,
    "media_player": 12,
    "climate": 8,
    "fan": 6,
    "lock": 5,
    "vacuum": 4,
    "scene": 6,
    "script": 3,
    "todo": 5,
}
UNPLACED = "scene", "script", "todo"  # most of them are in no area
LARGE = {"train": 0.5, "test": 0.0}  # share of the houses of which the model sees candidates
LAST: dict[str, House] = {}  # a large house serves for some samples


@cache
def words(listed: str, split: str = "train") -> tuple[str, ...]:
    """The names of a list that a split may have. A test has its own only, a training never those."""
    lines = blocks("names")[listed if split == "train" else f"{listed} held out"]
    return tuple(name.strip() for name in " ".join(lines).split(","))


@cache
def held_out_names() -> tuple[str, ...]:
    """What no training house has: names of areas, devices, people, brands, and adjectives."""
    lists = [listed.removesuffix(" held out") for listed in blocks("names") if listed.endswith(" held out")]
    return tuple(name for listed in lists for name in words(listed, "test"))


@cache
def held_out_words() -> frozenset[str]:
    return frozenset(word for name in (*held_out_names(), *assistants("test")) for word in name.split())


def assistants(split: str) -> tuple[str, ...]:
    """How an assistant is addressed."""
    return blocks("wraps")["assistants" if split == "train" else "assistants held out"]


@cache
def dictionary() -> tuple[str, ...]:
    """Return nouns and adjectives for names, without the held-out words and the words of commands."""
    files = ("commands", "moods", "uses", "verbs", "wraps", "heard", "rules", "timers")
    lines = [line for file in files for listed in blocks(file).values() for line in listed]
    heads = [head for domain in WEIGHTS for head in words(f"{domain} heads")]
    commands = set(re.findall("[a-z]+", " ".join([*lines, *WEIGHTS, *heads, *COLORS])))
    listed = RandomWord().filter(include_categories=["noun", "adjective"], regex="[a-z]{3,12}")
    return tuple(sorted(set(listed) - held_out_words() - commands))


class Names(NamedTuple):
    """How a language names areas, devices and floors. `usual`: areas of large houses. `held_out`: names that no
    training house has. `taken`: words that name no device."""

    area: Callable[[random.Random, str], str]
    device: Callable[[random.Random, str, str, str, bool], str]
    floors: Callable[[random.Random], list[str]]
    usual: tuple[str, ...]
    held_out: frozenset[str]
    taken: frozenset[str]


def strange(rng: random.Random, split: str = "train", share: float = 0.7) -> str:
    """A word that says nothing of a device: of training houses this share is of the dictionary."""
    if split == "train" and rng.random() < share:
        return rng.choice(dictionary())
    while True:
        word = expand(rng.choice(blocks("names")["spelling"]), rng, {})
        is_test = zlib.crc32(word.encode()) % 8 == 0
        if is_test == (split == "test") and word not in held_out_words():
            return word


def made(rng: random.Random, split: str, listed: str, forms: str, area: str = "") -> str:
    """A name from a list by the forms of names."""
    share = {"areas": (0.4, 0.5)}.get(listed, (0.55, 0.4))
    if split == "train" and forms != "realistic forms" and rng.random() < share[0]:
        forms = "strange forms"
    usual = split == "train" or rng.random() < share[1]
    pool = words(listed, "train" if usual else "test")
    base = rng.choice(pool[: rng.choice((16, 200))] if listed == "areas" else pool)
    if forms == "forms" and len(base.split()) > 2:
        return base
    single = "area" if listed == "areas" else listed
    slots = {
        "base": base, "first": base.split()[0], "last": base.split()[-1], "area": area,
        "person": lambda: rng.choice(words("people", split)), "brand": lambda: brand(rng, split),
        "adjective": lambda: rng.choice(words("adjectives", split)), "owned": lambda: rng.choice(words("owned areas")),
        "strange": lambda: strange(rng, split), "head": lambda: rng.choice(words(f"{single} heads")),
        "model": lambda: rng.choice(words(f"{listed} models")),
        "kind": lambda: rng.choice((rng.choice(words(f"{listed} kinds")), base)),
    }  # fmt: skip
    form = weighted(blocks("names")[forms], rng)
    if "{area} {base}" in form and {area, area.split()[-1]} & set(base.split()):
        return base
    return expand(form, rng, slots)


def area_name(rng: random.Random, split: str) -> str:
    return made(rng, split, "areas", "area forms")


def brand(rng: random.Random, split: str) -> str:
    """A maker's name."""
    return rng.choice(words("brands", split))


def device_name(rng: random.Random, domain: str, area: str, split: str, realistic: bool = False) -> str:
    """`realistic`: mostly as owners and integrations name devices, by area and kind, or by model and number."""
    if domain == "vacuum" and rng.random() < 0.3:
        return rng.choice(words("robots", split))
    if domain not in UNPLACED and realistic and rng.random() < 0.7:
        return made(rng, split, domain, "realistic forms", area)
    return made(rng, split, domain, "unplaced forms" if domain in UNPLACED else "forms", area)


@cache
def english_names() -> Names:
    def floors(rng: random.Random) -> list[str]:
        return rng.choice(blocks("names")["floors"]).split(", ")

    taken = frozenset({"light", "lights", "fan", "lock"})
    return Names(area_name, device_name, floors, words("areas")[:32], frozenset(held_out_names()), taken)


def new_house(rng: random.Random, split: str, size: int = 0, named: Names | None = None) -> House:
    """A house of so many devices, whose names can occur in several areas; without a size one that is read whole, with
    names that differ from each other and from areas."""
    count = max(4, min(30, round(size / rng.uniform(3, 9)))) if size else rng.randint(3, 7)
    named = named or english_names()
    usual = named.usual if size else ()
    drawn = (rng.choice(usual) if usual and rng.random() < 0.6 else named.area(rng, split) for _ in range(count))
    areas = list(dict.fromkeys(drawn))
    # A small house has not every domain, and a large one few of some.
    weights = [weight * (1 if size else rng.choice((0, 1, 1, 2))) + 0.01 for weight in WEIGHTS.values()]
    few = {"vacuum": 1 + size // 150, "todo": 1 + size // 60, "scene": 3 + size // 25, "script": 2 + size // 40}
    wanted, realistic = size or rng.randint(5, MOST_DEVICES), bool(size) or rng.random() < 0.25
    taken = {*named.taken, *areas, *(WEIGHTS if size else ()), *(named.held_out if split == "train" else ())}
    devices: dict[tuple[str, str], Device] = {}
    domains: dict[str, str] = {}  # of names that devices of several areas share
    counts: Counter[str] = Counter()
    for attempt in range(20 * wanted):
        if len(devices) == wanted:
            break
        domain = rng.choices(list(WEIGHTS), weights)[0]
        if size and counts[domain] >= few.get(domain, size):
            continue
        placed = areas[attempt] if attempt < len(areas) else rng.choice(areas)
        area = "" if domain in UNPLACED and rng.random() < (0.8 if size else 0.5) else placed
        name = named.device(rng, domain, placed, split, realistic)
        if name in taken or (name, area) in devices or domains.setdefault(name, domain) != domain:
            continue
        devices[name, area] = Device(name, domain, area)
        if not size and not whole_fits(House(tuple(devices.values()), placed)):
            del devices[name, area]
            break
        counts[domain] += 1
        taken |= {name} if not size or not area else set()
    kept = [area for area in areas if any(device.area == area for device in devices.values())]
    if not kept:
        return new_house(rng, split, size, named)
    rng.shuffle(kept)
    ordered = tuple(device for area in [*kept, ""] for device in devices.values() if device.area == area)
    floors = floors_of(kept, named.floors(rng), rng) if rng.random() < (0.5 if size else 0.25) else ()
    house = House(ordered, rng.choice(kept), floors)
    return house if size or whole_fits(house) else house._replace(floors=())


def floors_of(areas: list[str], names: list[str], rng: random.Random) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if set(names) & set(areas):
        return ()
    on = {area: rng.choice(names) for area in areas}
    return tuple((name, tuple(area for area in areas if on[area] == name)) for name in names if name in on.values())


SAID = ("turn on", "turn off", "open", "what is", "play", "make it warmer", "it is dark", "dim")


def make_house(
    rng: random.Random, split: str, named: Names | None = None, language: str = "en", words_said: Sequence[str] = SAID
) -> House:
    """A house that the model reads: a small one, or the candidates of a large one for words of one of its devices."""
    if rng.random() >= LARGE[split]:
        house = new_house(rng, split, 0, named)._replace(language=language)
        return house._replace(here=NOWHERE) if split == "train" and rng.random() < 0.06 else house
    if split not in LAST or rng.random() < 0.2:
        LAST[split] = new_house(rng, split, rng.choice((20, 30, 45, 60, 100, 150)), named)._replace(language=language)
    house = LAST[split]._replace(here=rng.choice(LAST[split].areas))
    said = [rng.choice(words_said)]
    for _ in range(rng.choice((1, 1, 2))):
        device = rng.choice(house.devices)
        names = (device.name, device.name, device.name.split()[-1], device.domain, rng.choice(house.areas))
        said.append(rng.choice((*names, f"{device.name} in {device.area}", f"{device.domain}s in {device.area}")))
    return candidates(house, " ".join(said))


def with_hidden(shown: House, rng: random.Random) -> House:
    """The house with two devices for each domain that it has besides: a sentence can ask for their group."""
    hidden = [
        Device(f"{strange(rng)} {strange(rng)} {rng.choice(words(f'{domain} heads'))}", domain,
               f"{strange(rng)} wing" if area == EVERYWHERE else area)
        for area, domains in shown.also for domain in domains for _ in range(2)
    ]  # fmt: skip
    return shown._replace(devices=(*shown.devices, *hidden), also=())


def near(areas: list[str]) -> Iterator[str]:
    """Areas that a speaker could mean by another word for one of these: no refusal may ask for them."""
    for group in blocks("choices")["near areas"]:
        named = group.split(", ")
        if any(word in area for area in areas for word in named):
            yield from named


@cache
def known(name: str, domain: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words for a device's kind, in the singular and the plural, by the last word of its name that tells one."""
    kinds = dict(pairs("choices", "kinds"))
    told = [word for word in name.split() if word in kinds and not (domain == "vacuum" and word == "mop")]
    said = kinds[told[-1]] if told else kinds["robot"] if domain == "vacuum" else "/"
    single, plural = (tuple(filter(None, map(str.strip, part.split(",")))) for part in said.split("/"))
    return single, plural
