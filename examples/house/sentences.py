"""Sentences for a house, each with the calls that it asks for; none for what is refused.

The answer names one device if the sentence names or singles out one, and the group of an area or of the house if the
sentence uses a plural or a word for any such device. Without an area the group is what is in `here`, else the house's
only device by its name, else the house's group. No tool takes how long something stays on ("for an hour"): it is
ignored.
"""

import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from grammar import blocks, expand, home_assistant, pairs, spelled, value, weighted, with_rules
from items import dictionary, strange, words
from refer import (
    MARK,
    MARKS,
    ONLY,
    Reference,
    domain_words,
    here_target,
    in_area,
    marked,
    meant,
    on_floor,
    refer,
    the_area,
)

from merino_runtime.house.house import (
    COLORS,
    EVERYTHING,
    EVERYWHERE,
    MOST_TARGETS,
    NO_EFFECT,
    STATES,
    TOOLS,
    UNTIMED,
    Call,
    Device,
    House,
)  # fmt: skip

LIGHTS = {"light", "lights", "lamp", "spotlight", "spotlights"}
SLOTS_OF_TARGET = ("{t}", "{b}", "{vol}", "{bvol}", "{tv}", "{on}", "{place}", "{volloc}")


class Sample(NamedTuple):
    house: House
    sentence: str
    calls: tuple[Call, ...]
    kind: str


class Family(NamedTuple):
    """Of `commands.txt`. `fixed`: the value that it always asks for."""

    kind: str
    tool: str
    fixed: str
    imperative: bool
    modes: str
    domains: tuple[str, ...]
    only: str
    templates: tuple[str, ...]
    held_out: bool


@cache
def families() -> tuple[Family, ...]:
    every = []
    for head, templates in blocks("commands").items():
        kind, asked, form, modes, *rest = head.split()
        (tool, _, fixed), (domains, _, only) = asked.partition("="), (rest[0] if rest else "").partition(":")
        listed = tuple(domains.split(",")) if domains else TOOLS[tool].domains
        listed = tuple(domain for domain in listed if domain != "scene" or "s" in modes)
        held = kind.endswith("!")
        every.append(Family(kind.rstrip("!"), tool, fixed, form == "imp", modes, listed, only, templates, held))
    return tuple(every)


def pick(listed: Sequence[Family], split: str, rng: random.Random) -> Family:
    held = [family for family in listed if family.held_out]
    usual = [family for family in listed if not family.held_out]
    if split == "test" and held and rng.random() < 0.3:
        return rng.choice(held)
    return rng.choices(usual, [len(family.templates) ** 0.85 for family in usual])[0]


def of_family(
    house: House, split: str, rng: random.Random, tool: str = "", chosen: Device | None = None
) -> Sample | None:
    """A command of a tool, by default of any; for a chosen device or any."""
    domains = {each.domain for each in house.devices} if chosen is None else {chosen.domain}
    fit = tuple(line for line in blocks("choices")["tools"] if domains & set(TOOLS[line.split()[1]].domains))
    if not fit:
        return None
    tool = tool or (rng.choice(fit).split()[1] if chosen else weighted(fit, rng))
    usual = [one for one in families() if one.tool == tool and one.modes not in "se" and domains & set(one.domains)]
    if not usual:
        return None
    family = pick(usual, split, rng)
    mode = rng.choice(family.modes)
    allowed = [domain for domain in family.domains if domain in domains]
    if family.domains != ("media_player",) and mode in "gah" and "media_player" in allowed:
        allowed.remove("media_player")
    if not allowed or mode == "m" and (chosen or rng.random() < 0.5):
        return None
    # People ask for lights most.
    domain = rng.choice(allowed + ["light", "light"] if "light" in allowed else allowed)
    fitting = [each for each in house.devices if each.domain == domain] if chosen is None else [chosen]
    if mode == "H":
        ref: Reference | None = Reference((f"{EVERYWHERE}/lock",), "", "", area="")
    elif mode in "GA" or domain == "media_player" and mode in "ga":
        ref = placed(house, rng.choice(fitting), mode.lower(), rng)
    else:
        ref = refer(house, allowed if mode == "m" else [domain], mode, rng, chosen)
    return said(family, ref, house, split, rng) if ref and len(ref.targets) <= MOST_TARGETS else None


