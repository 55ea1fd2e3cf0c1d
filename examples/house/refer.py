"""How a speaker refers to devices of a house, and which targets that means. Ambiguous references are not made.

The words that name devices carry a mark in front, so that they are found in the sentence whatever happens to it.
"""

import random
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from grammar import blocks, expand, pairs, weighted
from items import SPLITS, WEIGHTS, known, words

from merino_runtime.house.house import EVERYWHERE, MOST_TARGETS, Device, House

MARKS = "\ue000\ue001\ue002"  # of the commands of a sentence
MARK = MARKS[0]
BARE = {"upstairs", "downstairs"}
ON = {"balcony", "terrace", "patio", "porch", "landing", "stairs", "first floor", "top floor", "ground floor"}
CORE = set("light lights fan fans door doors lock locks switch switches heating one maker".split())  # noqa: SIM905
NO_WINDOW = {"door", "gate", "skylight", "awning", "canopy"}
COOLING = {"ac", "conditioner", "conditioning", "split", "pump"}
ONLY = {  # which devices a family may be said of
    "window": lambda spoken: not NO_WINDOW & spoken, "awning": lambda spoken: {"awning", "canopy"} & spoken,
    "heat": lambda spoken: not COOLING & spoken,
}  # fmt: skip


class Reference(NamedTuple):
    """`noun` with an article before it and where behind it. `area`: of a group, "" for the house, None for devices."""

    targets: tuple[str, ...]
    article: str
    noun: str
    place: str = ""
    plural: bool = False
    area: str | None = None

    @property
    def whole(self) -> str:
        return f"{self.article} {self.noun} {self.place}".strip()


def marked(text: str) -> str:
    return " ".join(MARK + word for word in text.split())


@cache
def opaque(name: str) -> bool:
    """Whether the last word is no listed name's: such a name is as a person's, without an article or with."""
    return name.split()[-1] not in listed_ends()


@cache
def listed_ends() -> frozenset[str]:
    names = [name for split in SPLITS for listed in ("areas", *WEIGHTS) for name in words(listed, split)]
    return frozenset(
        name.split()[-1] for name in [*names, *(head for each in WEIGHTS for head in words(f"{each} heads"))]
    )


def with_article(name: str, rng: random.Random, article: str = "") -> str:
    """The article of a name: a given one, or any."""
    robots = words("robots") + words("robots", "test")
    if "'s " in name or (opaque(name) or name in robots) and rng.random() < 0.6:
        return ""
    return article or expand("<the>", rng, {})


def the_area(area: str, rng: random.Random) -> str:
    return area if area in BARE else f"{with_article(area, rng)} {area}".strip()


def in_area(area: str, rng: random.Random) -> str:
    if area in BARE:
        return area
    preposition = "on" if area in ON else rng.choice(("in", "in", "in", "in", "in", "in", "inside", "at"))
    return f"{preposition} {the_area(area, rng)}"


def on_floor(floor: str) -> str:
    if floor in BARE:
        return floor
    return f"{'on' if 'floor' in floor else 'in'} the {floor}{' floor' if len(floor) < 7 and floor != 'cellar' else ''}"


def area_words(area: str, rng: random.Random, house: House) -> str:
    """An area as said: rarely by another word for it."""
    same = [row.split(", ") for row in blocks("references")["same area"] if area in row.split(", ")]
    others = [
        other for row in same for other in row if not any(other in f"{each.area} {each.name}" for each in house.devices)
    ]
    return rng.choice(others) if others and rng.random() < 0.06 else area


@cache
def called(name: str, domain: str) -> tuple[str, ...]:
    """What else a device may be called than its name: a part of it, or its kind. The name stands first."""
    parts, kinds = name.split(), known(name, domain)[0]
    names = [name]
    for tail in (parts[start:] for start in range(1, len(parts))):
        tells = not tail[0].isdigit() and tail[-1] not in ("one", "strip", "maker", "machine", "room")
        if tail[0] not in CORE and (tells or len(tail) > 1):
            names.append(" ".join(tail))
    owner = " ".join(parts[: next((start + 1 for start, part in enumerate(parts) if part.endswith("'s")), 0)])
    names += [*kinds, *(f"{owner} {kind}" for kind in kinds if owner)]
    if opaque(name):
        names += [
            f"{name} {kind}" for kind in {"light": ("light", "lamp"), "media_player": ("speaker",)}.get(domain, ())
        ]
    return tuple(dict.fromkeys([name, *(part for part in names if part not in CORE)]))


