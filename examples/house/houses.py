"""Invented houses: what a house may have, and one of them by a seed.

Names stand in lists, `phrases/names.txt`: a part is held out, so a test asks for names that no training house had.
Words without a meaning are spelled from syllables; one in eight of them is held out, by its hash. In training half
of the names have a word of the dictionary in place of one of theirs, any word: names are to be copied, and a
decoder that saw the same 400 words in all houses would know them instead.
"""

import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from grammar import blocks
from wonderwords import RandomWord

from merino_runtime.house.candidates import LONGEST_LISTING, MOST_DEVICES, candidates, listed_length, whole_fits
from merino_runtime.house.house import COLORS, EVERYWHERE, NOWHERE, Device, House

SPLITS = ("train", "test")
WEIGHTS = {
    "light": 38, "switch": 15, "cover": 11, "media_player": 12, "climate": 8, "fan": 6, "lock": 5, "vacuum": 4,
    "scene": 6, "script": 3, "todo": 5,
}
UNPLACED = "scene", "script", "todo"  # most of them are in no area
# The last word that a made-up name of a domain may have: "zorbo lamp".
HEADS = {
    "light": ("lamp", "light", "lights", "lamp"), "switch": ("plug", "socket", "switch"), "fan": ("fan",),
    "cover": ("blinds", "curtains"), "lock": ("door", "lock"), "climate": ("heating", "thermostat"),
    "media_player": ("speaker", "tv"), "vacuum": ("robot", "vacuum"), "scene": ("mood", "time"),
    "script": ("routine", "script"), "todo": ("list",),
}  # fmt: skip


@cache
def words(listed: str, split: str) -> tuple[str, ...]:
    """The names of a list that a split may have. A test has its own only, a training never those."""
    lines = blocks("names")[listed if split == "train" else f"{listed} held out"]
    return tuple(name.strip() for name in " ".join(lines).split(","))


@cache
def held_out_names() -> tuple[str, ...]:
    """What no training house has: names of areas, devices, people, brands, and adjectives."""
    lists = [listed.removesuffix(" held out") for listed in blocks("names") if listed.endswith(" held out")]
    return tuple(name for listed in lists for name in words(listed, "test"))


ONSETS = (
    "b", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "br", "dr", "fl", "gl", "kr",
    "pl", "sh", "st", "tr", "th", "qu",
)


def invented(rng: random.Random, split: str) -> str:
    while True:
        pieces = [rng.choice(ONSETS) + rng.choice("aeiou") for _ in range(rng.choice((2, 2, 3)))]
        word = "".join(pieces) + rng.choice(("", "", "", "n", "x", "l", "r", "s", "nd"))
        if (zlib.crc32(word.encode()) % 8 == 0) == (split == "test"):
            return word


@cache
def dictionary() -> tuple[str, ...]:
    """Nouns and adjectives that may stand in any name: none that is held out, or that commands are made of."""
    listed = RandomWord().filter(include_categories=["noun", "adjective"], regex="[a-z]{3,12}")
    excluded = held_out_words() | command_words()
    return tuple(sorted(set(listed) - excluded))


@cache
def held_out_words() -> frozenset[str]:
    return frozenset(word for name in (*held_out_names(), *assistants("test")) for word in name.split())


def assistants(split: str) -> list[str]:
    """How an assistant is addressed."""
    return blocks("wraps")["assistants" if split == "train" else "assistants held out"]


@cache
def command_words() -> frozenset[str]:
    files = ("commands", "moods", "uses", "verbs", "wraps", "heard", "rules", "timers")
    lines = [line for file in files for listed in blocks(file).values() for line in listed]
    kinds = [*HEADS, *(head for heads in HEADS.values() for head in heads), *COLORS]
    return frozenset(re.findall("[a-z]+", " ".join([*lines, *kinds])))


def strange(rng: random.Random) -> str:
    """Of a training house: a word of the dictionary, or one in ways of spelling that `invented` has not."""
    if rng.random() < 0.7:
        return rng.choice(dictionary())
    onsets = "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sc sh sl sn sp st str sw t th tr w z"
    vowels, codas = "a e i o u a e i o u ai ea ee oo ou ow ay", "n r l m s t p ck nd st rd ng lt mp"
    syllables = [
        rng.choice(onsets.split()) + rng.choice(vowels.split()) + rng.choice(["", "", "", *codas.split()])
        for _ in range(rng.choice((1, 2, 2)))
    ]
    word = "".join(syllables) + rng.choice(("", "", "er", "y", "le", "ing", "ton", "ette", "o"))
    return word if zlib.crc32(word.encode()) % 8 and word not in held_out_words() else strange(rng)


def with_strange(name: str, rng: random.Random, heads: Sequence[str]) -> str:
    """A name with a strange word in place of one of its words, or of all."""
    word, parts = strange(rng), name.split()
    made = f"{word} {rng.choice(heads)}"
    forms = [word, made, made, f"{word} {parts[-1]}", f"{word}'s {name}"]
    if len(parts) > 1:
        forms += [f"{parts[0]} {word}", f"{word} {strange(rng)}"]
    return rng.choice(forms)


