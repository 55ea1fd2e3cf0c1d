"""Families of commands: what a template is for, and the words that fill its slots."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from grammar import blocks, expand, rules
from houses import words
from refer import Reference, awning, heats, here_target, in_area, refer, the_area, window
from spoken import at_time, degrees, duration, level, parts_said, share, spelled

from merino_runtime.house.house import COLORS, EVERYWHERE, MOST_TARGETS, STATES, TOOLS, UNTIMED, Call, House

REFUSAL = Call("refuse")
Slots = dict[str, str | Callable[[], str]]


@dataclass(frozen=True)
class Family:
    kind: str
    tool: str
    imperative: bool
    modes: str
    domains: tuple[str, ...]
    only: str
    templates: tuple[str, ...]
    held_out: bool


@dataclass(frozen=True)
class Sample:
    """`parts`: of the sentence, the words that name the devices."""

    house: House
    sentence: str
    action: Call
    kind: str
    parts: tuple[str, ...] = ()
    more: tuple["Sample", ...] = ()  # further commands of the sentence


@cache
def families() -> tuple[Family, ...]:
    every = []
    for head, templates in blocks("commands").items():
        kind, tool, form, modes, *rest = head.split()
        domains, _, only = (rest[0] if rest else "").partition(":")
        listed = tuple(domains.split(",")) if domains else TOOLS[tool.partition("=")[0]].domains
        listed = tuple(domain for domain in listed if domain != "scene" or "s" in modes)
        every.append(Family(kind.rstrip("!"), tool, form == "imp", modes, listed, only, templates, kind.endswith("!")))
    return tuple(every)


def value(tool: str, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A value as said, and as an argument."""
    if tool == "set_color":
        color = rng.choice(COLORS)
        said = rng.choice(("cold white", "cool white")) if color == "cold white" else color
        return said, {"color": color}
    if tool == "set_temperature":
        number = rng.choice((*range(16, 27), *range(17, 25), *range(17, 25), rng.randint(5, 35)))
        if rng.random() < 0.1:
            number = rng.randint(58, 82)
            unit = rng.choice(("", " degrees", " degrees", " fahrenheit", " degrees fahrenheit"))
            return f"{spelled(number, rng)}{unit}", {"degrees": number}
        return degrees(number, rng), {"degrees": number}
    if tool == "set_brightness" and rng.random() < 0.05:
        least = ("minimum", "the minimum", "min", "lowest", "the lowest")
        return rng.choice((*least, *(f"{one} level" for one in least))), {"percent": 1}
    if "percent" in TOOLS[tool].values:
        said, number = share(rng) if rng.random() < 0.85 else level(rng)
        return said, {"percent": number}
    return "", {}


def fixed_value(fixed: str) -> dict[str, Any]:
    """What a family always asks for: a share in percent, or any color, for which the answer has the first."""
    if fixed in STATES:
        return {"state": fixed}
    return {"color": COLORS[0]} if fixed == "any" else {"percent": int(fixed)}


def slots_for(ref: Reference, house: House, tool: str, said: str, rng: random.Random, template: str = "") -> Slots:
    area = ref.area if ref.area and ref.area != EVERYWHERE else None
    slots: Slots = {
        "t": ref.whole, "n": ref.noun, "loc": ref.place, "b": bare(ref), "is": "are" if ref.plural else "is", "v": said,
        "other": lambda: rng.choice([color for color in COLORS if color != said]),
        "step": lambda: spelled(rng.choice((5, 10, 10, 15, 20, 20, 25, 30, 50)), rng),
        "deg": lambda: rng.choice(blocks("choices")["steps in degrees"]),
        "half": lambda: rng.choice(blocks("choices")["half"]),
        "place": lambda: room(area, ref, house, rng),
        "anyarea": lambda: the_area(rng.choice(house.areas), rng),
        "person": lambda: rng.choice(words("people", "train")),
        "inany": lambda: rng.choice(("", "", "in here", in_area(rng.choice(house.areas), rng))),
    }
    if TOOLS[tool].domains == ("media_player",) or "{volloc}" in template or "{tv}" in template:
        slots.update(media(ref, rng))
    return slots


