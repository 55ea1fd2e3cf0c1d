"""Sentences for a house, each with the action that it asks for.

What an answer holds is decided here: a device by its name where the sentence names or singles out one; the group of an area or the
house where it uses a plural or a word for any such device. Without an area: what is in `here`, else the house's only one, else the
house's group. `all the lights` are the house's. `mute` is volume 0, `level two` is 20 percent. How long something shall stay on
cannot be said to the tools: it is ignored.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from grammar import expand
from house import COLORS, EVERYWHERE, MOST_TARGETS, REFUSE, TOOLS, Action, Device, House
from houses import make_house, words
from phrases import (
    COMMANDS, CORRECTION, EVERYTHING, MOODS, PLAIN, REASONS, RULES, SCENES, USES, WAKE, ASSISTANTS, WRAP_HELD_OUT, WRAP_IMPERATIVE,
    WRAP_SAYING,
)  # fmt: skip
from refer import Reference, article, cooling, here_target, in_area, meant, plural, refer, the_area, turned_off_together, window
from spoken import at_time, clock, degrees, duration, heard, level, share, spelled
from templates import ha_command

Slots = dict[str, str | Callable[[], str]]


@dataclass(frozen=True)
class Sample:
    house: House
    sentence: str
    action: Action
    kind: str


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


@cache
def families(text: str) -> tuple[Family, ...]:
    found = []
    for block in text.strip().split("== ")[1:]:
        head, *templates = block.strip().splitlines()
        kind, tool, form, modes, *rest = head.split()
        domains, _, only = (rest[0] if rest else "").partition(":")
        listed = tuple(domains.split(",")) if domains else TOOLS[tool.partition("=")[0]][0]
        listed = tuple(domain for domain in listed if domain != "scene" or "s" in modes)
        found.append(Family(kind.rstrip("!"), tool, form == "imp", modes, listed, only, tuple(templates), kind.endswith("!")))
    return tuple(found)


WEIGHTS = {
    "turn_on": 22, "turn_off": 20, "set_brightness": 7, "brighten": 7, "dim": 8, "set_color": 7, "open": 5, "close": 5, "set_position": 3,
    "lock": 3, "unlock": 2, "set_temperature": 5, "warmer": 5, "cooler": 4, "set_speed": 2, "set_volume": 5, "louder": 6, "quieter": 6,
    "play": 3, "pause": 4, "next": 3, "start": 6, "dock": 2,
}  # fmt: skip


def value(tool: str, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A value as said, and as an argument."""
    if tool == "set_color":
        color = rng.choice(COLORS)
        said = rng.choice(("cold white", "cool white")) if color == "cold white" else color
        return said, {"color": color}
    if tool == "set_temperature":
        number = rng.choice((*range(16, 27), *range(17, 25), *range(17, 25), rng.randint(5, 35)))
        return degrees(number, rng), {"degrees": number}
    if "percent" in TOOLS[tool][1]:
        said, number = share(rng) if rng.random() < 0.85 else level(rng)
        return said, {"percent": number}
    return "", {}


def slots_for(ref: Reference, house: House, tool: str, said: str, rng: random.Random) -> Slots:
    area = ref.area if ref.area and ref.area != EVERYWHERE else None
    slots: Slots = {
        "t": ref.whole, "n": ref.noun, "loc": ref.place, "b": bare(ref), "is": "are" if ref.plural else "is", "v": said,
        "other": lambda: rng.choice([color for color in COLORS if color != said]),
        "step": lambda: spelled(rng.choice((5, 10, 10, 15, 20, 20, 25, 30, 50)), rng),
        "deg": lambda: rng.choice(("a degree", "one degree", "two degrees", "2 degrees", "three degrees", "3 degrees", "a few degrees", "a couple of degrees", "5 degrees", "some degrees")),
        "half": lambda: rng.choice(("half way", "halfway", "half", "to half", "to the half", "to the middle")),
        "place": lambda: room(area, ref, house, rng),
        "anyarea": lambda: the_area(rng.choice(house.areas), rng),
        "inany": lambda: rng.choice(("", "", "in here", in_area(rng.choice(house.areas), rng))),
    }  # fmt: skip
    if TOOLS[tool][0] == ("media_player",):
        slots.update(media(ref, rng))
    return slots


