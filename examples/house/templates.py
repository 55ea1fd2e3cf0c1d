"""Commands and questions by Home Assistant's own English templates, from the package home-assistant-intents."""

import json
import random
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from grammar import expand
from houses import known
from refer import GENERIC, area_words, cooling, here_target, meant, window
from spoken import first_said, parts_said, spelled

from merino_runtime.house.house import EVERYWHERE, TOOLS, Call, Device, House

# Where Home Assistant's rule is looser than people speak.
RULES = {
    "turn": "(turn|turn|switch)",
    "light": "(light|lights|lights|lighting)",
    "media": "(music|<track>)",
    "set": "(set|make|change|turn)",
    "the": "(the|the|the|my)",
    "in": "(in|in|in|in|inside)",
    "all": "(all [[of] the])",
    "here": "([in] here|in this room)",
    "everywhere": "(everywhere|in [the] [(entire|whole)] house|in (all|all the) rooms)",
}
MODES = {  # of `commands.txt`, by what Home Assistant's templates name
    "n": "name_only name_area name_brightness name_color name_temperature name_scene name_area_scene",
    "a": "area_domain area_brightness area_color area_only area_temperature area_device_class area_device_class_cover",
    "g": "domain_only default brightness_only color_only temperature_only device_class device_class_cover",
    "h": "domain_all",
}
MODE = {combination: mode for mode, listed in MODES.items() for combination in listed.split()}
MEDIA = {
    "HassMediaPause": "pause", "HassMediaUnpause": "play", "HassMediaNext": "next", "HassMediaPrevious": "previous",
    "HassMediaPlayerMute": "mute", "HassMediaPlayerUnmute": "unmute", "HassSetVolume": "set_volume",
    "HassSetVolumeRelative": "relative",
}  # fmt: skip
# By intent: the tool, and the domain where the templates name none.
INTENTS = {
    "HassLightSet": ("", "light"), "HassSetPosition": ("set_position", "cover"),
    "HassClimateSetTemperature": ("set_temperature", "climate"),
    **{intent: (tool, "media_player") for intent, tool in MEDIA.items()},
    "HassVacuumStart": ("start", "vacuum"), "HassVacuumReturnToBase": ("dock", "vacuum"),
    "HassFanSetSpeed": ("set_speed", "fan"), "HassTurnOn": ("", ""), "HassTurnOff": ("", ""),
}  # fmt: skip
LIGHTS = {"light", "lights", "lamp", "spotlight", "spotlights"}
QUESTIONS = [
    "HassGetWeather", "HassGetCurrentTime", "HassGetCurrentDate", "HassNevermind", "HassRespond", "HassBroadcast",
    "HassShoppingListCompleteItem",
]


@cache
def english() -> dict[str, Any]:
    try:
        import home_assistant_intents
    except ImportError:
        raise SystemExit(
            "package home-assistant-intents is missing: pip install -r examples/house/requirements.txt"
        ) from None
    path = Path(home_assistant_intents.__file__).parent / "data" / "en.json"
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def ha_rules() -> dict[str, str]:
    return {**english()["expansion_rules"], **RULES}


def tool_of(intent: str, domain: str, combination: str) -> str:
    if intent in ("HassTurnOn", "HassTurnOff"):
        on = intent == "HassTurnOn"
        special = {"cover": ("close", "open"), "lock": ("unlock", "lock")}
        return special[domain][on] if domain in special else ("turn_off", "turn_on")[on]
    if intent == "HassLightSet":
        return "set_color" if "color" in combination else "set_brightness" if "brightness" in combination else ""
    return INTENTS[intent][0]


@cache
def commands() -> tuple[tuple[str, str, str, str], ...]:
    """(tool, domain, mode, template) of what can be mapped. Modes are those of `commands.txt`."""
    usable = []
    for intent, (_, base) in INTENTS.items():
        for block in english()["intents"][intent]["data"]:
            combination = block["metadata"]["slot_combination"]
            mode = MODE.get(combination, "")
            wanted = block.get("slots", {}).get("domain") or block.get("requires_context", {}).get("domain") or base
            for domain in [wanted] if isinstance(wanted, str) else wanted:
                tool = tool_of(intent, domain, combination)
                known = tool == "relative" or tool in TOOLS and domain in TOOLS[tool].domains
                if not mode or not known:
                    continue
                # A bare name asks for nothing; colors by kelvin are no tool's.
                usable += [
                    (tool, domain, mode, template) for template in block["sentences"]
                    if template != "[<the>] {name}" and "color_temperature" not in template
                ]  # fmt: skip
    return tuple(usable)