def meant(said: str, house: House, area: str | None = None) -> list[Device]:
    """The devices that a name may mean: in an area; without one, here if there are some, else in the house. Who has
    exactly this name goes before who is only called so."""
    local = [each for each in house.devices if each.area == (area or house.here)]
    for pool in [local] if area else [local, list(house.devices)]:
        loose = [each for each in pool if said in called(each.name, each.domain)]
        if loose:
            return [each for each in pool if each.name == said] or loose
    return []


def here_target(house: House, domain: str) -> str:
    """What a word for all of a domain means if no area is said."""
    fit = [each for each in house.devices if each.domain == domain]
    if any(each.area == house.here for each in fit):
        return f"{house.here}/{domain}"
    return house.label(fit[0]) if len(fit) == 1 else f"{EVERYWHERE}/{domain}"


def domain_words(house: House, domain: str, devices: Sequence[Device]) -> tuple[list[str], list[str]]:
    """Words that mean all these devices and none else, in the singular and the plural."""
    single: list[str] = []
    many: list[str] = []
    names = {each.name for each in house.devices}
    for head, words_listed in pairs("references", "words"):
        own, _, unless = head.partition(" unless ")
        # With "!" only words of other domains' names forbid them.
        spoken = {
            word for each in house.devices if "!" not in unless or each.domain != domain for word in each.name.split()
        }
        if own == domain and not spoken & set(unless.rstrip("!").split()):
            ones, several = words_listed.split("/")
            single += [word.strip() for word in ones.split(",") if word.strip() not in (*names, "")]
            many += [word.strip() for word in several.split(",") if word.strip() not in (*names, "")]
    if domain == "cover":
        kinds = [{*known(each.name, domain)[1], "covers"} for each in devices if not opaque(each.name)]
        fit = all(ONLY["window"](set(each.name.split())) for each in devices)
        many = [word for word in many if fit and all(word in each for each in kinds)]
    if domain == "climate":
        many = [word for word in many if len(devices) > 1 and all(word[:-1] in each.name for each in devices)]
        single = [] if any(COOLING & set(each.name.split()) for each in devices) else single
    if len(devices) > 1 and domain not in ("light", "climate"):
        single = []
    return single, many[:1] if len(devices) == 1 and domain not in ("light", "cover") else many


def refer(
    house: House, domains: Sequence[str], mode: str, rng: random.Random, chosen: Device | None = None
) -> Reference | None:
    """A reference to devices of these domains, or to a chosen one; None if the house has none, or what was tried is
    ambiguous. Modes are those of `commands.txt`."""
    devices = [chosen] if chosen else [each for each in house.devices if each.domain in domains]
    if not devices or mode == "m":
        return several(house, domains, rng) if devices else None
    device = rng.choice(devices)
    if mode == "n":
        made = (to_device(house, device, rng) for _ in range(3))
        return next((reference for reference in made if reference), None)
    if mode == "a" and house.floors and not chosen and rng.random() < 0.35:
        mode = "f"
    return to_group(house, device, mode, rng) or to_group(house, device, mode, rng)


def form_of(mode: str, rng: random.Random) -> list[str]:
    """A form of references.txt: article, noun and place."""
    return f"{weighted(blocks('references')[mode], rng)} ".split(" | ")


def to_device(house: House, device: Device, rng: random.Random) -> Reference | None:
    article, noun, place = form_of("n", rng)
    first, _, rest = device.name.partition(" ")
    area, targets = area_words(device.area, rng, house) if device.area else "", (house.label(device),)
    plural = device.name.endswith("s") and not opaque(device.name) and not device.name.endswith(("christmas", "sonos"))
    if "{kinds}" in noun:
        kinds = known(device.name, device.domain)
        local = [each for each in house.devices if (each.domain, each.area) == (device.domain, device.area)]
        same = [each for each in local if known(each.name, each.domain) == kinds]
        here = "{in}" in place or device.area == house.here
        if not kinds[1] or not 2 <= len(same) <= (2 if "both" in article else MOST_TARGETS) or not here or not area:
            return None
        targets = (f"{device.area}/{device.domain}",) if len(same) == len(local) else tuple(map(house.label, same))
        said, plural = kinds[1][0], True
        if any(each.name == said for each in house.devices):
            return None
    elif "{first}" in noun:
        if device.domain != "light" or len(rest.split()) != 1 or "'s" in first or first in house.areas or any(
            first in each.name.split() for each in house.devices if each != device
        ):  # fmt: skip
            return None
        said = ""
    else:
        said = device.name if "{name}" in noun else rng.choice(called(device.name, device.domain))
        placed = "{in}" in place or "{area}" in noun
        if placed and (not area or device.area in device.name or "'s " in said or "{area}" in noun and opaque(said)):
            return None
        longer = any(each.name == f"{area} {said}" for each in house.devices if each != device)
        if longer or meant(said, house, device.area if placed else None) != [device]:
            return None
    slots = {
        "name": said,
        "called": said,
        "first": first,
        "area": area,
        "kinds": said,
        "in": in_area(area, rng) if area else "",
    }
    noun, place = expand(noun, rng, slots), expand(place, rng, slots)
    return Reference(targets, with_article(noun, rng, expand(article, rng, {})), marked(noun), marked(place), plural)


