"""Home Assistant's intents as calls of a house, its templates as an answerer, and its own test sentences.

`recognized` answers by the English templates of the package home-assistant-intents, without a model.
"""

import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from grammar import home_assistant

from merino_runtime.house.house import EVERYWHERE, TOOLS, Call, Device, House, meaning
from merino_runtime.house.words import spoken

TOOL = {
    "HassSetPosition": "set_position", "HassClimateSetTemperature": "set_temperature", "HassMediaPause": "pause",
    "HassMediaUnpause": "play", "HassMediaNext": "next", "HassMediaPrevious": "previous", "HassSetVolume": "set_volume",
    "HassMediaPlayerMute": "mute", "HassMediaPlayerUnmute": "unmute", "HassVacuumStart": "start",
    "HassVacuumReturnToBase": "dock", "HassFanSetSpeed": "set_speed", "HassClimateGetTemperature": "get_temperature",
    "HassStartTimer": "start_timer", "HassCancelTimer": "cancel_timer", "HassCancelAllTimers": "cancel_timer",
    "HassIncreaseTimer": "add_time",
    "HassDecreaseTimer": "remove_time", "HassPauseTimer": "pause_timer", "HassUnpauseTimer": "resume_timer",
    "HassTimerStatus": "timer_left", "HassListAddItem": "add_item", "HassShoppingListAddItem": "add_item",
}  # fmt: skip
SPECIAL = {
    ("HassTurnOn", "cover"): "open", ("HassTurnOff", "cover"): "close", ("HassTurnOn", "lock"): "lock",
    ("HassTurnOff", "lock"): "unlock", ("HassTurnOn", "vacuum"): "start", ("HassTurnOff", "vacuum"): "dock",
}  # fmt: skip
VALUES = {
    "brightness": "percent", "position": "percent", "volume_level": "percent", "percentage": "percent",
    "temperature": "degrees", "color": "color", "state": "state",
}  # fmt: skip
COVERS = ("blind", "curtain", "shade", "shutter", "awning", "garage", "gate", "window", "door", "damper", "cover")
WAKE = re.compile(r"^(hey|ok|okay|hi|hello) [a-z]+[ ,]+(?=[a-z])")
Meaning = tuple[Any, ...]


def meaning_of(house: House, intent: str, slots: dict[str, Any]) -> Meaning | None:
    """What an intent does in this house; None if no tool does it."""
    slots = {slot: value for slot, value in slots.items() if value not in ("", None)}
    if slots.get("name") == "all":
        del slots["name"]
    name = bare(str(slots.get("name")))
    named = [each for each in house.devices if name in map(bare, (each.name, *each.aliases))]
    domain = named[0].domain if named else slots.get("domain") or ("cover" if "device_class" in slots else "")
    domain = domain[0] if isinstance(domain, list) else domain
    tool = SPECIAL.get((intent, domain), TOOL.get(intent, ""))
    if intent in ("HassTurnOn", "HassTurnOff"):
        tool = tool or ("turn_on" if intent == "HassTurnOn" else "turn_off")
    elif intent == "HassLightSet":
        tool = "set_color" if "color" in slots else "set_brightness" if "brightness" in slots else ""
    elif intent == "HassSetVolumeRelative":
        step = slots.get("volume_step")
        tool = "louder" if step == "up" or isinstance(step, int) and step > 0 else "quieter"
    elif intent == "HassGetState" and named:
        tool = "get_state"
    if not tool:
        return None
    if not TOOLS[tool].domains:
        every = {"name": f"all {slots.get('area', '')}"} if intent == "HassCancelAllTimers" else {}
        return timer(tool, {**slots, **every})
    if tool == "add_item":
        lists = named or [each for each in house.devices if each.domain == "todo" and "shopping" in each.name]
        return meaning(Call(tool, (house.label(lists[0]),), (), str(slots.get("item"))), house) if lists else None
    domain = domain or TOOLS[tool].domains[0]
    if domain not in TOOLS[tool].domains or "name" in slots and not named:
        return None
    area, floor = slots.get("area"), slots.get("floor")
    place = spoken(str(area)) if area else spoken(str(floor)) if floor else EVERYWHERE
    target = house.label(named[0]) if named else f"{place}/{domain}"
    values = tuple((VALUES[slot], value) for slot, value in slots.items() if slot in VALUES)
    result = meaning(Call(tool, (target,), values), house)
    if result and not named and slots.get("device_class") in COVERS and domain == "cover":
        kind = slots["device_class"]
        fit = frozenset(each for each in result[1] if kind in each.name or kind == each.key)
        result = (result[0], fit or result[1], *result[2:])
    return result if result and result[1] else None