def bare(ref: Reference) -> str:
    kept = ref.article if ref.article in ("all", "every", "each", "both") or "all" in ref.article else ""
    return f"{kept} {ref.said} {ref.place}".strip()


def room(area: str | None, ref: Reference, house: House, rng: random.Random) -> str:
    """The place of a group, as an object: 'light up the kitchen'."""
    if ref.area == house.here and not any(area in ref.whole for area in house.areas):
        return rng.choice(("the room", "this room", "the room", "this place", the_area(house.here, rng)))
    return the_area(area, rng) if area else rng.choice(("the house", "the whole house", "the place"))


def media(ref: Reference, rng: random.Random) -> Slots:
    """The volume, the music, and where it plays."""
    if ref.area is None:
        said = ref.said + (f" {ref.place}" if ref.place else "")
        of = f"{rng.choice(('of', 'of', 'on', 'on', 'for', 'from'))} {ref.whole}"
        volume = rng.choice((f"the {rng.choice(('volume', 'volume', 'sound', 'audio'))} {of}", f"the {ref.said} {rng.choice(('volume', 'volume', 'sound'))} {ref.place}"))
        if ref.article == "" or "'s" in ref.said:
            volume = f"the volume {of}"
        short = rng.choice((f"{ref.said} volume", f"volume {of}", f"{ref.said} volume {ref.place}"))
        return {"vol": volume, "bvol": short, "tv": ref.whole, "volloc": f"on {ref.whole}", "on": ref.whole, "isv": "are" if ref.plural else "is", "b": said}
    noun = rng.choice(("volume", "volume", "volume", "music", "sound", "music", "audio"))
    music = rng.choice(("music", "music", "sound")) if noun == "volume" else "music"
    where = f" {ref.place}" if ref.place else ""
    return {
        "vol": f"the {noun}{where}", "bvol": f"{noun}{where}", "tv": rng.choice((f"the {music}{where}", f"the {music}{where}", "it")) if not where else f"the {music}{where}",
        "volloc": ref.place, "on": f"the music{where}", "isv": "is", "b": f"music{where}", "t": f"the {music}{where}",
    }  # fmt: skip


def media_group(house: House, mode: str, rng: random.Random) -> Reference | None:
    """What plays here, or in an area: said by the volume or the music, and where."""
    if mode == "g":
        local = any(each.domain == "media_player" and each.area == house.here for each in house.devices)
        place = rng.choice(("", "", "", "", "in here", "here")) if local else ""
        return Reference((here_target(house, "media_player"),), "the", "music", place, False, house.here if local else "")
    area = rng.choice([each.area for each in house.devices if each.domain == "media_player"])
    return Reference((f"{area}/media_player",), "the", "music", in_area(area, rng), False, area)


def target_of(family: Family, tool: str, house: House, rng: random.Random) -> Reference | None:
    mode = rng.choice(family.modes)
    domains = [domain for domain in family.domains if any(each.domain == domain for each in house.devices)]
    if not domains:
        return None
    if mode == "H":
        return Reference((f"{EVERYWHERE}/lock",), "", "", area="")
    if "media_player" in domains and mode in "ga" and ("media_player",) == TOOLS[tool][0]:
        return media_group(house, mode, rng)
    if "media_player" in domains and mode in "gah":
        domains.remove("media_player")
        if not domains:
            return None
    if mode == "m" and rng.random() < 0.6:
        return None
    # Lights are what is asked for most.
    chosen = domains if mode == "m" else [rng.choice(domains + ["light", "light"] if "light" in domains else domains)]
    if family.kind == "open.sun" or family.only == "window" or family.kind.split(".")[1] in PLACED:
        return placed(house, chosen[0], mode, rng)
    return refer(house, chosen, mode, rng)


