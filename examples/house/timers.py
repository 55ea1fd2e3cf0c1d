"""Sentences about timers and lists."""

import random

from command_families import Sample
from grammar import blocks, expand, rules
from houses import dictionary, strange
from merino_runtime.house.house import Call, House
from spoken import duration, parts_said, spelled

NAMES = (
    "pizza", "egg", "laundry", "tea", "pasta", "kitchen", "oven", "workout", "bread", "rice", "nap", "homework", "cake", "chicken",
    "meditation", "break", "potato", "soup", "washing machine", "cookie", "second", "long", "short", "dinner", "roast",
)  # fmt: skip
ITEMS = (
    "milk", "bread", "eggs", "butter", "apples", "light bulbs", "soap", "toilet paper", "coffee", "cheese", "oat milk",
    "bananas", "olive oil", "cat food", "batteries", "dish soap", "tomatoes", "orange juice", "onions", "flour", "rice",
    "call the bank", "clean the car", "buy a lamp", "water the plants", "pay the rent", "book the dentist", "paper towels",
    "two lemons", "a birthday card", "dog food", "ice cream", "chicken", "frozen peas", "wash the windows", "tape",
)  # fmt: skip
UNITS = {"start_timer": 3, "cancel_timer": 2, "add_time": 1, "remove_time": 1, "timer_left": 1.5, "pause_timer": 1, "resume_timer": 1}


def length(rng: random.Random) -> tuple[str, dict[str, int]]:
    if rng.random() < 0.15:
        seconds = rng.choice((10, 15, 20, 30, 30, 45, 90))
        return f"{spelled(seconds, rng)} seconds", {"seconds": seconds}
    text, minutes = duration(rng)
    return text, {"minutes": minutes}


def of_timer(house: House, split: str, rng: random.Random) -> Sample | None:
    tool = rng.choices(list(UNITS), list(UNITS.values()))[0]
    text, values = length(rng)
    name = rng.choice((rng.choice(NAMES), strange(rng)))
    template = rng.choice(blocks("timers")[tool])
    if template.startswith("for {name}") and rng.random() < 0.5:
        return None
    sentence = expand(template, rng, rules(split), {"time": text, "time:adj": text, "name": name})
    named = parts_said(sentence, (name,)) if "{name}" in template else ()
    given = tuple(values.items()) if tool in ("start_timer", "add_time", "remove_time") else ()
    return Sample(house, sentence, Call(tool, (), given), f"timer.{tool}", named)


def of_list(house: House, split: str, rng: random.Random) -> Sample | None:
    lists = [device for device in house.devices if device.domain == "todo"]
    if not lists and rng.random() < 0.6:
        return None
    chosen = rng.choice(lists) if lists else None
    item = rng.choice(ITEMS)
    if split == "train" and rng.random() < 0.6:
        item = " ".join(rng.choice(dictionary()) for _ in range(rng.choice((1, 1, 2, 3))))
    if rng.random() < 0.15:
        item += f" and {rng.choice(ITEMS)}"
    name = chosen.name if chosen else rng.choice(("shopping list", "to do list", "list"))
    if chosen and not lists[1:] and rng.random() < 0.3:
        name = rng.choice(("list", "shopping list")) if "shop" in name or "grocer" in name else "list"
    said = name if name.endswith("list") or rng.random() < 0.3 else f"{name} list"
    template = rng.choice(blocks("timers")["add_item"])
    sentence = expand(template, rng, rules(split), {"item": item, "list": said})
    targets = (house.label(chosen),) if chosen else ()
    return Sample(house, sentence, Call("add_item", targets), "list.add", parts_said(sentence, (item,)))