def area_name(rng: random.Random, split: str) -> str:
    if split == "train" and rng.random() < 0.4:
        return with_strange(rng.choice(words("areas", split)), rng, ("room", "room", "corner", "house"))
    how = rng.random()
    # Half of a test's areas are usual ones: a house of none but strange ones would be another task.
    listed = "train" if split == "train" or rng.random() < 0.5 else "test"
    if how < 0.84:
        return rng.choice(words("areas", listed)[: rng.choice((16, 200))])
    if how < 0.95:
        return f"{rng.choice(words('people', split))}'s {rng.choice(words('owned areas', 'train'))}"
    return rng.choice((invented(rng, split), f"{invented(rng, split)} room"))


def device_name(rng: random.Random, domain: str, area: str, split: str) -> str:
    if split == "train" and rng.random() < 0.55:
        return with_strange(rng.choice(words(domain, split)), rng, HEADS[domain])
    how, listed = rng.random(), "train" if split == "train" or rng.random() < 0.4 else "test"
    base = rng.choice(words(domain, listed))
    if domain in UNPLACED:
        if how >= 0.9:
            return invented(rng, split)
        return base if how < 0.85 else f"{rng.choice(words('people', split))}'s {base}"
    if domain == "vacuum" and how < 0.3:
        return rng.choice(words("robots", split))
    if how < 0.56 or len(base.split()) > 2:
        return base
    if how < 0.66 and not {area, area.split()[-1]} & set(base.split()):
        return f"{area} {base}"
    if how < 0.74:
        return f"{rng.choice(words('people', split))}'s {base}"
    if how < 0.80:
        return f"{rng.choice(words('brands', split))} {base.split()[-1] if rng.random() < 0.5 else base}"
    if how < 0.89:
        return f"{rng.choice(words('adjectives', split))} {base}"
    return rng.choice((invented(rng, split), f"{invented(rng, split)} {rng.choice(HEADS[domain])}"))


LARGE = {"train": 0.5, "test": 0.0}  # share of the houses of which the model sees candidates


def floors_of(areas: Sequence[str], rng: random.Random) -> tuple[tuple[str, tuple[str, ...]], ...]:
    names = rng.choice(blocks("names")["floors"]).split(", ")
    if set(names) & set(areas):
        return ()
    on = {area: rng.choice(names) for area in areas}
    return tuple((name, tuple(area for area in areas if on[area] == name)) for name in names if name in on.values())


def make_house(rng: random.Random, split: str) -> House:
    """A house that the model reads: a small one, or the candidates of a large one for words of one of its devices."""
    if rng.random() >= LARGE[split]:
        house = small_house(rng, split)
        return house._replace(here=NOWHERE) if split == "train" and rng.random() < 0.06 else house
    if split not in LAST or rng.random() < 0.2:
        LAST[split] = large_house(rng, split, rng.choice((20, 30, 45, 60, 100, 150)))
    house = LAST[split]._replace(here=rng.choice(LAST[split].areas))
    return candidates(house, query(house, rng))


LAST: dict[str, House] = {}  # a large house serves for some samples


def with_hidden(shown: House, rng: random.Random) -> House:
    """The house with two devices for each domain that it has besides: a sentence can ask for their group."""
    hidden = []
    for area, domains in shown.also:
        for domain in (domain for domain in domains for _ in range(2)):
            name = f"{strange(rng)} {strange(rng)} {rng.choice(HEADS[domain])}"
            hidden.append(Device(name, domain, f"{strange(rng)} wing" if area == EVERYWHERE else area))
    return House((*shown.devices, *hidden), shown.here, shown.floors)


def query(house: House, rng: random.Random) -> str:
    """Words of a sentence, by which candidates are chosen."""
    verbs = ("turn on", "turn off", "open", "close", "what is", "play", "make it warmer", "it is dark", "dim")
    said = [rng.choice(verbs)]
    for _ in range(rng.choice((1, 1, 2))):
        device = rng.choice(house.devices)
        place = f"in the {device.area}"
        names = (device.name, device.name, device.name.split()[-1], device.domain, rng.choice(house.areas))
        said.append(rng.choice((*names, f"{device.name} {place}", f"{device.domain}s {place}")))
    return " ".join(said)


def realistic_name(rng: random.Random, domain: str, area: str, split: str) -> str:
    """As owners and integrations name devices: the area and the kind, the kind alone, a model and a number."""
    how = rng.random()
    if domain in UNPLACED or how < 0.3:
        return device_name(rng, domain, area, split)
    usual = words(domain, "train" if split == "train" or how < 0.6 else "test")
    kind = rng.choice((rng.choice(words(f"{domain} kinds", "train")), rng.choice(usual)))
    if how < 0.52:
        return f"{area} {kind}"
    if how < 0.7:
        return kind
    if how < 0.78:
        return f"{kind} {rng.choice((1, 1, 2, 2, 3, 4, 5))}"
    if how < 0.83:
        return f"{area} {kind} {rng.choice((1, 2, 2, 3))}"
    if how < 0.86:
        return f"{rng.choice(('left', 'right', 'back', 'front', 'small', 'big', 'upper', 'lower'))} {kind}"
    model = rng.choice(words(f"{domain} models", "train"))
    if how < 0.9:
        return f"{area} {model}"
    return f"{model} {rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 12))}" if how < 0.97 else model