def placed(house: House, device: Device, mode: str, rng: random.Random) -> Reference:
    """If a sentence names no device: what is here, or in an area."""
    noun = marked("music" if device.domain == "media_player" else device.domain)
    if mode == "a":
        where = marked(in_area(device.area, rng))
        return Reference((f"{device.area}/{device.domain}",), "the", noun, where, False, device.area or None)
    local = any(each.domain == device.domain and each.area == house.here for each in house.devices)
    place = rng.choice(("", "", "", "in here", "here", "in this room")) if local else ""
    target = here_target(house, device.domain)
    return Reference((target,), "the", noun, marked(place), False, house.here if local else "")


def said(family: Family, ref: Reference, house: House, split: str, rng: random.Random) -> Sample | None:
    """A sentence of the family for these devices; None if it may not be said of them, or would not name them."""
    spoken = [set(each.name.split()) for target in ref.targets for each in house.resolve(target)]
    if family.only and not all(map(ONLY[family.only], spoken)):
        return None
    tool, domains = family.tool, {each.domain for each in house.devices}
    if tool in ("warmer", "cooler") and "G" in family.modes and not family.imperative and "fan" in domains:
        return None  # "i'm hot" could ask for a fan
    text, values = "", {}
    if family.fixed:
        name = "state" if family.fixed in STATES else "color" if family.fixed == "any" else "percent"
        values = {name: {"state": family.fixed, "color": COLORS[0]}.get(name) or int(family.fixed)}
    elif TOOLS[tool].required:
        name = next(iter(TOOLS[tool].values))
        head = tool if tool == "set_brightness" else name
        text, values[name] = value(head, rng)
        if rng.random() < 0.03:
            text = f"{value(head, rng)[0]} {rng.choice(blocks('choices')['corrections'])} {text}"
    template = rng.choice(family.templates)
    if not names_target(template, ref, house):
        return None
    values = {"percent": 50} if family.kind == "position.half" else values
    sentence = expand(template, rng, slots_for(ref, house, text, rng))
    sentence = sentence if MARK in sentence or not ref.area else sentence.replace(ref.area, marked(ref.area), 1)
    imperative = family.imperative and not sentence.replace(MARK, "").startswith(blocks("choices")["nominal"])
    sample = Sample(house, sentence, (Call(tool, ref.targets, tuple(values.items())),), family.kind)
    return wrapped(sample, imperative, split, rng, template.startswith(("{b}", "{n}")))


def names_target(template: str, ref: Reference, house: House) -> bool:
    """Whether the sentence will tell the target: by a word for it, or where; without either it is what is here."""
    template = re.sub(r"\[[^]]*\]", "", template)
    if (
        any(slot in template for slot in SLOTS_OF_TARGET)
        or "{n}" in template
        and (not ref.place or "{loc}" in template)
    ):
        return True
    if ref.area is None or ref.place:
        return ref.area is not None and "{loc}" in template
    areas = [each.area for target in ref.targets for each in house.resolve(target)]
    return ref.area == house.here or ref.area == "" and house.here not in areas


def slots_for(ref: Reference, house: House, text: str, rng: random.Random) -> dict[str, Any]:
    here = ref.area == house.here and not any(area in ref.whole for area in house.areas)
    kept = ref.article if ref.article.startswith(("all", "every", "each", "both")) else ""
    slots = {
        "t": ref.whole, "n": f"{ref.article} {ref.noun}", "loc": ref.place, "b": f"{kept} {ref.noun} {ref.place}",
        "is": "are" if ref.plural else "is", "v": text,
        "other": lambda: rng.choice([color for color in COLORS if color != text]),
        "step": lambda: spelled(rng.choice((5, 10, 10, 15, 20, 20, 25, 30, 50)), rng),
        "deg": lambda: rng.choice(blocks("choices")["steps in degrees"]),
        "half": lambda: rng.choice(blocks("choices")["half"]),
        "place": lambda: (
            rng.choice(("the room", "this room", "the room", "this place", the_area(house.here, rng))) if here else
            the_area(ref.area, rng) if ref.area else rng.choice(blocks("choices")["the house"])
        ),
        "anyarea": lambda: the_area(rng.choice(house.areas), rng), "person": lambda: rng.choice(words("people")),
        "inany": lambda: rng.choice(("", "", "in here", in_area(rng.choice(house.areas), rng))),
    }  # fmt: skip
    if ref.area is None:
        of = rng.choice(("of", "of", "on", "on", "for", "from")) + " " + ref.whole
        volume, short = (
            rng.choice(("volume", "volume", "sound", "audio")),
            rng.choice((f"{ref.noun} volume", f"volume {of}")),
        )
        return {**slots, "vol": f"the {volume} {of}", "tv": ref.whole, "on": ref.whole, "isv": slots["is"],
                "bvol": short, "volloc": f"on {ref.whole}"}  # fmt: skip
    noun = rng.choice(("volume", "volume", "volume", marked("music"), "sound", marked("music"), "audio"))
    music = f"the {marked('music')} {ref.place}"
    slots |= {"vol": f"the {noun} {ref.place}", "bvol": f"{noun} {ref.place}", "on": music, "isv": "is",
              "tv": music if ref.place else rng.choice((music, music, "it")), "volloc": ref.place}  # fmt: skip
    return slots if ref.noun != marked("music") else {**slots, "t": music, "b": f"{marked('music')} {ref.place}"}