def bare(ref: Reference) -> str:
    kept = ref.article if ref.article.startswith(("all", "every", "each", "both")) else ""
    return f"{kept} {ref.said} {ref.place}".strip()


def room(area: str | None, ref: Reference, house: House, rng: random.Random) -> str:
    """The place of a group, as an object: 'light up the kitchen'."""
    if ref.area == house.here and not any(area in ref.whole for area in house.areas):
        return rng.choice(("the room", "this room", "the room", "this place", the_area(house.here, rng)))
    return the_area(area, rng) if area else rng.choice(blocks("choices")["the house"])


def media(ref: Reference, rng: random.Random) -> Slots:
    """The volume, the music, and where it plays."""
    if ref.area is None:
        said = ref.said + (f" {ref.place}" if ref.place else "")
        of = f"{rng.choice(('of', 'of', 'on', 'on', 'for', 'from'))} {ref.whole}"
        volumes = (
            f"the {rng.choice(('volume', 'volume', 'sound', 'audio'))} {of}",
            f"the {ref.said} {rng.choice(('volume', 'volume', 'sound'))} {ref.place}",
        )
        volume = rng.choice(volumes)
        if ref.article == "" or "'s" in ref.said:
            volume = f"the volume {of}"
        short = rng.choice((f"{ref.said} volume", f"volume {of}", f"{ref.said} volume {ref.place}"))
        verb = "are" if ref.plural else "is"
        return {"vol": volume, "bvol": short, "tv": ref.whole, "volloc": f"on {ref.whole}", "on": ref.whole,
                "isv": verb, "b": said}  # fmt: skip
    noun = rng.choice(("volume", "volume", "volume", "music", "sound", "music", "audio"))
    music = rng.choice(("music", "music", "sound")) if noun == "volume" else "music"
    where = f" {ref.place}" if ref.place else ""
    whose = "your" if noun == "volume" and not where and rng.random() < 0.12 else "the"
    played = f"the {music}{where}"
    return {"vol": f"{whose} {noun}{where}", "bvol": f"{noun}{where}",
            "tv": played if where else rng.choice((played, played, "it")), "volloc": ref.place,
            "on": f"the music{where}", "isv": "is", "b": f"music{where}", "t": played}  # fmt: skip


def media_group(house: House, mode: str, rng: random.Random) -> Reference | None:
    """What plays here, or in an area: said by the volume or the music, and where."""
    if mode == "g":
        local = any(each.domain == "media_player" and each.area == house.here for each in house.devices)
        place = rng.choice(("", "", "", "", "in here", "here")) if local else ""
        target = here_target(house, "media_player")
        return Reference((target,), "the", "music", place, False, house.here if local else "")
    area = rng.choice([each.area for each in house.devices if each.domain == "media_player"])
    return Reference((f"{area}/media_player",), "the", "music", in_area(area, rng), False, area)


def target_of(family: Family, house: House, rng: random.Random) -> Reference | None:
    mode = rng.choice(family.modes)
    domains = [domain for domain in family.domains if any(each.domain == domain for each in house.devices)]
    if not domains:
        return None
    if mode == "H":
        return Reference((f"{EVERYWHERE}/lock",), "", "", area="")
    if "media_player" in domains and mode in "ga" and family.domains == ("media_player",):
        return media_group(house, mode, rng)
    if "media_player" in domains and mode in "gah":
        domains.remove("media_player")
        if not domains:
            return None
    if mode == "m" and rng.random() < 0.3:
        return None
    # Lights are what is asked for most.
    chosen = domains if mode == "m" else [rng.choice(domains + ["light", "light"] if "light" in domains else domains)]
    if mode in "GA":
        return placed(house, chosen[0], mode, rng)
    return refer(house, chosen, mode, rng)