def large_house(rng: random.Random, split: str, size: int) -> House:
    """A house of so many devices. Names can occur in several areas."""
    count = max(4, min(30, round(size / rng.uniform(3, 9))))
    usual = words("areas", "train")[:32]
    drawn = [area_name(rng, split) if rng.random() < 0.4 else rng.choice(usual) for _ in range(count)]
    areas = list(dict.fromkeys(drawn))
    taken = {"light", "lights", "fan", "lock", *(held_out_names() if split == "train" else ())}
    devices: dict[tuple[str, str], Device] = {}
    few = {"vacuum": 1 + size // 150, "todo": 1 + size // 60, "scene": 3 + size // 25, "script": 2 + size // 40}
    domains = list(WEIGHTS)
    named: dict[str, str] = {}
    for _ in range(20 * size):
        if len(devices) == size:
            break
        domain = rng.choices(domains, list(WEIGHTS.values()))[0]
        if domain in few and sum(each.domain == domain for each in devices.values()) >= few[domain]:
            continue
        area = "" if domain in UNPLACED and rng.random() < 0.8 else rng.choice(areas)
        name = realistic_name(rng, domain, area or areas[0], split)
        # One name is of one domain, and only devices with areas share it.
        if name in taken or name in areas or (name, area) in devices:
            continue
        if named.setdefault(name, domain if area else name) != domain:
            continue
        if f"{area}/{name}" in (f"{area}/{one}" for one in domains):
            continue
        devices[name, area] = Device(name, domain, area)
        if not area:
            taken.add(name)
    kept = [area for area in areas if any(device.area == area for device in devices.values())]
    ordered = tuple(device for area in [*kept, ""] for device in devices.values() if device.area == area)
    floors = floors_of(kept, rng) if rng.random() < 0.5 else ()
    return House(ordered, rng.choice(kept), floors)


def small_house(rng: random.Random, split: str) -> House:
    """A house whose listing is short enough. Names differ from each other, and from areas."""
    areas = list(dict.fromkeys(area_name(rng, split) for _ in range(rng.randint(3, 7))))
    wanted = rng.randint(5, MOST_DEVICES)
    realistic = rng.random() < 0.25
    # Rooms are filled unevenly, and a house has not every domain.
    weights = [weight * rng.choice((0, 1, 1, 2)) + 0.01 for weight in WEIGHTS.values()]
    domains = rng.choices(list(WEIGHTS), weights, k=wanted)
    devices: list[Device] = []
    taken = {"light", "lights", "fan", "lock", *areas, *(held_out_names() if split == "train" else ())}
    length = len("here: ") + max(map(len, areas))
    for place, domain in enumerate(domains):
        area = areas[place] if place < len(areas) else rng.choice(areas)
        name = (realistic_name if realistic else device_name)(rng, domain, area, split)
        area = "" if domain in UNPLACED and rng.random() < 0.5 else area
        length += listed_length(Device(name, domain, area)) + (len(area) + 2 if place < len(areas) else 0)
        if length > LONGEST_LISTING and place >= 4:
            break
        if name not in taken:
            taken.add(name)
            devices.append(Device(name, domain, area))
    kept = [area for area in areas if any(device.area == area for device in devices)]
    if not kept:
        return small_house(rng, split)
    rng.shuffle(kept)
    ordered = tuple(device for area in [*kept, ""] for device in devices if device.area == area)
    house = House(ordered, rng.choice(kept), floors_of(kept, rng) if rng.random() < 0.25 else ())
    return house if whole_fits(house) else small_house(rng, split)


def near(areas: list[str]) -> Iterator[str]:
    """Areas that a speaker could mean by another word for one of these: no refusal may ask for them."""
    for group in blocks("choices")["near areas"]:
        named = group.split(", ")
        if any(word in area for area in areas for word in named):
            yield from named


@dataclass(frozen=True)
class Known:
    """What a speaker knows of a device beside its name: words for its kind, in the singular and the plural."""

    single: tuple[str, ...] = ()
    plural: tuple[str, ...] = ()


@cache
def kinds() -> dict[str, Known]:
    """By a word of the name. A kind that is not listed is called by the name's last word."""
    rows = (line.split(": ") for line in blocks("choices")["kinds"])
    listed = ((word, (names.split(", ") if names else [] for names in said.split(" / "))) for word, said in rows)
    return {word: Known(*map(tuple, names)) for word, names in listed}


@cache
def known(name: str, domain: str) -> Known:
    """The kind of a device, by the last word of its name that tells one."""
    for word in reversed(name.split()):
        if word in kinds() and not (domain == "vacuum" and word == "mop"):
            return kinds()[word]
    return kinds()["robot"] if domain == "vacuum" else Known()