def ha_command(house: House, rng: random.Random) -> tuple[str, Call, tuple[str, ...]] | None:
    """A sentence, its action, and the words that name the devices."""
    tool, domain, mode, template = rng.choice(commands())
    devices = [each for each in house.devices if each.domain == domain]
    if not devices or "area" in template and mode == "g":
        return None
    device = rng.choice(devices)
    target = place(house, device, mode)
    meant_devices = sorted(house.resolve(target), key=str)
    if mode == "n" and meant(device.name, house, device.area if "{area}" in template else None) != [device]:
        return None
    named_twice = mode == "n" and "{area}" in template and device.area in device.name
    if named_twice or "'s " in device.name and "<the>" in template:
        return None
    if mode == "n" and "<light>" in template and LIGHTS & set(device.name.split()):
        return None
    if domain == "climate" and mode != "n" and any(map(cooling, meant_devices)) and "temp" not in template:
        return None
    values: dict[str, Any] = {}
    if tool == "relative":
        tool = "quieter" if "step_down" in template or "step_up" not in template and rng.random() < 0.5 else "louder"
    slots: dict[str, str | Callable[[], str]] = {
        "name": device.name,
        "area": area_words(device.area, rng, house),
        "cover_classes": cover_class(meant_devices, rng) or "",
        "volume_step": rng.choice(("up", "increase") if tool == "louder" else ("down", "decrease")),
        "volume_step_up": lambda: str(rng.choice((5, 10, 15, 20))),
        "volume_step_down": lambda: str(rng.choice((5, 10, 15, 20))),
    }
    owned = "'s " in device.area and "<the>" in template and "{area}" in template
    if owned or "{cover_classes" in template and not slots["cover_classes"]:
        return None
    for slot in ("brightness", "volume", "position", "fan_speed"):
        if "{" + slot in template.replace("volume_step", "") and "brightness_level" not in template:
            values["percent"] = rng.choice(range(11, 101)) if rng.random() < 0.3 else rng.choice(range(20, 101, 5))
            slots[slot] = spelled(values["percent"], rng)
    if "{brightness_level" in template:
        values["percent"], slots["brightness_level"] = 100, rng.choice(("max", "maximum", "highest"))
    if tool == "set_temperature":
        values["degrees"] = rng.randint(15, 28)
        slots["temperature"] = spelled(values["degrees"], rng)
    if tool == "set_color":
        values["color"] = slots["color"] = rng.choice(
            ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
        )
    sentence = expand(template, rng, ha_rules(), slots)
    if mode == "g" and ("here" in sentence or "this room" in sentence) and not target.startswith(house.here):
        return None
    kinds = sorted((word for words in GENERIC[domain] for word in words), key=len, reverse=True)
    kind = first_said(sentence, kinds) if mode != "n" else ()
    parts = parts_said(sentence, [*(str(slots[slot]) for slot in ("name", "area", "cover_classes")), *kind])
    return sentence, Call(tool, (target,), tuple(values.items())), parts


def place(house: House, device: Device, mode: str) -> str:
    if mode == "n":
        return house.label(device)
    if mode == "g":
        return here_target(house, device.domain)
    return f"{device.area if mode == 'a' else EVERYWHERE}/{device.domain}"


def cover_class(devices: list[Device], rng: random.Random) -> str | None:
    kinds = [set(known(each.name, "cover").plural) for each in devices if each.domain == "cover"]
    if not kinds or not all(map(window, devices)):
        return None
    common = sorted(set.intersection(*kinds) & {"blinds", "curtains", "shades", "shutters"})
    return rng.choice(common) if common else None


@cache
def questions() -> tuple[tuple[str, str], ...]:
    pairs = []
    for intent in QUESTIONS:
        listed = [
            template
            for block in english()["intents"][intent]["data"]
            for template in block["sentences"]
            if "timer_command" not in template
        ]
        pairs += [(intent, template) for template in listed]
    return tuple(pairs)


def ha_question(slots: Mapping[str, str | Callable[[], str]], rng: random.Random) -> str | None:
    intents = sorted({intent for intent, _ in questions()})
    wanted = rng.choice(intents)
    template = rng.choice([template for intent, template in questions() if intent == wanted])
    lists = english()["lists"]
    values: dict[str, str | Callable[[], str]] = {
        "floor": rng.choice(("first floor", "second floor", "basement floor")),
        "timer_name": rng.choice(("pizza", "egg", "laundry", "tea")),
        "item": rng.choice(("milk", "bread", "apples", "soap")),
        "shopping_list_item": rng.choice(("milk", "bread", "eggs", "light bulbs")),
        "todo_list_item": rng.choice(("call the bank", "clean the car", "buy a lamp")),
        "message": rng.choice(("dinner is ready", "hello", "time for bed")),
    }
    for slot, held in lists.items():
        if slot in values:
            continue
        if "values" in held:
            values[slot] = (
                rng.choice([each["in"] for each in held["values"]])
                .replace("[securely] ", "")
                .replace("(closed|shut)", "closed")
                .replace("(closing|shutting)", "closing")
                .replace("[s]", "s")
            )
        else:
            values[slot] = str(rng.randint(2, 50))
    sentence = expand(
        template, rng, ha_rules(), {**slots, **values, **{each: slots[each] for each in ("name", "area")}}
    )
    if any(mark in sentence for mark in "[]()|"):
        return None
    return sentence
