"""How a speaker refers to devices of a house, and which targets that means. Ambiguous references are not made."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from grammar import blocks
from houses import HEADS, SPLITS, known, words

from merino_runtime.house.house import EVERYWHERE, MOST_TARGETS, Device, House

# Words for any device of a domain, in the singular and the plural.
GENERIC: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "light": (("light",), ("lights", "lights", "lights", "lighting")), "switch": (("switch",), ("switches",)),
    "fan": (("fan",), ("fans",)),
    "cover": ((), ("blinds", "shades", "curtains", "shutters", "window blinds", "covers")),
    "lock": (("door", "lock"), ("doors", "locks", "door locks")),
    "climate": (("heating", "heat", "thermostat"), ("thermostats",)),
    "vacuum": (
        ("vacuum", "robot", "vacuum cleaner", "hoover", "robot vacuum", "cleaner", "vacuum robot", "cleaning robot"),
        ("vacuums", "robots"),
    ),
    **dict.fromkeys(("media_player", "scene", "script", "todo"), ((), ())),
}  # fmt: skip

CORE = {
    "light", "lights", "fan", "fans", "door", "doors", "lock", "locks", "switch", "switches", "heating", "one",
    "maker",
}
COOLING = {"ac", "conditioner", "conditioning", "split", "pump"}
AWNINGS = {"awning", "canopy"}
NO_WINDOW = {"door", "gate", "skylight"} | AWNINGS
ON = {"balcony", "terrace", "patio", "porch", "landing", "stairs", "first floor", "top floor", "ground floor"}
BARE = {"upstairs", "downstairs"}
SAME_AREA = (
    ("living room", "lounge", "sitting room"), ("hallway", "hall", "corridor"), ("office", "study"), ("toilet", "loo"),
    ("kids room", "children's room"), ("backyard", "yard"),
)  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """`said`: its noun; `place`: where, said behind the verb or the noun; `area`: the group's, of the house ''."""

    targets: tuple[str, ...]
    article: str
    said: str
    place: str = ""
    plural: bool = False
    area: str | None = None

    @property
    def noun(self) -> str:
        return f"{self.article} {self.said}".strip()

    @property
    def whole(self) -> str:
        return f"{self.noun} {self.place}".strip()


@cache
def listed_names() -> frozenset[str]:
    return frozenset(name for split in SPLITS for listed in ("areas", *HEADS) for name in words(listed, split))


@cache
def ends() -> frozenset[str]:
    """Last words of names with a meaning: a name that ends otherwise is as a person's, without an article or with."""
    return frozenset(
        [name.split()[-1] for name in listed_names()] + [word.split()[-1] for heads in HEADS.values() for word in heads]
    )


def opaque(name: str) -> bool:
    return name.split()[-1] not in ends()


def article(name: str, rng: random.Random) -> str:
    if "'s " in name:
        return ""
    if name in words("robots", "train") + words("robots", "test") or opaque(name):
        return rng.choice(("", "", "the"))
    return rng.choice(("the", "the", "the", "the", "the", "the", "my", "our")) if rng.random() < 0.9 else "that"


def area_words(area: str, rng: random.Random, house: House) -> str:
    """An area as said: rarely by another word for it."""
    if rng.random() < 0.06:
        named = [*house.areas, *(device.name for device in house.devices)]
        for same in SAME_AREA:
            others = [other for other in same if other != area]
            if area in same and not any(other in name for other in others for name in named):
                return rng.choice(others)
    return area


def the_area(area: str, rng: random.Random, said: str | None = None) -> str:
    said = said or area
    if "'s " in said or area in BARE or opaque(area) and rng.random() < 0.5:
        return said
    return f"{rng.choice(('the', 'the', 'the', 'the', 'the', 'the', 'my', 'our'))} {said}"


def in_area(area: str, rng: random.Random, said: str | None = None) -> str:
    if area in BARE:
        return area
    preposition = "on" if area in ON else rng.choice(("in", "in", "in", "in", "in", "in", "in", "inside", "at"))
    return f"{preposition} {the_area(area, rng, said)}"


def cooling(device: Device) -> bool:
    return bool(COOLING & set(device.name.split()))


def heats(device: Device) -> bool:
    return not cooling(device)


def awning(device: Device) -> bool:
    return bool(AWNINGS & set(device.name.split()))


def window(device: Device) -> bool:
    return not NO_WINDOW & set(device.name.split())


