"""Turns calls into Home Assistant's intents and the words that are spoken.

An intent names one entity by its id, which Home Assistant accepts as a name: what is not exposed is never reached, and
two lamps of the same name are told apart. A command for later becomes a timer, whose command Home Assistant runs.
"""

import datetime
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from merino_runtime.errors import MerinoError
from merino_runtime.house.house import TOOLS, Call, Device, House
from merino_runtime.house.words import words_of

STEP_PERCENT, STEP_DEGREES = 20, 1  # of brighten and dim, warmer and cooler
KELVIN = {"warm white": 2700, "cold white": 6500}
MOST_NAMED = 3  # devices that are spoken by name
INTENTS: dict[str, list[Any]] = tomllib.loads((files("merino_edge.house") / "intents.toml").read_text(encoding="utf-8"))
RELATIVE = ("brighten", "dim", "warmer", "cooler")  # whose intents need the states of now
LATER = ("turn_on", "turn_off", "open", "close", "set_brightness", "lock")  # that Home Assistant's templates know


@cache
def texts_of(language: str) -> dict[str, Any]:
    """Return what is said in a language. `state_is` and the like are Jinja templates of Home Assistant, which knows the
    states. Raises MerinoError for a language without such a file."""
    folder = files("merino_edge.house") / "texts"
    if not (folder / f"{language}.toml").is_file():
        known = ", ".join(sorted(file.name.removesuffix(".toml") for file in folder.iterdir()))
        raise MerinoError(f"there are no answers in language {language!r}: choose from {known}")
    texts = tomllib.loads((folder / f"{language}.toml").read_text(encoding="utf-8"))
    texts["timer_left"] = (
        "{% set timers = slots.timers | default([]) %}{% if not timers %}" + texts["no_timer"]
        + "{% else %}{% set left = timers[0].total_seconds_left %}" + texts["timer_left"] + "{% endif %}"
    )  # fmt: skip
    return texts


class Intent(NamedTuple):
    """An intent of Home Assistant. `text`: what is said when it is done, as text or a Jinja template."""

    name: str
    slots: dict[str, Any]
    text: str = ""


class Reply(NamedTuple):
    """What a sentence leads to: intents, or a text instead of them. `asks`: the calls for which `text` asks. `done`:
    whether the text is no refusal."""

    intents: tuple[Intent, ...] = ()
    text: str = ""
    asks: tuple[Call, ...] = ()
    done: bool = False


def reply_to(calls: Sequence[Call], asks: bool, house: House, names: Mapping[str, str]) -> Reply:
    """Return the reply to the calls of a sentence, without the intents: a refusal, what is missing, or a question;
    empty if the calls are to be carried out. `names`: of entities, as they are spoken."""
    texts = texts_of(house.language)
    if not calls:
        return Reply(text=texts["refused"])
    for call in calls:
        if TOOLS[call.tool].domains and not devices_of(call, house):
            return Reply(text=texts["nothing_called"].format(call.words) if call.words else texts["nothing"])
        if timed(call) and call.tool not in LATER:
            return Reply(text=texts["not_later"])
    if asks:
        asked = [said(texts["ask"][kind_of(call, house)], call, house, names) for call in calls]
        return Reply(text=texts["shall"].format(f" {texts['also']} ".join(asked)), asks=tuple(calls))
    return Reply()


def intents_of(
    calls: Sequence[Call], house: House, names: Mapping[str, str], *, states: Mapping[str, dict[str, Any]],
    now: datetime.datetime,
) -> Reply:  # fmt: skip
    """Return the intents of calls that `reply_to` has nothing against. `states`: of the entities, for RELATIVE."""
    intents: list[Intent] = []
    texts = texts_of(house.language)
    for call in calls:
        devices = devices_of(call, house)
        made = [slots for device in devices if (slots := slots_of(call, device, states)) is not None]
        if not TOOLS[call.tool].domains:
            made = [{**values_of(call), **timer_named(call, house)}]
        if not made:
            return Reply(text=texts["unknown"].format(spoken(devices, names, texts)))
        if timed(call):
            intents += later(call, devices, names, now, texts)
            continue
        told = {"get_state": "state_checked" if call.values else "state_is", "get_temperature": "degrees",
                "timer_left": "timer_left"}.get(call.tool)  # fmt: skip
        text = texts[told] if told else without_braces(said(texts["done"][kind_of(call, house)], call, house, names))
        every = told is not None  # each entity's own answer
        name = INTENTS[kind_of(call, house)][0]
        intents += [Intent(name, slots, text if place == 0 or every else "") for place, slots in enumerate(made)]
    return Reply(tuple(intents))


def devices_of(call: Call, house: House) -> list[Device]:
    """Return the devices that a call is for, in the house's order."""
    found = frozenset().union(*(house.resolve(target) for target in call.targets))
    return [device for device in house.devices if device in found]