def placed(house: House, domain: str, mode: str, rng: random.Random) -> Reference:
    """Where a sentence names no device: any domain's group can be meant, whatever its devices are called."""
    if mode == "G":
        local = any(each.domain == domain and each.area == house.here for each in house.devices)
        place = rng.choice(("", "", "", "in here", "here", "in this room", "in the room")) if local else ""
        return Reference((here_target(house, domain),), "the", domain, place, False, house.here if local else "")
    area = rng.choice([each.area for each in house.devices if each.domain == domain])
    return Reference((f"{area}/{domain}",), "the", domain, in_area(area, rng), False, area)


ONLY = {"window": window, "awning": awning, "heat": heats}


def allowed(family: Family, ref: Reference, house: House) -> bool:
    """Whether a family may be said of these devices."""
    devices = [each for target in ref.targets for each in house.resolve(target)]
    if family.only and not all(map(ONLY[family.only], devices)):
        return False
    if family.tool in ("warmer", "cooler") and "G" in family.modes and not family.imperative:
        # "i'm hot" could ask for a fan.
        heaters = [each for each in house.devices if each.domain == "switch" and "heater" in each.name]
        return not heaters and not any(each.domain == "fan" for each in house.devices)
    return True


def pick(listed: Sequence[Family], split: str, rng: random.Random) -> Family:
    held = [family for family in listed if family.held_out]
    usual = [family for family in listed if not family.held_out]
    if split == "test" and held and rng.random() < 0.3:
        return rng.choice(held)
    return rng.choices(usual, [len(family.templates) ** 0.85 for family in usual])[0]


@cache
def by_tool() -> dict[str, tuple[Family, ...]]:
    """What `target_of` finds targets for: not scenes, not everything."""
    usual = [family for family in families() if family.modes not in ("s", "e")]
    return {tool: tuple(family for family in usual if family.tool.partition("=")[0] == tool) for tool in TOOLS}


def said(family: Family, ref: Reference, house: House, split: str, rng: random.Random) -> Sample | None:
    """A sentence of the family for these devices; None where the family may not be said of them, or would not name
    them."""
    if not allowed(family, ref, house):
        return None
    tool, _, fixed = family.tool.partition("=")
    text, values = ("", fixed_value(fixed)) if fixed else value(tool, rng)
    if values and not fixed and rng.random() < 0.03:
        corrected = rng.choice(blocks("choices")["corrections"])
        text = f"{value(tool, rng)[0]} {corrected} {text}"
    template = rng.choice(family.templates)
    if not names_target(template, ref, house):
        return None
    if family.kind == "position.half":
        values = {"percent": 50}
    sentence = expand(template, rng, rules(), slots_for(ref, house, tool, text, rng, template))
    said_as = (ref.said, f"{ref.said}s", ref.place)  # "light" is the domain where the sentence has "lights"
    parts = parts_said(sentence, said_as) or parts_said(sentence, (ref.area or "",))
    imperative = family.imperative and not sentence.startswith(NOMINAL)
    timed = template.startswith(("{b}", "{n}"))
    sentence, times = wrapped(sentence, imperative, tool, split, rng, timed)
    return Sample(house, sentence, Call(tool, ref.targets, (*values.items(), *times.items())), family.kind, parts)


def scene_said(name: str, split: str, rng: random.Random, domain: str = "scene") -> tuple[str, dict[str, Any], str]:
    """A sentence that asks for a scene, the time that it names, and its family."""
    family = pick([family for family in families() if family.modes == "s" and domain in family.domains], split, rng)
    sentence = expand(rng.choice(family.templates), rng, rules(), {"s": name})
    return (*wrapped(sentence, family.imperative, "turn_on", split, rng), family.kind)


