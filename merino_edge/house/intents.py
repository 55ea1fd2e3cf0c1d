"""Turns calls into Home Assistant's intents and the words that are spoken.

An intent names one entity by its id, which Home Assistant accepts as a name: what is not exposed is never reached, and
two lamps of the same name are told apart. A command for later becomes a timer, whose command Home Assistant runs.
"""

import datetime
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from merino_runtime.house.house import TOOLS, Call, Device, House
from merino_runtime.house.words import NUMBERS

STEP_PERCENT, STEP_DEGREES = 20, 1  # of brighten and dim, warmer and cooler
KELVIN = {"warm white": 2700, "cold white": 6500}
MOST_NAMED = 3  # devices that are spoken by name
REFUSED = "Sorry, I can't do that."
INTENTS: dict[str, list[Any]] = tomllib.loads((files("merino_edge.house") / "intents.toml").read_text(encoding="utf-8"))
RELATIVE = ("brighten", "dim", "warmer", "cooler")  # whose intents need the states of now
LATER = ("turn_on", "turn_off", "open", "close", "set_brightness", "lock")  # that Home Assistant's templates know
# Spoken by Home Assistant, which knows the states: Jinja templates.
STATE_IS = "{{ state.name }} is {{ state.state_with_unit }}"
STATE_CHECKED = "{{ 'Yes' if query.matched else 'No, ' ~ state.name ~ ' is ' ~ state.state_with_unit }}"
DEGREES = "{{ state.attributes.current_temperature }} degrees"
TIMER_LEFT = (
    "{% set timers = slots.timers | default([]) %}{% if not timers %}There is no timer{% else %}"
    "{% set left = timers[0].total_seconds_left %}{{ left // 60 }} minutes and {{ left % 60 }} seconds left{% endif %}"
)


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
    if not calls:
        return Reply(text=REFUSED)
    for call in calls:
        if TOOLS[call.tool].domains and not devices_of(call, house):
            missing = f"nothing called {call.words}" if call.words else "no such device"
            return Reply(text=f"Sorry, there is {missing} here.")
        if timed(call) and call.tool not in LATER:
            return Reply(text="Sorry, I can't do that at a later time.")
    if asks:
        asked = " and ".join(said(INTENTS[call.tool][3], call, house, names) for call in calls)
        return Reply(text=f"Shall I {asked}?", asks=tuple(calls))
    return Reply()


def intents_of(
    calls: Sequence[Call], house: House, names: Mapping[str, str], *, states: Mapping[str, dict[str, Any]],
    now: datetime.datetime,
) -> Reply:  # fmt: skip
    """Return the intents of calls that `reply_to` has nothing against. `states`: of the entities, for RELATIVE."""
    intents: list[Intent] = []
    for call in calls:
        devices = devices_of(call, house)
        made = [slots for device in devices if (slots := slots_of(call, device, states)) is not None]
        if not TOOLS[call.tool].domains:
            made = [{**values_of(call), **timer_named(call, house)}]
        if not made:
            return Reply(text=f"Sorry, I don't know the state of {spoken(devices, names)}.")
        if timed(call):
            intents += later(call, devices, names, now)
            continue
        texts = {"get_state": STATE_CHECKED if call.values else STATE_IS, "get_temperature": DEGREES,
                 "timer_left": TIMER_LEFT}  # fmt: skip
        text = texts.get(call.tool) or without_braces(said(INTENTS[call.tool][2], call, house, names))
        every = call.tool in texts  # each entity's own answer
        name = INTENTS[call.tool][0]
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


def timer_named(call: Call, house: House) -> dict[str, Any]:
    """Return the slots of a timer's words: its name; of one that runs, also its area or its length, "5 minute"."""
    if call.tool != "start_timer":
        if call.words in house.areas:
            return {"area": call.words}
        number, _, unit = call.words.partition(" ")
        number = NUMBERS.get(number, number)
        count = int(number) if number.isdigit() else 0
        if count and unit in ("hour", "minute", "second"):
            return {f"start_{unit}s": count}
    return {"name": call.words} if call.words else {}


def timed(call: Call) -> bool:
    return any(name in ("after_minutes", "at") for name, _ in call.values)


def later(call: Call, devices: Sequence[Device], names: Mapping[str, str], now: datetime.datetime) -> list[Intent]:
    """Return a timer with a command for each device. `now`: the local time, for a time of the day."""
    values = dict(call.values)
    minutes = values.get("after_minutes")
    if minutes is None:
        hour, minute = map(int, values["at"].split(":"))
        due = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
        minutes = max(1, round((due - now).total_seconds() / 60) % (24 * 60))
    words, value = INTENTS[call.tool][3], values.get("percent", "")
    commands = [words.format(f"the {names[device.key]}", value=value) for device in devices]
    when = f"at {values['at']}" if "at" in values else f"in {minutes} minute{'s' * (minutes != 1)}"
    text = without_braces(f"I will {words.format(spoken(devices, names), value=value)} {when}")
    return [
        Intent("HassStartTimer", {"minutes": minutes, "conversation_command": command}, text if place == 0 else "")
        for place, command in enumerate(commands)
    ]


def said(form: str, call: Call, house: House, names: Mapping[str, str]) -> str:
    """Return the words of a call, in one of the two forms of INTENTS."""
    value = next((value for name, value in call.values if name in INTENTS[call.tool][1]), "")
    return form.format(spoken(devices_of(call, house), names), value=value, words=call.words)


def spoken(devices: Sequence[Device], names: Mapping[str, str]) -> str:
    if len(devices) > MOST_NAMED:
        kinds = {device.domain.replace("_", " ") for device in devices}
        return f"{len(devices)} {kinds.pop() + 's' if len(kinds) == 1 else 'devices'}"
    listed = [f"the {names[device.key]}" for device in devices]
    return " and ".join(filter(None, [", ".join(listed[:-1]), *listed[-1:]]))


def without_braces(text: str) -> str:
    """Return text that Home Assistant takes for no template: a name may hold what looks like one."""
    return text.replace("{", "(").replace("}", ")")