def slots_of(call: Call, device: Device, states: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return the slots of a call's intent for a device; None if a relative one lacks the state that it changes."""
    slots = {"name": device.key, **values_of(call)}
    if call.tool in ("louder", "quieter"):
        return {**slots, "volume_step": "up" if call.tool == "louder" else "down"}
    if call.tool == "add_item":
        return {**slots, "item": call.words}
    if call.tool not in RELATIVE:
        return slots
    state, up = states.get(device.key, {}), call.tool in ("brighten", "warmer")
    if call.tool in ("brighten", "dim"):
        level = round((state.get("attributes", {}).get("brightness") or 0) / 2.55)
        return {**slots, "brightness": max(1, min(100, level + (STEP_PERCENT if up else -STEP_PERCENT)))}
    degrees = state.get("attributes", {}).get("temperature")
    return None if degrees is None else {**slots, "temperature": degrees + (STEP_DEGREES if up else -STEP_DEGREES)}


def values_of(call: Call) -> dict[str, Any]:
    named = INTENTS[call.tool][1]
    values = {named[name]: value for name, value in call.values if name in named}
    if values.get("color") in KELVIN:
        return {"temperature": KELVIN[values["color"]]}
    return values


def kind_of(call: Call, house: House) -> str:
    """Return the tool of a call, or `cancel_timers` for one of all timers, of the house or of an area."""
    return call.tool if all_timers_of(call, house) is None else "cancel_timers"


def all_timers_of(call: Call, house: House) -> str | None:
    """Return the area whose timers a call cancels, "" for all timers; None for another call, such as of the timer
    called "all day"."""
    found = re.match(rf"({texts_of(house.language)['all']})\b,?(.*)", call.words)
    area = without_article(found[2], house) if found else None
    return area if call.tool == "cancel_timer" and area in ("", *house.areas) else None


def without_article(words: str, house: House) -> str:
    return " ".join(itertools.dropwhile(words_of(house.language).little.__contains__, words.split()))


def timer_named(call: Call, house: House) -> dict[str, Any]:
    """Return the slots of a timer's words: its name; of one that runs, also its area or its length, "5 minute"; of all
    timers none, or an area."""
    if (area := all_timers_of(call, house)) is not None:
        return {"area": area} if area else {}
    if call.tool != "start_timer":
        words, texts = words_of(house.language), texts_of(house.language)
        if (area := without_article(call.words, house)) in house.areas:
            return {"area": area}
        number, _, unit_said = call.words.partition(" ")
        number = "1" if re.fullmatch(texts["one"], number) else words.numbers.get(number, number)
        count = int(number) if number.isdigit() else 0
        found = [unit for unit, form in texts["units"].items() if re.fullmatch(form, unit_said)]
        if count and found:
            return {f"start_{found[0]}s": count}
    return {"name": call.words} if call.words else {}


def timed(call: Call) -> bool:
    return any(name in ("after_minutes", "at") for name, _ in call.values)


def later(
    call: Call, devices: Sequence[Device], names: Mapping[str, str], now: datetime.datetime, texts: Mapping[str, Any]
) -> list[Intent]:
    """Return a timer with a command for each device. `now`: the local time, for a time of the day."""
    values = dict(call.values)
    minutes = values.get("after_minutes")
    if minutes is None:
        hour, minute = map(int, values["at"].split(":"))
        due = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
        minutes = max(1, round((due - now).total_seconds() / 60) % (24 * 60))
    words, value = texts["ask"][call.tool], values.get("percent", "")
    commands = [words.format(texts["the"].format(names[device.key]), value=value) for device in devices]
    done = words.format(spoken(devices, names, texts), value=value)
    text = texts["will_at"].format(done, values["at"]) if "at" in values else texts["will_in"].format(
        done, texts["minute"] if minutes == 1 else texts["minutes"].format(minutes))
    text = without_braces(text)
    return [
        Intent("HassStartTimer", {"minutes": minutes, "conversation_command": command}, text if place == 0 else "")
        for place, command in enumerate(commands)
    ]


def said(form: str, call: Call, house: House, names: Mapping[str, str]) -> str:
    """Return the words of a call, in one of the forms of its language."""
    value = next((value for name, value in call.values if name in INTENTS[call.tool][1]), "")
    devices = spoken(devices_of(call, house), names, texts_of(house.language))
    return form.format(devices, value=value, words=call.words)


def spoken(devices: Sequence[Device], names: Mapping[str, str], texts: Mapping[str, Any]) -> str:
    if len(devices) > MOST_NAMED:
        domains = {device.domain for device in devices}
        kind = texts["several"].get(domains.pop(), texts["devices"]) if len(domains) == 1 else texts["devices"]
        return str(kind.format(len(devices)))
    listed = [texts["the"].format(names[device.key]) for device in devices]
    return f" {texts['also']} ".join(filter(None, [", ".join(listed[:-1]), *listed[-1:]]))


def without_braces(text: str) -> str:
    """Return text that Home Assistant takes for no template: a name may hold what looks like one."""
    return text.replace("{", "(").replace("}", ")")