def wrapped(sample: Sample, imperative: bool, split: str, rng: random.Random, timed: bool = False) -> Sample:
    """The sample with when, why and how politely. `timed`: whether a time may stand beside it though it is no
    imperative."""
    (call,), sentence, tool = sample.calls, sample.sentence, sample.calls[0].tool
    times: dict[str, Any] = {}
    if (imperative or timed) and tool not in ("next", "previous", "louder", "quieter", *UNTIMED) and rng.random() < 0.1:
        when, times = value("when", rng)
        sentence = f"{sentence} {when}" if rng.random() < 0.75 else f"{when} {sentence}"
    elif imperative and tool in ("turn_on", "turn_off", "play") and rng.random() < 0.006:
        sentence = f"{sentence} for {value('duration', rng)[0]}"
    if rng.random() < (0.5 if imperative else 0.22):
        held = split == "test" and imperative and rng.random() < 0.1
        wrap = rng.choice(blocks("wraps")["held out" if held else "imperative" if imperative else "saying"])
        if not (times and ("now" in wrap or "immediately" in wrap)):
            sentence = wrap.replace("{c}", sentence)
    if rng.random() < (0.12 if imperative else 0.07):
        reason = rng.choice(blocks("reasons").get(tool, ("please",)))
        before = f"{reason}{rng.choice((' ', ' ', ', ', ' so ', ' please '))}{sentence}"
        sentence = before if rng.random() < 0.55 else f"{sentence} {rng.choice(('', '', 'because ', 'since '))}{reason}"
    return sample._replace(sentence=sentence, calls=(call._replace(values=(*call.values, *times.items())),))


def of_scene(house: House, split: str, rng: random.Random, chosen: Device | None = None) -> Sample | None:
    scenes = [each for each in house.devices if each.domain in ("scene", "script")]
    scene = chosen or (rng.choice(scenes) if scenes else None)
    if not scene or meant(scene.name, house) != [scene]:
        return None
    if any(scene.name in each.name for each in house.devices if each != scene):
        return None
    family = pick([one for one in families() if one.modes == "s" and scene.domain in one.domains], split, rng)
    sentence = expand(rng.choice(family.templates), rng, {"s": marked(scene.name)})
    sample = Sample(house, sentence, (Call("turn_on", (house.label(scene),)),), family.kind)
    return wrapped(sample, family.imperative, split, rng)