# How a command begins that has no verb: "could you" does not go with it.
NOMINAL = (
    "lights ", "light on", "light off", "light out", "no ", "more ", "less ", "brightness ", "next", "another ",
    "louder",
)


def names_target(template: str, ref: Reference, house: House) -> bool:
    """Whether the sentence will tell the target: by a word for it, or where; without either it is what is here."""
    template = re.sub(r"\[[^]]*\]", "", template)
    if any(slot in template for slot in ("{t}", "{b}", "{vol}", "{bvol}", "{tv}", "{on}", "{place}", "{volloc}")):
        return True
    if "{n}" in template and (not ref.place or "{loc}" in template):
        return True
    if ref.area is None:
        return False
    if ref.place:
        return "{loc}" in template
    areas = [each.area for target in ref.targets for each in house.resolve(target)]
    return ref.area == house.here or ref.area == "" and house.here not in areas


def wrapped(
    sentence: str, imperative: bool, tool: str, split: str, rng: random.Random, timed: bool = False
) -> tuple[str, dict[str, Any]]:
    """The sentence with when, why and how politely; and the time that it names. `timed`: whether a time may stand
    beside it though it is no imperative."""
    times: dict[str, Any] = {}
    if (imperative or timed) and tool not in ("next", "previous", "louder", "quieter", *UNTIMED) and rng.random() < 0.1:
        when, times = when_said(rng)
        sentence = f"{sentence} {when}" if rng.random() < 0.75 else f"{when} {sentence}"
    elif imperative and tool in ("turn_on", "turn_off", "play") and rng.random() < 0.006:
        sentence = f"{sentence} for {duration(rng)[0]}"
    if imperative and rng.random() < 0.5 or not imperative and rng.random() < 0.22:
        wraps = blocks("wraps")["imperative"] if imperative else blocks("wraps")["saying"]
        if split == "test" and imperative and rng.random() < 0.1:
            wraps = blocks("wraps")["held out"]
        wrap = rng.choice(wraps)
        if not (times and ("now" in wrap or "immediately" in wrap)):
            sentence = wrap.replace("{c}", sentence)
    if rng.random() < (0.12 if imperative else 0.07):
        reason = rng.choice(blocks("reasons").get(tool, ("please",)))
        if rng.random() < 0.55:
            sentence = f"{reason}{rng.choice((' ', ' ', ', ', ' so ', ' please '))}{sentence}"
        else:
            sentence = f"{sentence} {rng.choice(('', '', 'because ', 'cause ', 'since '))}{reason}"
    return sentence, times


def when_said(rng: random.Random) -> tuple[str, dict[str, Any]]:
    if rng.random() < 0.5:
        text, minutes = duration(rng)
        return f"{rng.choice(('in', 'in', 'in', 'after'))} {text}", {"after_minutes": minutes}
    return at_time(rng)


WEIGHTS = {
    "turn_on": 22, "turn_off": 20, "set_brightness": 7, "brighten": 7, "dim": 8, "set_color": 7, "open": 5,
    "close": 5, "set_position": 5, "lock": 5, "unlock": 4, "set_temperature": 8, "warmer": 5, "cooler": 4,
    "set_speed": 5, "set_volume": 5, "louder": 6, "quieter": 6, "mute": 2, "unmute": 2, "play": 3, "pause": 4,
    "next": 3, "previous": 2, "start": 6, "dock": 4, "get_state": 9, "get_temperature": 3,
}


def of_family(house: House, split: str, rng: random.Random, tool: str = "") -> Sample | None:
    if not tool:
        fit = [tool for tool in WEIGHTS if any(each.domain in TOOLS[tool].domains for each in house.devices)]
        tool = rng.choices(fit, [WEIGHTS[tool] for tool in fit])[0]
    family = pick(by_tool()[tool], split, rng)
    ref = target_of(family, house, rng)
    if ref is None or len(ref.targets) > MOST_TARGETS:
        return None
    return said(family, ref, house, split, rng)