def to_group(house: House, device: Device, mode: str, rng: random.Random) -> Reference | None:
    """Devices of a domain by a word for it: `g` what is here, `a` in an area, `f` on a floor, `h` in the house."""
    domain, floor = device.domain, rng.choice(house.floors or (("", ()),))
    place = {"g": here_target(house, domain), "a": f"{device.area}/{domain}", "f": f"{floor[0]}/{domain}"}
    target = place.get(mode, f"{EVERYWHERE}/{domain}")
    group = sorted(house.resolve(target), key=str)
    local = any(each.domain == domain and each.area == house.here for each in house.devices)
    if not group or mode == "a" and not device.area or mode == "h" and len(group) < 2 or floor[0] in house.areas:
        return None
    single, many = domain_words(house, domain, group)
    article, noun, where = form_of(mode, rng)
    is_light = domain == "light"
    if (
        mode == "g"
        and not local
        and where.strip()
        or not is_light
        and ("light" in noun or "{domain}" in noun and domain != "fan")
    ):
        return None
    if noun == "both" and len(group) != 2:
        return None
    single = [word for word in single if not is_light or len(group) == 1 or rng.random() < 0.5] if mode != "h" else []
    word = rng.choice([*single, *many]) if single or many else ""
    if not word or "{plural}" in noun and not many:
        return None
    several = rng.choice(many) if many else ""
    spoken = area_words(device.area, rng, house)
    slots = {
        "word": word, "plural": several, "area": spoken, "domain": domain, "floor": floor[0], "on": on_floor(floor[0]),
        "in": lambda: in_area(spoken, rng),
    }  # fmt: skip
    is_plural = "{plural}" in noun or "lights" in noun or "{word}" in noun and word in many
    noun = expand(noun, rng, slots)
    if any(each.name in (noun, f"{noun}s") for each in house.devices) and mode in "a":
        return None
    article = "" if "'s " in noun and "all" not in article else expand(article, rng, {})
    area = {"g": house.here if local else "", "a": device.area, "f": floor[0], "h": ""}[mode]
    return Reference((target,), article, marked(noun), marked(expand(where, rng, slots)), is_plural, area)


def several(house: House, domains: Sequence[str], rng: random.Random) -> Reference | None:
    """Two or three at once, in their order: "the kitchen and bedroom lights", or each by itself."""
    wanted = rng.choice((2, 2, 2, 3))
    if rng.random() < 0.35:
        domain = rng.choice(sorted({each.domain for each in house.devices} & set(domains)))
        areas = list(dict.fromkeys(each.area for each in house.devices if each.domain == domain and each.area))
        chosen = rng.sample(areas, min(len(areas), wanted))
        many = domain_words(
            house, domain, [each for each in house.devices if each.domain == domain and each.area in chosen]
        )[1]
        if len(chosen) < 2 or not many:
            return None
        targets, word = tuple(f"{area}/{domain}" for area in chosen), rng.choice(many)
        if rng.random() < 0.5:
            return Reference(
                targets, with_article(chosen[0], rng, "the"), marked(f"{listed(chosen, rng)} {word}"), "", True
            )
        return Reference(
            targets, "the", marked(word), marked(f"in {listed([the_area(area, rng) for area in chosen], rng)}"), True
        )
    parts: list[Reference] = []
    seen: set[Device] = set()
    for _ in range(10):
        part = refer(house, domains, rng.choice("nnna"), rng)
        devices = {device for target in part.targets for device in house.resolve(target)} if part else seen
        # A place behind the last would be heard as the place of all.
        if part and devices and not devices & seen and (len(parts) < wanted - 1 or not part.place):
            seen |= devices
            parts.append(part)
        if len(parts) == wanted:
            targets = tuple(target for part in parts for target in part.targets)
            return Reference(targets, "", listed([part.whole for part in parts], rng), "", True)
    return None


def listed(names: list[str], rng: random.Random) -> str:
    joint = rng.choice((" and ", " and ", " and ", " and ", " plus ", " as well as ", " and also "))
    return (", " if rng.random() < 0.4 else " and ").join(names[:-1]) + joint + names[-1]
