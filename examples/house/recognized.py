"""What Home Assistant's own sentences make of an utterance: `hassil` with the package home-assistant-intents, given the
names and areas of a house. No model: what no template matches is refused. A name of an assistant in front is left out,
as a wake word is. It needs `pip install hassil`.

    python examples/house/recognized.py --generated test.jsonl --negatives negatives.txt
"""

import importlib
import re
from functools import cache
from typing import Any

from evaluate import judge, parser_of, sets_of, show
from merino_runtime.house.house import REFUSAL, Call, House
from refer import here_target
from templates import english

WAKE = re.compile(r"^(hey |ok |okay |hi )?(olly|alexa|siri|google|jarvis|computer|assistant)[ ,]+")
SPECIAL = {
    ("HassTurnOn", "cover"): "open", ("HassTurnOff", "cover"): "close", ("HassTurnOn", "lock"): "lock",
    ("HassTurnOff", "lock"): "unlock", ("HassTurnOn", "vacuum"): "start", ("HassTurnOff", "vacuum"): "dock",
}  # fmt: skip
TOOL = {
    "HassTurnOn": "turn_on", "HassTurnOff": "turn_off", "HassSetPosition": "set_position",
    "HassClimateSetTemperature": "set_temperature", "HassMediaPause": "pause", "HassMediaUnpause": "play",
    "HassMediaNext": "next", "HassSetVolume": "set_volume", "HassVacuumStart": "start",
    "HassVacuumReturnToBase": "dock", "HassFanSetSpeed": "set_speed",
}  # fmt: skip
DOMAIN = {
    "HassLightSet": "light", "HassSetPosition": "cover", "HassClimateSetTemperature": "climate",
    "HassMediaPause": "media_player", "HassMediaUnpause": "media_player", "HassMediaNext": "media_player",
    "HassSetVolume": "media_player", "HassSetVolumeRelative": "media_player", "HassVacuumStart": "vacuum",
    "HassVacuumReturnToBase": "vacuum", "HassFanSetSpeed": "fan",
}  # fmt: skip
VALUES = {
    "brightness": "percent", "position": "percent", "volume_level": "percent", "percentage": "percent",
    "temperature": "degrees", "color": "color",
}  # fmt: skip


@cache
def intents() -> Any:
    return importlib.import_module("hassil.intents").Intents.from_dict(english())


def answer(house: House, sentence: str) -> str:
    """The text of the action of the best match in this house; a refusal where there is none or it is no tool's."""
    lists = importlib.import_module("hassil.intents").TextSlotList
    names = [(each.name, each.name, {"domain": each.domain}) for each in house.devices]
    slot_lists = {
        "name": lists.from_tuples(names, name="name"),
        "area": lists.from_tuples([(area, area) for area in house.areas], name="area"),
        "floor": lists.from_tuples([("first floor", "first floor")], name="floor"),  # the templates want one
    }
    best = importlib.import_module("hassil.recognize").recognize_best(
        WAKE.sub("", sentence), intents(), slot_lists=slot_lists, intent_context={"area": house.here},
        best_slot_name="name",
    )  # fmt: skip
    action = best and action_of(house, best.intent.name, {name: entity.value for name, entity in best.entities.items()})
    return action.text() if action else REFUSAL.text()


def action_of(house: House, intent: str, slots: dict[str, Any]) -> Call | None:
    named = next((each for each in house.devices if each.name == slots.get("name")), None)
    domain = named.domain if named else slots.get("domain") or DOMAIN.get(intent)
    if domain is None and "device_class" in slots:
        domain = "cover"
    tool = SPECIAL.get((intent, domain or ""), TOOL.get(intent))
    if intent == "HassLightSet":
        tool = "set_color" if "color" in slots else "set_brightness" if "brightness" in slots else None
    if intent == "HassSetVolumeRelative":
        step = slots.get("volume_step")
        tool = "louder" if step == "up" or isinstance(step, int) and step > 0 else "quieter"
    if tool is None or domain is None:
        return None
    area = slots.get("area")
    target = named.name if named else f"{area}/{domain}" if area else here_target(house, domain)
    values = tuple((argument, slots[slot]) for slot, argument in VALUES.items() if slot in slots)
    return Call(tool, (target,), values) if house.resolve(target) else None


def main() -> None:
    for name, cases in sets_of(parser_of(__doc__).parse_args()).items():
        right, count, wrong = judge(cases, answer)
        show(name, right, count, sum(row["acted"] for row in wrong))


if __name__ == "__main__":
    main()