@cache
def called(name: str, domain: str) -> tuple[str, ...]:
    """What else a device may be called than its name: a part of it, or its kind. The name stands first."""
    parts = name.split()
    names = [name]
    for start in range(1, len(parts)):
        tail = parts[start:]
        tells = not tail[0].isdigit() and tail[-1] not in ("one", "strip", "maker", "machine", "room")
        if tail[0] not in CORE and (tells or len(tail) > 1):
            names.append(" ".join(tail))
    names += known(name, domain).single
    owner = next((start + 1 for start, part in enumerate(parts) if part.endswith("'s")), 0)
    if owner:
        names += [f"{' '.join(parts[:owner])} {kind}" for kind in known(name, domain).single]
    if domain == "light" and opaque(name):
        names += [f"{name} light", f"{name} lamp"]
    if domain == "media_player" and opaque(name):
        names.append(f"{name} speaker")
    return tuple(dict.fromkeys([name, *[part for part in names if part not in CORE]]))


def meant(said: str, house: House, area: str | None = None) -> list[Device]:
    """The devices that a name may mean: in an area; without one, here if there are some, else in the house. Who has
    exactly this name goes before who is only called so."""
    local = [each for each in house.devices if each.area == (area or house.here)]
    for pool in [local] if area else [local, list(house.devices)]:
        exact = [each for each in pool if each.name == said]
        loose = [each for each in pool if said in called(each.name, each.domain)]
        if loose:
            return exact if exact else loose
    return []


def by_name(house: House, device: Device, rng: random.Random) -> Reference | None:
    how = rng.random()
    said = device.name if how < 0.62 else rng.choice(called(device.name, device.domain))
    where = ""
    area_in_name = device.area in device.name
    if how > 0.84 or 0.5 < how < 0.6:
        if area_in_name or "'s " in said and rng.random() < 0.7:
            return None
        spoken = area_words(device.area, rng, house)
        if rng.random() < 0.45 and "'s " not in said and not opaque(device.name):
            # "the office desk lamp"
            named = any(each.name == f"{spoken} {said}" for each in house.devices)
            if named or meant(said, house, device.area) != [device]:
                return None
            det = "" if "'s " in spoken else rng.choice(("the", "the", "my"))
            return Reference((house.label(device),), det, f"{spoken} {said}", plural=plural(said))
        where = in_area(device.area, rng, spoken)
    if meant(said, house, device.area if where else None) != [device]:
        return None
    if not where and any(each.name == said for each in house.devices if each.name != device.name):
        return None
    return Reference((house.label(device),), article(said, rng), said, where, plural(said))


def plural(said: str) -> bool:
    last = said.split()[-1]
    return last.endswith("s") and last not in ("christmas", "sonos", "wireless", "glass") and not opaque(last)


def one_of(house: House, device: Device) -> Reference | None:
    """'the bedside one', 'the left one'."""
    first, _, rest = device.name.partition(" ")
    if device.domain != "light" or not rest or "'s" in device.name or len(rest.split()) > 1 or first in house.areas:
        return None
    if any(first in each.name.split() for each in house.devices if each != device):
        return None
    return Reference((house.label(device),), "the", f"{first} one")


def here_target(house: House, domain: str) -> str:
    """What a word for all of a domain means where no area is said."""
    fit = [each for each in house.devices if each.domain == domain]
    if any(each.area == house.here for each in fit):
        return f"{house.here}/{domain}"
    return house.label(fit[0]) if len(fit) == 1 else f"{EVERYWHERE}/{domain}"


def generic_word(house: House, domain: str, devices: Sequence[Device], rng: random.Random) -> tuple[str, bool] | None:
    """A word that means all these devices and none else, and whether it is a plural."""
    singles, plurals = GENERIC[domain]
    single, many = list(singles), list(plurals)
    if domain == "light" and not any({"lamp", "lamps", "bulb"} & set(each.name.split()) for each in house.devices):
        single, many = [*single, *single, "lamp"], [*many, "lamps", "bulbs"]
    if domain == "switch" and not any({"plug", "socket", "outlet"} & set(each.name.split()) for each in house.devices):
        many = [*many, "plugs", "sockets", "outlets", "appliances"]
    if domain == "cover":
        called_so = [(*known(each.name, "cover").plural, "covers") for each in devices if not opaque(each.name)]
        many = [word for word in many if all(map(window, devices)) and all(word in words for words in called_so)]
    if domain == "climate":
        if any(cooling(each) for each in devices):
            return None
        spoken = [word for each in house.devices for word in each.name.split()]
        single = [word for word in single if word not in spoken] + (["heating"] if "heater" not in spoken else [])
        many = ["radiators"] if all("radiator" in each.name for each in devices) and len(devices) > 1 else []
    if domain == "lock" and any("door" in each.name for each in house.devices if each.domain != "lock"):
        many, single = ["locks", "door locks"], ["lock"]
    if domain not in ("light", "climate", "vacuum") and len(devices) > 1 or domain == "vacuum" and len(devices) > 1:
        single = []
    if len(devices) == 1 and domain not in ("light", "cover"):
        many = many[:1] if rng.random() < 0.15 else []
    names = {each.name for each in house.devices}
    words_and_plural = [*((word, False) for word in single), *((word, True) for word in many)]
    choices = [choice for choice in words_and_plural if choice[0] not in names]
    if domain == "light":
        choices = [choice for choice in choices if choice[1] or len(devices) == 1 or rng.random() < 0.5]
    return rng.choice(choices) if choices else None