# Families whose sentences name no device, only where: any domain's group can be meant, whatever its devices are called.
PLACED = {"dark", "gloom", "here", "dim", "strain", "bright", "blind", "glow", "cold", "ice", "hot", "sauna", "cosy", "sun", "view", "glare", "clean", "dirty", "spill"}


def placed(house: House, domain: str, mode: str, rng: random.Random) -> Reference | None:
    if mode == "g":
        local = any(each.domain == domain and each.area == house.here for each in house.devices)
        place = rng.choice(("", "", "", "in here", "here", "in this room", "in the room")) if local else ""
        return Reference((here_target(house, domain),), "the", domain, place, False, house.here if local else "")
    area = rng.choice([each.area for each in house.devices if each.domain == domain])
    return Reference((f"{area}/{domain}",), "the", domain, in_area(area, rng), False, area)


def allowed(family: Family, ref: Reference, house: House) -> bool:
    """Whether a family may be said of these devices."""
    devices = [each for target in ref.targets for each in house.resolve(target)]
    if family.only == "window" and not all(map(window, devices)):
        return False
    if family.only == "heat" and any(map(cooling, devices)):
        return False
    if family.tool in ("warmer", "cooler") and family.kind.split(".")[1] in PLACED:
        # "i'm hot" could ask for a fan.
        return not any(each.domain == "fan" or "heater" in each.name for each in house.devices) or family.kind.endswith("here")
    return True


def pick(listed: Sequence[Family], split: str, rng: random.Random) -> Family:
    held = [family for family in listed if family.held_out]
    usual = [family for family in listed if not family.held_out]
    if split == "test" and held and rng.random() < 0.3:
        return rng.choice(held)
    return rng.choices(usual, [len(family.templates) ** 0.7 for family in usual])[0]


@cache
def by_tool() -> dict[str, tuple[Family, ...]]:
    return {tool: tuple(family for family in families(COMMANDS) if family.tool.partition("=")[0] == tool) for tool in TOOLS}


def of_family(house: House, split: str, rng: random.Random, tool: str = "") -> Sample | None:
    if not tool:
        fit = [tool for tool, (domains, _) in TOOLS.items() if any(each.domain in domains for each in house.devices)]
        tool = rng.choices(fit, [WEIGHTS[tool] for tool in fit])[0]
    family = pick(by_tool()[tool], split, rng)
    ref = target_of(family, tool, house, rng)
    if ref is None or not allowed(family, ref, house) or len(ref.targets) > MOST_TARGETS:
        return None
    return said(family, ref, house, split, rng)


def said(family: Family, ref: Reference, house: House, split: str, rng: random.Random) -> Sample | None:
    tool, _, fixed = family.tool.partition("=")
    text, values = ("", {"percent": int(fixed)}) if fixed else value(tool, rng)
    template = rng.choice(family.templates)
    if family.kind == "position.half":
        values = {"percent": 50}
    sentence = expand(template, rng, RULES, slots_for(ref, house, tool, text, rng))
    sentence, times = wrapped(sentence, family.imperative, tool, split, rng)
    return Sample(house, sentence, Action(tool, ref.targets, (*values.items(), *times.items())), family.kind)


