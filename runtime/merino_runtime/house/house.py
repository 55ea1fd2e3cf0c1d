"""A house as the model reads it, the tools, and what a call means.

The prompt lists the floors, and what each area has. The last word of a name stands before it too, so that the model
finds "priya's charger" for "the charger":

    floors: ground floor, upstairs
    bedroom: light lamp: bedside lamp, cover blinds
    here, kitchen: light light: ceiling light, light lamp: counter lamp; switch
    house: climate
    > turn off the lamp beside the bed

Behind a semicolon are domains of which an area has more devices than are listed there, and `house` has those that no
listed area has.

The answer is a list of calls, `[["off","lamp beside the bed",["bedside lamp"]]]`: the tool's short name, the words of
the sentence that name the devices, the targets, and an object of values if there are some. `[]` is a refusal, and a
call without targets says that the house has no such device. A target is a device, or a group: `AREA/DOMAIN`,
`FLOOR/DOMAIN` or `house/DOMAIN` is all devices of a domain there, and `AREA/all` is all that can be turned on and off.
A device whose name occurs more than once is `AREA/NAME`. Domains are Home Assistant's.
"""
import json
from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Tuple

EVERYWHERE, EVERYTHING, NOWHERE = "house", "all", "-"
MOST_TARGETS, MOST_CALLS = 3, 3
MOST_WORDS = 96  # characters
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "warm white", "cold white")
STATES = ("on", "off", "open", "closed", "locked", "unlocked", "playing", "paused")
PERCENT = {"type": "integer", "minimum": 0, "maximum": 100}
LENGTH = {"minutes": {"type": "integer", "minimum": 1, "maximum": 1440},
          "seconds": {"type": "integer", "minimum": 1, "maximum": 3660}}
# When: after some minutes, or at a time of the day. Without either: now.
TIMES = {"after_minutes": {"type": "integer", "minimum": 1, "maximum": 1440},
         "at": {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}}
ACTS = ("light", "switch", "fan", "climate", "media_player")


class Tool(NamedTuple):
    """`short`: its name in an answer. `domains`: what it is for; none: it takes no targets. `values`: its arguments
    beside words and targets. `required`: whether it needs one of them."""
    short: str
    domains: Tuple[str, ...] = ()
    values: Dict[str, Any] = {}
    required: bool = False


TOOLS = {
    "turn_on": Tool("on", ACTS + ("scene", "script")),
    "turn_off": Tool("off", ACTS),
    "set_brightness": Tool("brightness", ("light",), {"percent": PERCENT}, True),
    "brighten": Tool("brighten", ("light",)),
    "dim": Tool("dim", ("light",)),
    "set_color": Tool("color", ("light",), {"color": {"enum": list(COLORS)}}, True),
    "open": Tool("open", ("cover",)),
    "close": Tool("close", ("cover",)),
    "set_position": Tool("position", ("cover",), {"percent": PERCENT}, True),
    "lock": Tool("lock", ("lock",)),
    "unlock": Tool("unlock", ("lock",)),
    "set_temperature": Tool("temperature", ("climate",), {"degrees": {"type": "integer", "minimum": 5, "maximum": 90}},
                            True),
    "warmer": Tool("warmer", ("climate",)),
    "cooler": Tool("cooler", ("climate",)),
    "set_speed": Tool("speed", ("fan",), {"percent": PERCENT}, True),
    "set_volume": Tool("volume", ("media_player",), {"percent": PERCENT}, True),
    "louder": Tool("louder", ("media_player",)),
    "quieter": Tool("quieter", ("media_player",)),
    "mute": Tool("mute", ("media_player",)),
    "unmute": Tool("unmute", ("media_player",)),
    "play": Tool("play", ("media_player",)),
    "pause": Tool("pause", ("media_player",)),
    "next": Tool("next", ("media_player",)),
    "previous": Tool("previous", ("media_player",)),
    "start": Tool("start", ("vacuum",)),
    "dock": Tool("dock", ("vacuum",)),
    "get_state": Tool("state", ACTS + ("cover", "lock", "vacuum"), {"state": {"enum": list(STATES)}}),
    "get_temperature": Tool("degrees", ("climate",)),
    "add_item": Tool("add", ("todo",)),
    "start_timer": Tool("timer", (), LENGTH, True),
    "cancel_timer": Tool("cancel", ()),
    "add_time": Tool("extend", (), LENGTH, True),
    "remove_time": Tool("shorten", (), LENGTH, True),
    "timer_left": Tool("remaining", ()),
    "pause_timer": Tool("hold", ()),
    "resume_timer": Tool("resume", ()),
}
NO_EFFECT = ("get_state", "get_temperature", "timer_left")
UNTIMED = NO_EFFECT + ("add_item",) + tuple(name for name, tool in TOOLS.items() if not tool.domains)
NAMED = {tool.short: name for name, tool in TOOLS.items()}
SHORT = {"after_minutes": "after"}
LONG = {"after": "after_minutes"}