def bare(name: str) -> str:
    return spoken(name).replace("'", "")


def timer(tool: str, slots: dict[str, Any]) -> Meaning:
    units = [(slots[f"start_{unit}s"], unit) for unit in ("hour", "minute", "second") if f"start_{unit}s" in slots]
    name = slots.get("name") or slots.get("area") or " ".join(f"{count:g} {unit}" for count, unit in units)
    name = name[-1] if isinstance(name, list) else name  # a test's spellings
    seconds = round(3600 * slots.get("hours", 0) + 60 * slots.get("minutes", 0) + slots.get("seconds", 0))
    values = (("seconds", seconds),) if seconds % 60 else (("minutes", seconds // 60),)
    return (tool, frozenset(), frozenset(values if seconds else ()), str(name).strip().lower())


@cache
def grammar() -> Any:
    return importlib.import_module("hassil.intents").Intents.from_dict(home_assistant("en"))


def recognized(house: House, sentence: str) -> frozenset[Meaning]:
    """What the best match among Home Assistant's templates does; nothing if there is none, or no tool does it."""
    lists = importlib.import_module("hassil.intents").TextSlotList
    names = [(name, name, {"domain": each.domain}) for each in house.devices for name in (each.name, *each.aliases)]
    floors = [(floor, floor) for floor, _ in house.floors] or [("no floor", "no floor")]
    slot_lists = {
        "name": lists.from_tuples(names, name="name"),
        "area": lists.from_tuples([(area, area) for area in house.areas], name="area"),
        "floor": lists.from_tuples(floors, name="floor"),
    }
    best = importlib.import_module("hassil.recognize").recognize_best(
        WAKE.sub("", sentence), grammar(), slot_lists=slot_lists, best_slot_name="name",
        intent_context={"area": house.here} if house.here else {},
    )  # fmt: skip
    if best is None:
        return frozenset()
    found = meaning_of(house, best.intent.name, {name: entity.value for name, entity in best.entities.items()})
    return frozenset([found] if found else [])


def test_sentences(folder: Path, language: str = "en") -> Iterator[tuple[House, str, Meaning | None, str]]:
    """(house, sentence, what it does, or None if no tool does it, file) of a checkout of home-assistant/intents."""
    fixture = folder / "tests" / language / "_fixtures.yaml"
    house = fixture_house(yaml.safe_load(fixture.read_text(encoding="utf-8")))._replace(language=language)
    for path in sorted(fixture.parent.glob("*.yaml")):
        if path == fixture:
            continue
        for test in yaml.safe_load(path.read_text(encoding="utf-8")).get("tests", ()):
            intent = test["intent"]
            intents = intent if isinstance(intent, list) else [intent]
            here = spoken(str((intents[0].get("context") or {}).get("area") or ""))
            spoken_in = house._replace(here=here)
            wanted = meaning_of(spoken_in, intents[0]["name"], plain_slots(intents[0].get("slots") or {}))
            for sentence in test["sentences"]:
                for text in (
                    importlib.import_module("hassil.sample").sample_sentence(
                        importlib.import_module("hassil.parse_expression").parse_sentence(sentence)
                    )
                    if set(sentence) & set("[(|<{")
                    else [sentence]
                ):
                    yield spoken_in, text, wanted, path.stem


def plain_slots(slots: dict[str, Any]) -> dict[str, Any]:
    return {name: value.get("value") if isinstance(value, dict) else value for name, value in slots.items()}


def fixture_house(content: dict[str, Any]) -> House:
    """`key`: the device class."""
    areas = {area["id"]: area for area in content["areas"]}
    floors = {floor["id"]: spoken(floor["name"]) for floor in content.get("floors", [])}
    domains = {domain for tool in TOOLS.values() for domain in tool.domains}
    devices = []
    for entity in content["entities"]:
        domain, area = entity["id"].split(".")[0], areas.get(entity.get("area"), {"name": ""})["name"]
        if domain in domains:
            kind = str((entity.get("attributes") or {}).get("device_class", ""))
            devices.append(Device(spoken(entity["name"]), domain, spoken(area), (), kind))
    by_floor = tuple(
        (name, tuple(spoken(area["name"]) for area in areas.values() if area.get("floor") == floor))
        for floor, name in floors.items()
    )
    return House(tuple(dict.fromkeys(devices)), "", tuple(pair for pair in by_floor if pair[1]))