def of_wish(house: House, split: str, rng: random.Random) -> Sample | None:
    """A mood asks for its scene, and what an appliance does for the appliance. Without it a mood is no command."""
    file, domain, share = rng.choices((("moods", "scene", 0.3), ("uses", "switch", 0.12)), (3, 5))[0]
    fit = [each for each in house.devices if each.domain == domain]
    by_keys = {keys: [each for each in fit if wished(each, keys)] for keys in blocks(file)}
    present = [keys for keys, devices in by_keys.items() if devices]
    absent = rng.random() < share
    if domain == "switch" and not present and not absent:
        return None
    keys = rng.choice(present if present and not absent else list(by_keys))
    devices, named = [each for each in by_keys[keys] if each.area == house.here] or by_keys[keys], set(keys.split(","))
    near = fit if domain == "scene" else [each for each in house.devices if named & set(each.name.split())]
    if len(devices) > 1 or near and not devices:
        return None
    sentence, calls = (
        expand(rng.choice(blocks(file)[keys]), rng, {}),
        (Call("turn_on", tuple(map(house.label, devices))),),
    )
    if domain == "scene":
        return Sample(house, sentence, calls if devices else (), "scene.mood" if devices else "no.mood")
    imperative = not sentence.startswith(("i ", "i'", "the ", "time", "it", "how", "can", "a ", "one", "coffee"))
    said_so = re.sub(rf"\b({'|'.join(named)})\b", lambda found: marked(found[0]), sentence, count=1)
    sample = Sample(house, said_so, calls, "on.use" if devices else "missing.use")
    return wrapped(sample, True, split, rng) if imperative else sample


def wished(device: Device, keys: str) -> bool:
    """Who goes to bed asks for "good night", not for "movie night"."""
    spoken = set(device.name.replace("waffle iron", "waffle").split())
    if device.domain == "scene" and "good" not in spoken and len(spoken) > 1:
        spoken -= {"night", "morning"}
    return bool(spoken & set(keys.split(",")))


def of_everything(house: House, split: str, rng: random.Random) -> Sample | None:
    family, floors = next(family for family in families() if family.modes == "e"), [floor for floor, _ in house.floors]
    area = rng.choice((*house.areas, house.here, EVERYWHERE, *floors, *floors))
    target = f"{area}/{EVERYTHING}"
    if target not in house.targets(TOOLS["turn_off"].domains):
        return None
    place = on_floor(area) if area in floors else in_area(area, rng)
    if area == EVERYWHERE:
        place = rng.choice(("in the house", "everywhere", "in the whole house", "in the home", "at home"))
    elif area == house.here and rng.random() < 0.5:
        place = rng.choice(("in here", "in this room", "in the room"))
    sentence = expand(rng.choice(family.templates), rng, {"inx": marked(place)})
    return wrapped(Sample(house, sentence, (Call("turn_off", (target,)),), family.kind), True, split, rng)


def of_correction(house: House, _: str, rng: random.Random) -> Sample | None:
    tool = rng.choice(["turn_on", "turn_off", "dim", "brighten", "open", "close", "lock", "unlock"])
    domains = [domain for domain in TOOLS[tool].domains if domain not in ("scene", "media_player")]
    right, wrong = (refer(house, domains, rng.choice("nna"), rng) for _ in range(2))
    if not right or not wrong or right.place or wrong.place:
        return None
    if house.resolve(right.targets[0]) & house.resolve(wrong.targets[0]):
        return None
    verbs = [verb.removesuffix(" {t}") for verb in blocks("verbs")[tool] if verb.endswith(" {t}")]
    slots = {"verb": rng.choice(verbs), "t": right.whole, "wrong": wrong.whole.replace(MARK, "")}
    sentence = expand(rng.choice(blocks("wraps")["correction"]), rng, slots)
    return Sample(house, sentence, (Call(tool, right.targets),), "correction")


def of_timer(house: House, split: str, rng: random.Random) -> Sample | None:
    tool, (text, values) = weighted(blocks("choices")["tools of timers"], rng), value("length", rng)
    template, how = rng.choice(blocks("timers")[tool]), rng.random()
    name = rng.choice((rng.choice(words("timers")), strange(rng)))
    if "in [the] {name}" in template or "{every}" in template or tool != "start_timer" and how < 0.15:
        name = rng.choice(house.areas)
    elif tool != "start_timer" and how < 0.5:  # a timer is also named by its length
        name = value("length", rng)[0]
        name = bare_unit(name, rng) if "{name} timer" in template else name
    text = bare_unit(text, rng) if "{time} timer" in template else text
    sentence = expand(template, rng, {"time": text, "name": marked(name), "every": marked("all")}, split)
    given = tuple(values.items()) if TOOLS[tool].required else ()
    return Sample(house, sentence, (Call(tool, (), given),), f"timer.{tool}")


def bare_unit(text: str, rng: random.Random) -> str:
    """A length as it stands before "timer": "5 minute"."""
    return re.sub(r"\b(hour|minute|min|second)s\b", r"\1", text) if rng.random() < 0.8 else text