class Device(NamedTuple):
    """`area`: "" for none. `key`: what the caller knows it by, such as Home Assistant's entity id."""
    name: str
    domain: str
    area: str = ""
    aliases: Tuple[str, ...] = ()
    key: str = ""


class Call(NamedTuple):
    """`words`: what names the targets in the sentence; of a timer its name, of a list the item."""
    tool: str
    targets: Tuple[str, ...] = ()
    values: Tuple[Tuple[str, Any], ...] = ()
    words: str = ""

    def openai(self) -> Dict[str, Any]:
        """The call as OpenAI's API has it."""
        arguments = {"words": self.words, "targets": list(self.targets)}  # type: Dict[str, Any]
        return {"name": self.tool, "arguments": dict(arguments, **dict(self.values))}


class House(NamedTuple):
    """`here`: the area in which the sentence is spoken, "" for unknown. `floors`: each with its areas. `also`: of a
    part of a house, domains that an area, or `house`, has besides. `language`: of the sentences and names."""
    devices: Tuple[Device, ...]
    here: str = ""
    floors: Tuple[Tuple[str, Tuple[str, ...]], ...] = ()
    also: Tuple[Tuple[str, Tuple[str, ...]], ...] = ()
    language: str = "en"

    @property
    def areas(self) -> List[str]:
        listed = [device.area for device in self.devices] + [area for area, _ in self.also if area != EVERYWHERE]
        return [area for area in dict.fromkeys(listed) if area]

    def label(self, device: Device) -> str:
        """The device as a target."""
        return self.labels()[device]

    def labels(self) -> Dict[Device, str]:
        counts = {}  # type: Dict[str, int]
        for device in self.devices:
            counts[device.name] = counts.get(device.name, 0) + 1
        return {device: device.name if counts[device.name] == 1 or not device.area else
                "{}/{}".format(device.area, device.name) for device in self.devices}

    def places(self) -> Dict[str, Tuple[str, ...]]:
        """Areas and floors, and their areas. An area goes before a floor of its name."""
        places = dict(self.floors)
        places.update((area, (area,)) for area in self.areas)
        return places

    def targets(self, domains: Sequence[str]) -> List[str]:
        """What a tool for these domains may name: devices, then groups of areas, floors and the house."""
        labels = self.labels()
        named = {labels[device]: None for device in self.devices if device.domain in domains}
        grouped = [device for device in self.devices if device.domain in domains and
                   device.domain not in ("scene", "script", "todo")]
        for place, areas in list(self.places().items()) + [(EVERYWHERE, tuple(self.areas) + ("", EVERYWHERE))]:
            found = list(dict.fromkeys([device.domain for device in grouped if device.area in areas] + [
                domain for area, also in self.also if area in areas for domain in also if domain in domains]))
            named.update(("{}/{}".format(place, domain), None) for domain in found)
            if len(found) > 1 and set(domains) & set(ACTS) == set(ACTS):
                named["{}/{}".format(place, EVERYTHING)] = None
        return list(named)

    def resolve(self, target: str) -> FrozenSet[Device]:
        """The devices that a target means; empty for none."""
        named = frozenset(device for device, label in self.labels().items() if label == target)
        if named:
            return named
        place, _, domain = target.partition("/")
        domains = ACTS if domain == EVERYTHING else (domain,)
        areas = self.places().get(place, ())
        return frozenset(device for device in self.devices if device.domain in domains and
                         (place == EVERYWHERE or device.area in areas))


def prompt(house: House, sentence: str) -> str:
    """The area in which the sentence is spoken comes last: most sentences that name no area are about it."""
    return listing(house) + said(sentence)