def of_all(house: House, domain: str, mode: str, rng: random.Random) -> Reference | None:
    """A group by a word for its domain: `g` what is here, `a` in an area, `h` in the house."""
    fit = [each for each in house.devices if each.domain == domain]
    if mode == "g":
        return of_all_here(house, domain, fit, rng)
    if mode == "a" and house.floors and rng.random() < 0.35:
        return of_all_on_floor(house, domain, rng)
    return of_all_in_area(house, domain, fit, rng) if mode == "a" else of_all_in_house(house, domain, fit, rng)


def of_all_here(house: House, domain: str, fit: list[Device], rng: random.Random) -> Reference | None:
    target = here_target(house, domain)
    meant = house.resolve(target)
    has_here = any(each.area == house.here for each in fit)
    word = generic_word(house, domain, sorted(meant, key=str), rng)
    if not word:
        return None
    noun, many = word
    places = "", "", "", "in here", "here", "in this room", "in the room", "around here"
    place = rng.choice(places) if has_here else ""
    det = "the" if rng.random() < 0.85 or many is False else rng.choice(("", "all the", "all")) if place else ""
    if len(meant) == 2 and noun == "lights" and has_here and rng.random() < 0.08:
        det = "both"
    return Reference((target,), det, noun, place, many, house.here if has_here else "")


def of_all_in_area(house: House, domain: str, fit: list[Device], rng: random.Random) -> Reference | None:
    area = rng.choice([each.area for each in fit])
    word = generic_word(house, domain, [each for each in fit if each.area == area], rng)
    if not word:
        return None
    noun, many = word
    spoken, det = area_words(area, rng, house), "the"
    if many and rng.random() >= 0.75:
        det = rng.choice(("all the", "all of the", "every", "all", "each", ""))
    if det in ("every", "each"):
        if domain != "light":
            return None
        noun, many = "light", False
    if rng.random() >= 0.5:
        return Reference((f"{area}/{domain}",), det, noun, in_area(area, rng, spoken), many, area)
    if any(each.name in (f"{spoken} {noun}", f"{spoken} {noun}s") for each in house.devices):
        return None
    if "'s " in spoken:
        det = det.replace("the", "").replace("all of", "all").strip()
    return Reference((f"{area}/{domain}",), det, f"{spoken} {noun}", "", many, area)


def of_all_on_floor(house: House, domain: str, rng: random.Random) -> Reference | None:
    floor, areas = rng.choice(house.floors)
    devices = [each for each in house.devices if each.domain == domain and each.area in areas]
    word = generic_word(house, domain, devices, rng) if devices and floor not in house.areas else None
    if not word:
        return None
    det = rng.choice(("the", "the", "all the", "all", "all of the", "")) if word[1] else "the"
    if rng.random() < 0.2:
        return Reference((f"{floor}/{domain}",), det, f"{floor} {word[0]}", "", word[1], floor)
    return Reference((f"{floor}/{domain}",), det, word[0], on_floor(floor), word[1], floor)


def on_floor(floor: str) -> str:
    if floor in BARE:
        return floor
    return f"{'on' if 'floor' in floor else 'in'} the {floor}{' floor' if len(floor) < 7 and floor != 'cellar' else ''}"


def of_all_in_house(house: House, domain: str, fit: list[Device], rng: random.Random) -> Reference | None:
    word = generic_word(house, domain, fit, rng)
    if not word or not word[1] and domain != "light" or len(fit) < 2:
        return None
    place = rng.choice(blocks("choices")["in the house"])
    det, noun, many = rng.choice(("all the", "all", "all of the", "every", "every single", "all my")), word[0], True
    if det.startswith("every"):
        if domain not in ("light", "fan"):
            return None
        noun, many = domain, False
    if noun == "lighting":
        noun = "lights"
    if noun == "lights" and rng.random() < 0.1:
        noun = rng.choice(("interior lights", "indoor lights", "house lights", "lights inside"))
    if rng.random() < 0.5:
        place = rng.choice(blocks("choices")["all of it"])
    elif many:
        det = "the"
    return Reference((f"{EVERYWHERE}/{domain}",), det, noun, place, many, "")