def of_list(house: House, split: str, rng: random.Random) -> Sample | None:
    lists = [device for device in house.devices if device.domain == "todo"]
    if not lists and rng.random() < 0.6:
        return None
    chosen, item = rng.choice(lists) if lists else None, rng.choice(words("items"))
    if split == "train" and rng.random() < 0.6:
        item = " ".join(rng.choice(dictionary()) for _ in range(rng.choice((1, 1, 2, 3))))
    if rng.random() < 0.15:
        item += " and " + rng.choice(words("items"))
    name = chosen.name if chosen else rng.choice(("shopping list", "to do list", "list"))
    if chosen and not lists[1:] and rng.random() < 0.3:
        name = rng.choice(("list", "shopping list")) if "shop" in name or "grocer" in name else "list"
    name = name if name.endswith("list") or rng.random() < 0.3 else f"{name} list"
    sentence = expand(rng.choice(blocks("timers")["add_item"]), rng, {"item": marked(item), "list": name}, split)
    return Sample(house, sentence, (Call("add_item", (house.label(chosen),) if chosen else ()),), "list.add")


@cache
def ha_families() -> tuple[Family, ...]:
    """The templates that are commands, as families of one template."""
    modes = {name: mode for mode, listed in pairs("home_assistant", "modes", " = ") for name in listed.split()}
    every = []
    for use, tool in pairs("home_assistant", "uses", " = "):
        intent, domain, word = use.split()
        for block in home_assistant("en")["intents"][intent]["data"]:
            combination = block["metadata"]["slot_combination"]
            wanted = block.get("slots", {}).get("domain") or block.get("requires_context", {}).get("domain") or domain
            named = {wanted} if isinstance(wanted, str) else set(wanted)
            fit = tuple(sorted(named & set(TOOLS[tool].domains) & ({domain} if domain != "*" else named)))
            if fit and combination in modes:
                every += [
                    Family(f"ha.{tool}", tool, "", True, modes[combination], fit, "", (template,), False)
                    for template in block["sentences"]
                    if (word == "*" or word in combination or f"{{{word}" in template)
                    and template != "[<the>] {name}" and not re.search("color_temperature|brightness_level", template)
                ]  # fmt: skip
    return tuple(every)


def of_ha(house: House, split: str, rng: random.Random) -> Sample | None:
    family, chosen = rng.choice(ha_families()), blocks("choices")
    template, mode = ha_template(family.templates[0]), family.modes
    devices = [each for each in house.devices if each.domain in family.domains]
    if not devices or "{area}" in template and mode == "g":
        return None
    device = rng.choice(devices)
    here, domain, spoken = here_target(house, device.domain), device.domain, set(device.name.split())
    target = {"n": house.label(device), "g": here, "a": f"{device.area}/{domain}", "h": f"{EVERYWHERE}/{domain}"}[mode]
    if mode == "n" and ("'s " in device.name or "<light>" in family.templates[0] and LIGHTS & spoken):
        return None
    if "{area}" in template and (not device.area or mode == "n" and device.area in device.name):
        return None
    if mode == "n" and meant(device.name, house, device.area if "{area}" in template else None) != [device]:
        return None
    kinds = domain_words(house, domain, sorted(house.resolve(target), key=str))
    if mode != "n" and domain in ("cover", "climate") and not any(kinds):
        return None
    text, values = spelled(rng.choice((5, 10, 15, 20)), rng), {}
    for name in TOOLS[family.tool].values:
        number = rng.randint(15, 28) if name == "degrees" else rng.choice((*range(20, 101, 5), rng.randint(11, 100)))
        values[name] = rng.choice(chosen["colors of home assistant"][0].split()) if name == "color" else number
        text = values[name] if name == "color" else spelled(number, rng)
    slots = {
        "name": marked(device.name),
        "area": marked(device.area),
        "v": text,
        "kinds": marked(rng.choice(kinds[1] or ["x"])),
    }
    sentence = expand(template, rng, slots)
    if mode == "g" and re.search(r"\b(here|this room)\b", sentence) and not here.startswith(f"{house.here}/"):
        return None
    if mode != "n":  # words of the domain, unless they are marked
        listed = "|".join(sorted({*kinds[0], *kinds[1], domain, f"{domain}s"}, key=len, reverse=True))
        sentence = re.sub(rf"(?<![{MARK}\w])({listed})\b", lambda found: marked(found[0]), sentence, count=1)
    sample = Sample(house, sentence, (Call(family.tool, (target,), tuple(values.items())),), family.kind)
    return wrapped(sample, sentence.split()[0] in chosen["verbs of home assistant"][0].split(), split, rng)


