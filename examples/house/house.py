"""A house as the model reads it, the actions as tools, and what a call means.

The prompt names what the house has, so the model copies names and need not know them:

    bedroom: light lamp: bedside lamp, cover blinds
    here, kitchen: light light: ceiling light, light lamp: counter lamp, switch maker: coffee maker
    > turn off the lamp beside the bed

The last word of a name stands before it too: who says "the charger" for "priya's charger" says the word by which the
model finds the device, and the answer is what follows there.

The answer is one call, or a refusal where nothing is asked for:
`{"name":"turn_off","arguments":{"words":"lamp beside the bed","targets":["bedside lamp"]}}`. `words` repeats the
words of the sentence that name the devices: the model finds these words first and looks for the devices then. A target
is the name of a device, or a group: `AREA/DOMAIN` is all devices of a domain in an area (`kitchen/light`) or in the
house (`house/light`), and `AREA/all` is all that can be turned on and off there. An empty list of targets says that the
house has no such device. Domains are Home Assistant's.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

EVERYWHERE, EVERYTHING = "house", "all"
MOST_TARGETS = 3
MOST_WORDS = 96  # characters
# A call is carried out where the model gives it at least this probability, else the speaker is asked. The largest of
# 0.05, 0.1, ... that loses at most 0.5 % of the right answers to 2,000 sentences in houses with the training's names.
SURE = 0.05
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "warm white", "cold white")
PERCENT = {"type": "integer", "minimum": 0, "maximum": 100}
# What each tool takes beside its targets, and the domains that it is for.
TOOLS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "turn_on": (("light", "switch", "fan", "climate", "media_player", "scene"), {}),
    "turn_off": (("light", "switch", "fan", "climate", "media_player"), {}),
    "set_brightness": (("light",), {"percent": PERCENT}),
    "brighten": (("light",), {}),
    "dim": (("light",), {}),
    "set_color": (("light",), {"color": {"enum": list(COLORS)}}),
    "open": (("cover",), {}),
    "close": (("cover",), {}),
    "set_position": (("cover",), {"percent": PERCENT}),
    "lock": (("lock",), {}),
    "unlock": (("lock",), {}),
    "set_temperature": (("climate",), {"degrees": {"type": "integer", "minimum": 5, "maximum": 35}}),
    "warmer": (("climate",), {}),
    "cooler": (("climate",), {}),
    "set_speed": (("fan",), {"percent": PERCENT}),
    "set_volume": (("media_player",), {"percent": PERCENT}),
    "louder": (("media_player",), {}),
    "quieter": (("media_player",), {}),
    "play": (("media_player",), {}),
    "pause": (("media_player",), {}),
    "next": (("media_player",), {}),
    "start": (("vacuum",), {}),
    "dock": (("vacuum",), {}),
}
REFUSE = "refuse"
# When: after some minutes, or at a time of the day. Without either: now.
TIMES = {
    "after_minutes": {"type": "integer", "minimum": 1, "maximum": 1440},
    "at": {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"},
}


@dataclass(frozen=True)
class Device:
    name: str
    domain: str
    area: str


@dataclass(frozen=True)
class House:
    """`here`: the area in which the sentence is spoken."""

    devices: tuple[Device, ...]
    here: str

    @property
    def areas(self) -> list[str]:
        return list(dict.fromkeys(device.area for device in self.devices))

    def targets(self, domains: Sequence[str]) -> list[str]:
        """What a tool for these domains may name: devices, then the groups of areas and of the house, by domain and
        then, where there are several domains, of all."""
        fit = [device for device in self.devices if device.domain in domains]
        names = dict.fromkeys(device.name for device in fit)
        grouped = [device for device in fit if device.domain != "scene"]
        areas = dict.fromkeys(f"{device.area}/{device.domain}" for device in grouped)
        groups = [*areas, *dict.fromkeys(f"{EVERYWHERE}/{device.domain}" for device in grouped)]
        domains_of = Counter(group.partition("/")[0] for group in groups)
        return [*names, *groups, *(f"{area}/{EVERYTHING}" for area, count in domains_of.items() if count > 1)]

    def resolve(self, target: str) -> frozenset[Device]:
        """The devices that a target means; empty for none."""
        named = frozenset(device for device in self.devices if device.name == target)
        area, _, domain = target.partition("/")
        domains = TOOLS["turn_off"][0] if domain == EVERYTHING else (domain,)
        return named or frozenset(
            device for device in self.devices if device.domain in domains and area in (device.area, EVERYWHERE)
        )


@dataclass(frozen=True)
class Action:
    """A call of a tool. `values`: other arguments, in the order of TOOLS, then of TIMES. `words`: what names the
    targets in the sentence."""

    tool: str
    targets: tuple[str, ...] = ()
    values: tuple[tuple[str, Any], ...] = ()
    words: str = ""

    def text(self) -> str:
        """As the model writes it: the compact JSON of a tool call."""
        target = {} if self.tool == REFUSE else {"words": self.words, "targets": list(self.targets)}
        arguments = {**target, **dict(self.values)}
        return json.dumps({"name": self.tool, "arguments": arguments}, separators=(",", ":"))


REFUSAL = Action(REFUSE)


def read_action(text: str) -> Action | None:
    """The action that a text is; None where it is no call."""
    try:
        call = json.loads(text)
        arguments = dict(call["arguments"])
        words, targets = arguments.pop("words", ""), tuple(arguments.pop("targets", ()))
        return Action(call["name"], targets, tuple(arguments.items()), words)
    except (ValueError, KeyError, TypeError):
        return None


def meaning(action: Action, house: House) -> tuple[Any, ...]:
    """Equal for two actions with the same effect in this house, such as all lights of a room by their group or by name.
    A refusal and a call without a target are equal: neither has an effect."""
    if action.tool == REFUSE or not action.targets:
        return (REFUSE,)
    devices = frozenset().union(*(house.resolve(target) for target in action.targets))
    return (action.tool, devices, frozenset(action.values))


def prompt(house: House, sentence: str) -> str:
    """The area in which the sentence is spoken comes last: most sentences that name no area are about it."""
    lines = []
    for area in sorted(house.areas, key=lambda area: area == house.here):
        listed = ", ".join(f"{each.domain} {entry(each.name)}" for each in house.devices if each.area == area)
        lines.append(f"{'here, ' if area == house.here else ''}{area}: {listed}\n")
    if house.here not in house.areas:
        lines.append(f"here, {house.here}:\n")
    return "".join(lines) + said(sentence)


def entry(name: str) -> str:
    """A name in the listing: its last word stands before it too."""
    _, several, last = name.rpartition(" ")
    return f"{last}: {name}" if several else name


def said(sentence: str) -> str:
    """What is said behind a house, or behind an earlier answer; in lower case, since speech recognizers differ in their
    capitals."""
    return f"> {sentence.lower()}\n"


def tools(house: House) -> list[dict[str, Any]]:
    """The house's tools as OpenAI's API describes them: the constraint of an answer."""
    return [*device_tools(house), tool(REFUSE, {}, [])]


def device_tools(house: House) -> Iterator[dict[str, Any]]:
    for name, (domains, _) in TOOLS.items():
        targets = house.targets(domains)
        counts = {"items": {"enum": targets}, "maxItems": MOST_TARGETS, "uniqueItems": True}
        listed = {"type": "array", **(counts if targets else {"maxItems": 0})}
        yield device_tool(name, {"type": "string", "maxLength": MOST_WORDS}, listed)


def device_tool(name: str, words: dict[str, Any], targets: dict[str, Any]) -> dict[str, Any]:
    """`words`, `targets`: JSON schemas."""
    _, values = TOOLS[name]
    return tool(name, {"words": words, "targets": targets, **values, **TIMES}, ["words", "targets", *values])


def tool(name: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}