def of_kind(house: House, domain: str, rng: random.Random) -> Reference | None:
    """'the lamps in the bedroom': two or three by name, or their group if there are no others."""
    devices = [each for each in house.devices if each.domain == domain]
    first = rng.choice(devices)
    kinds = known(first.name, domain)
    if not kinds.plural:
        return None
    word = kinds.plural[0]
    local = [each for each in devices if each.area == first.area]
    same = [each for each in local if known(each.name, domain) == kinds]
    if len(same) < 2 or len(same) > MOST_TARGETS:
        return None
    targets = (f"{first.area}/{domain}",) if len(same) == len(local) else tuple(map(house.label, same))
    said_area = first.area != house.here or rng.random() < 0.5
    place = in_area(first.area, rng) if said_area else rng.choice(("", "in here", "here"))
    if any(each.name == word for each in house.devices):
        return None
    return Reference(targets, "both" if len(same) == 2 and rng.random() < 0.3 else "the", word, place, True)


def refer(house: House, domains: Sequence[str], mode: str, rng: random.Random) -> Reference | None:
    """A reference to devices of these domains; None where the house has none, or what was tried is ambiguous."""
    if mode == "m":
        return several(house, domains, rng)
    devices = [each for each in house.devices if each.domain in domains]
    if not devices:
        return None
    device = rng.choice(devices)
    if mode == "n":
        how = rng.random()
        reference = one_of(house, device) if how < 0.06 else of_kind(house, device.domain, rng) if how < 0.16 else None
        reference = reference or by_name(house, device, rng)
    else:
        reference = of_all(house, device.domain, mode, rng)
    return reference


def several(house: House, domains: Sequence[str], rng: random.Random) -> Reference | None:
    """Two or three at once, in the order in which they are said."""
    if rng.random() < 0.35:
        return areas_of_one(house, domains, rng)
    wanted = rng.choice((2, 2, 2, 3))
    parts: list[Reference] = []
    seen: set[Device] = set()
    for _ in range(10):
        part = refer(house, domains, rng.choice("nnna"), rng)
        if part is None:
            continue
        devices = frozenset().union(*(house.resolve(target) for target in part.targets))
        if devices & seen or part.area == "":
            continue
        seen |= devices
        parts.append(part)
        if len(parts) == wanted:
            break
    if len(parts) < 2 or any(part.place for part in parts[:-1]) and rng.random() < 0.7:
        return None
    # A place behind the last would be heard as the place of all.
    if parts[-1].place:
        parts[-1] = replace(parts[-1], place="") if parts[-1].area is None else parts[-1]
        named = [each for each in house.devices if house.label(each) == parts[-1].targets[0]]
        if parts[-1].place or meant(parts[-1].said, house) != named:
            return None
    joint = rng.choice((" and ", " and ", " and ", " and ", " plus ", " as well as ", " and also "))
    first = (", " if rng.random() < 0.4 else " and ").join(part.whole for part in parts[:-1])
    said = f"{first}{joint}{parts[-1].whole}"
    return Reference(tuple(target for part in parts for target in part.targets), "", said, plural=True)


def areas_of_one(house: House, domains: Sequence[str], rng: random.Random) -> Reference | None:
    """'the kitchen and bedroom lights'."""
    present = {device.domain for device in house.devices}
    domain = rng.choice([domain for domain in domains if domain in present] or ["light"])
    areas = list(dict.fromkeys(each.area for each in house.devices if each.domain == domain))
    if len(areas) < 2:
        return None
    chosen = rng.sample(areas, min(len(areas), rng.choice((2, 2, 3))))
    devices = [each for each in house.devices if each.domain == domain and each.area in chosen]
    word = generic_word(house, domain, devices, rng)
    if not word or not word[1]:
        return None
    targets = tuple(f"{area}/{domain}" for area in chosen)
    if rng.random() < 0.5:
        listed = " and ".join([", ".join(chosen[:-1]), chosen[-1]]) if rng.random() < 0.6 else " and ".join(chosen)
        return Reference(targets, "" if "'s " in chosen[0] else "the", f"{listed} {word[0]}", plural=True)
    listed = " and ".join([", ".join(the_area(area, rng) for area in chosen[:-1]), the_area(chosen[-1], rng)])
    return Reference(targets, "the", word[0], f"in {listed}", True)
