"""Sentences about timers and lists."""

import random
import re

from command_families import Sample
from grammar import blocks, expand, rules
from houses import dictionary, strange, words
from spoken import duration, parts_said, spelled

from merino_runtime.house.house import Call, House

UNITS = re.compile(r"\b(hour|minute|min|second)s\b")
SHARES = {
    "start_timer": 3, "cancel_timer": 2, "add_time": 1, "remove_time": 1, "timer_left": 1.5, "pause_timer": 1,
    "resume_timer": 1,
}  # fmt: skip


def length(rng: random.Random) -> tuple[str, dict[str, int]]:
    how = rng.random()
    if how < 0.12:
        seconds = rng.choice((10, 15, 20, 30, 30, 45, 90))
        return f"{spelled(seconds, rng)} seconds", {"seconds": seconds}
    if how < 0.16:
        return rng.choice(("half a minute", "1/2 a minute")), {"seconds": 30}
    if how < 0.24:
        minutes, seconds = rng.randint(1, 9), rng.choice((10, 15, 20, 30, 30, 45))
        if seconds == 30 and rng.random() < 0.6:
            said = "a minute and a half" if minutes == 1 else f"{spelled(minutes, rng)} and a half minutes"
        else:
            unit = "minute" if minutes == 1 else "minutes"
            joint = rng.choice((" and ", " and ", " "))
            said = f"{spelled(minutes, rng)} {unit}{joint}{spelled(seconds, rng)} seconds"
        return said, {"seconds": 60 * minutes + seconds}
    text, minutes = duration(rng)
    return text, {"minutes": minutes}


def before_noun(text: str, rng: random.Random) -> str:
    """A length as it stands before "timer": "5 minute"."""
    return UNITS.sub(r"\1", text) if rng.random() < 0.8 else text


def of_timer(house: House, split: str, rng: random.Random) -> Sample | None:
    tool = rng.choices(list(SHARES), list(SHARES.values()))[0]
    text, values = length(rng)
    template = rng.choice(blocks("timers")[tool])
    name = rng.choice((rng.choice(words("timers", "train")), strange(rng)))
    how = rng.random()
    if "in [the] {name}" in template or tool != "start_timer" and how < 0.15:
        name = rng.choice(house.areas)
    elif tool != "start_timer" and how < 0.5:  # a timer is also named by its length
        length_said = length(rng)[0]
        name = before_noun(length_said, rng) if "{name} timer" in template else length_said
    text = before_noun(text, rng) if "{time} timer" in template else text
    sentence = expand(template, rng, rules(split), {"time": text, "name": name})
    named = parts_said(sentence, (name,)) if "{name}" in template else ()
    given = tuple(values.items()) if tool in ("start_timer", "add_time", "remove_time") else ()
    return Sample(house, sentence, Call(tool, (), given), f"timer.{tool}", named)


def of_list(house: House, split: str, rng: random.Random) -> Sample | None:
    lists = [device for device in house.devices if device.domain == "todo"]
    if not lists and rng.random() < 0.6:
        return None
    chosen = rng.choice(lists) if lists else None
    item = rng.choice(words("items", "train"))
    if split == "train" and rng.random() < 0.6:
        item = " ".join(rng.choice(dictionary()) for _ in range(rng.choice((1, 1, 2, 3))))
    if rng.random() < 0.15:
        item += " and " + rng.choice(words("items", "train"))
    name = chosen.name if chosen else rng.choice(("shopping list", "to do list", "list"))
    if chosen and not lists[1:] and rng.random() < 0.3:
        name = rng.choice(("list", "shopping list")) if "shop" in name or "grocer" in name else "list"
    said = name if name.endswith("list") or rng.random() < 0.3 else f"{name} list"
    template = rng.choice(blocks("timers")["add_item"])
    sentence = expand(template, rng, rules(split), {"item": item, "list": said})
    targets = (house.label(chosen),) if chosen else ()
    return Sample(house, sentence, Call("add_item", targets), "list.add", parts_said(sentence, (item,)))