def wrapped(sentence: str, imperative: bool, tool: str, split: str, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """The sentence with when, why and how politely; and the time that it names."""
    times: dict[str, Any] = {}
    if imperative and tool not in ("next", "louder", "quieter") and rng.random() < 0.07:
        when, times = when_said(rng)
        sentence = f"{sentence} {when}" if rng.random() < 0.75 else f"{when} {sentence}"
    elif imperative and tool in ("turn_on", "turn_off", "play") and rng.random() < 0.006:
        sentence = f"{sentence} for {duration(rng)[0]}"
    if imperative and rng.random() < 0.5 or not imperative and rng.random() < 0.22:
        wraps = WRAP_IMPERATIVE if imperative else WRAP_SAYING
        if split == "test" and imperative and rng.random() < 0.1:
            wraps = WRAP_HELD_OUT
        wrap = rng.choice(wraps)
        if not (times and ("now" in wrap or "immediately" in wrap)):
            sentence = wrap.replace("{c}", sentence)
    if imperative and rng.random() < 0.07:
        reason = rng.choice([reason.strip() for reason in REASONS[tool].split(",")])
        first = rng.random() < 0.55
        sentence = f"{reason}{rng.choice((' ', ' ', ', ', ' so ', ' please '))}{sentence}" if first else f"{sentence} {rng.choice(('', '', 'because ', 'cause ', 'since '))}{reason}"
    return sentence, times


def when_said(rng: random.Random) -> tuple[str, dict[str, Any]]:
    if rng.random() < 0.5:
        text, minutes = duration(rng)
        return f"{rng.choice(('in', 'in', 'in', 'after'))} {text}", {"after_minutes": minutes}
    return at_time(rng)


def of_scene(house: House, split: str, rng: random.Random) -> Sample | None:
    scenes = [each for each in house.devices if each.domain == "scene"]
    if not scenes:
        return None
    scene = rng.choice(scenes)
    if meant(scene.name, house) != [scene] or any(scene.name in each.name for each in house.devices if each != scene):
        return None
    family = pick(families(SCENES), split, rng)
    sentence = expand(rng.choice(family.templates), rng, RULES, {"s": scene.name})
    sentence, times = wrapped(sentence, family.imperative, "turn_on", split, rng)
    return Sample(house, sentence, Action("turn_on", (scene.name,), tuple(times.items())), family.kind)


def mood_scenes(house: House, keys: str) -> list[Device]:
    wanted = set(keys.split(","))
    return [each for each in house.devices if each.domain == "scene" and wanted & set(each.name.split()) and each.name != "game night"]


def of_mood(house: House, split: str, rng: random.Random) -> Sample | None:
    """A mood asks for its scene; where the house has none it is no command."""
    keys = rng.choice([keys for keys in MOODS if mood_scenes(house, keys)] or list(MOODS))
    scenes = mood_scenes(house, keys)
    sentence = expand(rng.choice(MOODS[keys].strip().splitlines()), rng, RULES, {})
    if len(scenes) > 1 or not scenes and any(each.domain == "scene" for each in house.devices):
        return None
    if not scenes:
        return Sample(house, sentence, Action(REFUSE, (), (("reason", "no command"),)), "no.mood")
    return Sample(house, sentence, Action("turn_on", (scenes[0].name,)), "scene.mood")


def of_use(house: House, split: str, rng: random.Random) -> Sample | None:
    """What an appliance does. Where the house has no such appliance it is refused."""
    present = [keys for keys in USES if users(house, keys)]
    missing = rng.random() < 0.12
    if not present and not missing:
        return None
    keys = rng.choice(present) if present and not missing else rng.choice((*USES, "coffee,espresso", "coffee,espresso"))
    devices = users(house, keys)
    local = [each for each in devices if each.area == house.here] or devices
    if len(local) > 1:
        return None
    sentence = expand(rng.choice(USES[keys].strip().splitlines()), rng, RULES, {})
    imperative = not sentence.startswith(("i ", "i'", "the ", "time", "it", "how", "can", "a ", "one", "coffee"))
    sentence, times = wrapped(sentence, imperative, "turn_on", split, rng) if imperative else (sentence, {})
    if not local:
        if keys.startswith(("towel", "router", "blanket")) or any(word in each.name for each in house.devices for word in keys.split(",")):
            return None
        return Sample(house, sentence, Action(REFUSE, (), (("reason", "no such device"),)), "missing.use")
    return Sample(house, sentence, Action("turn_on", (local[0].name,), tuple(times.items())), "on.use")


def users(house: House, keys: str) -> list[Device]:
    wanted = set(keys.split(","))
    return [each for each in house.devices if each.domain == "switch" and wanted & set(each.name.split())]


def of_everything(house: House, split: str, rng: random.Random) -> Sample | None:
    family = families(EVERYTHING)[0]
    area = rng.choice((*house.areas, house.here, EVERYWHERE))
    targets = tuple(turned_off_together(house, area, TOOLS["turn_off"][0]))
    if not 1 < len(targets) <= MOST_TARGETS:
        return None
    place = in_area(area, rng) if area != EVERYWHERE else rng.choice(("in the house", "everywhere", "in the whole house"))
    if area == house.here and rng.random() < 0.5:
        place = rng.choice(("in here", "in this room", "in the room"))
    sentence = expand(rng.choice(family.templates), rng, RULES, {"inx": place})
    sentence, times = wrapped(sentence, True, "turn_off", split, rng)
    return Sample(house, sentence, Action("turn_off", targets, tuple(times.items())), family.kind)


def of_correction(house: House, split: str, rng: random.Random) -> Sample | None:
    tool = rng.choice([tool for tool in PLAIN if any(each.domain in TOOLS[tool][0] and each.domain != "scene" for each in house.devices)] or ["turn_on"])
    domains = [domain for domain in TOOLS[tool][0] if domain not in ("scene", "media_player")]
    right, wrong = refer(house, domains, rng.choice("nna"), rng), refer(house, domains, rng.choice("nna"), rng)
    if right is None or wrong is None or right.place or wrong.place:
        return None
    if house.resolve(right.targets[0]) & house.resolve(wrong.targets[0]):
        return None
    slots = {"verb": rng.choice(PLAIN[tool]), "t": right.whole, "wrong": wrong.whole}
    sentence = expand(rng.choice(CORRECTION.strip().splitlines()), rng, RULES, slots)
    return Sample(house, sentence, Action(tool, right.targets), "correction")


def of_ha(house: House, split: str, rng: random.Random) -> Sample | None:
    """By the templates of Home Assistant."""
    found = ha_command(house, rng)
    if found is None:
        return None
    sentence, action = found
    sentence, times = wrapped(sentence, True, action.tool, split, rng)
    return Sample(house, sentence, Action(action.tool, action.targets, (*action.values, *times.items())), "ha." + action.tool)


MAKERS: Mapping[Callable[[House, str, random.Random], Sample | None], float] = {
    of_family: 0.74, of_ha: 0.08, of_scene: 0.05, of_mood: 0.03, of_use: 0.05, of_everything: 0.02, of_correction: 0.03,
}  # fmt: skip


def unclear(sample: Sample) -> bool:
    """Whether a sentence names a device that its action does not mean."""
    meant_devices = {each for target in sample.action.targets for each in sample.house.resolve(target)}
    text = sample.sentence
    for name in sorted((each.name for each in meant_devices), key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(name)}\b", "#", text)
    for area in sorted(sample.house.areas, key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(area)}\b", "#", text)
    return any(re.search(rf"\b{re.escape(each.name)}\b", text) for each in sample.house.devices if each not in meant_devices)


def command(house: House, split: str, rng: random.Random) -> Sample:
    while True:
        sample = rng.choices(list(MAKERS), list(MAKERS.values()))[0](house, split, rng)
        if sample is None or sample.kind != "correction" and sample.action.targets and unclear(sample):
            continue
        return sample


def addressed(sentence: str, split: str, rng: random.Random) -> str:
    if rng.random() < 0.16:
        wake = rng.choice(WAKE).replace("{w}", rng.choice(words(ASSISTANTS, split)))
        return f"{wake}{rng.choice((' ', ' ', ', '))}{sentence}" if rng.random() < 0.9 else f"{sentence} {wake.split()[-1]}"
    return sentence


def make_sample(rng: random.Random, split: str) -> Sample:
    from refusals import refusal  # refusals are made of commands for what is missing

    house = make_house(rng, split)
    sample = command(house, split, rng) if rng.random() < 0.76 else refusal(house, split, rng)
    return Sample(sample.house, heard(addressed(sample.sentence, split, rng), rng), sample.action, sample.kind)