@cache
def ha_template(template: str) -> str:
    """A template of Home Assistant with this generator's slots: `{v}` a value, `{kinds}` covers, `{item}` a text."""

    def slot(found: re.Match[str]) -> str:
        name = found[1].partition(":")[0]
        listed = home_assistant("en")["lists"].get(name, {})
        if name in ("name", "area", "color", "cover_classes"):
            return {"color": "{v}", "cover_classes": "{kinds}"}.get(name, found[0])
        if "values" in listed:
            return f"({'|'.join(each['in'] if isinstance(each, dict) else each for each in listed['values'])})"
        return "{v}" if "range" in listed else "{item}"

    return re.sub(r"\{([^{}]*)\}", slot, with_rules(template, "home assistant"))


def of_several(house: House, split: str, rng: random.Random) -> Sample | None:
    """Two commands, or rarely three, in a sentence."""
    samples: list[Sample] = []
    joints = [joint.replace("_", " ") for joint in blocks("choices")["joints"]]
    wanted = 3 if rng.random() < 0.12 else 2
    for _ in range(12):
        maker: Any = rng.choices((of_family, of_scene, of_ha, of_timer, of_list), (12, 1, 2, 0.6, 0.6))[0]
        sample = maker(house, split, rng)
        if sample is None or unclear(sample) or len(sample.sentence.replace(MARK, "")) > 60:
            continue
        if sample.calls[0].tool in NO_EFFECT or any(
            sample.calls[0].targets == other.calls[0].targets for other in samples
        ):
            continue
        samples.append(sample._replace(sentence=sample.sentence.replace(MARK, MARKS[len(samples)])))
        if len(samples) == wanted:
            sentence = samples[0].sentence + "".join(rng.choice(joints) + other.sentence for other in samples[1:])
            return Sample(house, sentence, tuple(sample.calls[0] for sample in samples), "several")
    return None


def unclear(sample: Sample) -> bool:
    """Whether a sentence names a device that its call does not mean."""
    text = re.sub(f"[{''.join(MARKS)}]", "", sample.sentence)
    if not sample.calls or not sample.calls[0].targets:
        return False
    devices = {each for target in sample.calls[0].targets for each in sample.house.resolve(target)}
    shown = {each.name for each in devices}
    for name in sorted([*shown, *sample.house.areas], key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(name)}\b", "#", text)
    others = {each.name for each in sample.house.devices} - shown
    return text in ("switch on", "switch off") or any(
        name in text and re.search(rf"\b{re.escape(name)}\b", text) for name in others
    )


# Shares of training, which has more of what is hard, and of tests.
MAKERS: dict[Callable[..., Sample | None], tuple[float, float]] = {
    of_family: (0.66, 0.66), of_ha: (0.08, 0.08), of_scene: (0.05, 0.05), of_wish: (0.16, 0.08),
    of_everything: (0.02, 0.02), of_correction: (0.02, 0.02), of_timer: (0.05, 0.05),
    of_list: (0.03, 0.03), of_several: (0.21, 0.07),
}  # fmt: skip
# The share of easy commands that a training leaves out. Of a test they are four fifths, with a third of the errors: the
# others are called by a part of their name or by their use, or are several.
EASY_LEFT_OUT = 0.6


def command(house: House, split: str, rng: random.Random) -> Sample:
    while True:
        maker = rng.choices(list(MAKERS), [shares[split == "test"] for shares in MAKERS.values()])[0]
        sample = maker(house, split, rng)
        if sample is None or sample.kind not in ("correction", "several") and unclear(sample):
            continue
        first, *others = (sample.calls[0].targets if sample.calls else ()) or ("",)
        is_group = first not in {each.name for each in house.devices}
        is_easy = not others and (is_group or first in sample.sentence.replace(MARK, ""))
        if split == "test" or not is_easy or rng.random() >= EASY_LEFT_OUT:
            return sample