def listing(house: House) -> str:
    lines = ["floors: {}\n".format(", ".join(floor for floor, _ in house.floors))] if house.floors else []
    also = dict(house.also)
    areas = [device.area for device in house.devices] + [area for area in also if area != EVERYWHERE]
    areas = list(dict.fromkeys(areas))
    here = house.here or NOWHERE
    if here not in areas:
        areas.append(here)
    for area in sorted(areas, key=lambda area: area == here):
        listed = ", ".join("{} {}".format(device.domain, entry(device.name)) for device in house.devices
                           if device.area == area)
        more = "; {}".format(", ".join(also[area])) if area in also else ""
        first = "here, " if area == here else ""
        lines.append("{}{}: {}{}".format(first, area or NOWHERE, listed, more).strip() + "\n")
    if EVERYWHERE in also:
        lines.append("{}: {}\n".format(EVERYWHERE, ", ".join(also[EVERYWHERE])))
    return "".join(lines)


def entry(name: str) -> str:
    """A name in the listing: its last word stands before it too."""
    _, several, last = name.rpartition(" ")
    return "{}: {}".format(last, name) if several else name


def said(sentence: str) -> str:
    """What is said behind a house, or behind an earlier answer."""
    return "> {}\n".format(sentence.lower())


def write_calls(calls: Sequence[Call]) -> str:
    """As the model writes them."""
    rows = []  # type: List[Any]
    for call in calls:
        values = {SHORT.get(name, name): value for name, value in call.values}
        rows.append([TOOLS[call.tool].short, call.words, list(call.targets)] + ([values] if values else []))
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=False)


def read_calls(text: str) -> Optional[List[Call]]:
    """The calls of an answer; None if it is none."""
    try:
        calls = []
        for short, words, targets, *values in json.loads(text):
            pairs = tuple((LONG.get(name, name), value) for name, value in (values[0] if values else {}).items())
            calls.append(Call(NAMED[short], tuple(targets), pairs, words))
        return calls
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def schema() -> Dict[str, Any]:
    """JSON schema of an answer, the same for all houses: targets are any text."""
    rows = []
    for name, tool in TOOLS.items():
        named = {"type": "array", "items": {"type": "string", "maxLength": MOST_WORDS}, "maxItems": MOST_TARGETS}
        rows.append(row_schema(name, {"type": "string", "maxLength": MOST_WORDS},
                               named if tool.domains else {"type": "array", "maxItems": 0}))
    return {"type": "array", "items": {"anyOf": rows}, "maxItems": MOST_CALLS}


def row_schema(name: str, words: Dict[str, Any], targets: Dict[str, Any]) -> Dict[str, Any]:
    """JSON schema of one call."""
    tool = TOOLS[name]
    allowed = dict(tool.values, **({} if name in UNTIMED else TIMES))
    row = [{"const": tool.short}, words, targets]
    need = list(tool.values) if len(tool.values) == 1 and tool.required else []
    if allowed:
        row.append({"type": "object", "properties": {SHORT.get(key, key): value for key, value in allowed.items()},
                    "required": need, "additionalProperties": False})
    return {"type": "array", "prefixItems": row, "minItems": 3 + tool.required, "maxItems": len(row)}


def meaning(call: Call, house: House) -> Tuple[Any, ...]:
    """Equal for two calls with the same effect in this house, such as lights of a room by their group or by name."""
    tool = TOOLS[call.tool]
    if tool.domains and not call.targets:
        return ()
    devices = frozenset().union(*(house.resolve(target) for target in call.targets))  # type: FrozenSet[Device]
    words = "" if tool.domains and call.tool != "add_item" else call.words.lower()
    if call.tool == "set_volume" and ("percent", 0) in call.values:
        return ("mute", devices, frozenset(), words)
    return (call.tool, devices, frozenset(call.values), words)


def meanings(calls: Sequence[Call], house: House) -> FrozenSet[Tuple[Any, ...]]:
    """Of an answer: empty for a refusal, and for calls without a target."""
    return frozenset(meaning(call, house) for call in calls) - {()}


def has_effect(calls: Sequence[Call], house: House) -> bool:
    return any(meaning(call, house) and call.tool not in NO_EFFECT for call in calls)
