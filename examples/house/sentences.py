"""Sentences for a house, each with the action that it asks for.

The answer names one device where the sentence names or singles out one, and the group of an area or of the house where
the sentence uses a plural or a word for any such device. Without an area the group is what is in `here`, else the
house's only device by its name, else the house's group. `all the lights` are the house's. `mute` is volume 0, `level
two` is 20 percent.
No tool takes how long something stays on ("for an hour"): it is ignored.
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from command_families import Sample, families, of_family, scene_said, wrapped
from grammar import blocks, expand, rules
from house import EVERYTHING, EVERYWHERE, MOST_WORDS, REFUSAL, TOOLS, Action, Device, House
from houses import assistants, make_house, strange, words
from refer import in_area, meant, refer
from refusals import refusal
from spoken import as_heard, first_said, heard, parts_said
from templates import ha_command


def of_scene(house: House, split: str, rng: random.Random) -> Sample | None:
    scenes = [each for each in house.devices if each.domain == "scene"]
    if not scenes:
        return None
    scene = rng.choice(scenes)
    if meant(scene.name, house) != [scene] or any(scene.name in each.name for each in house.devices if each != scene):
        return None
    sentence, times, kind = scene_said(scene.name, split, rng)
    return Sample(house, sentence, Action("turn_on", (scene.name,), tuple(times.items())), kind, (scene.name,))


def mood_scenes(house: House, keys: str) -> list[Device]:
    """Who goes to bed asks for "good night", not for "movie night"."""
    wanted = set(keys.split(","))
    scenes = []
    for scene in (each for each in house.devices if each.domain == "scene"):
        spoken = set(scene.name.split())
        if wanted & (spoken if "good" in spoken or len(spoken) == 1 else spoken - {"night", "morning"}):
            scenes.append(scene)
    return scenes


def of_mood(house: House, _: str, rng: random.Random) -> Sample | None:
    """A mood asks for its scene; where the house has none it is no command."""
    moods = blocks("moods")
    keys = rng.choice([keys for keys in moods if mood_scenes(house, keys)] or list(moods))
    scenes = mood_scenes(house, keys)
    sentence = expand(rng.choice(moods[keys]), rng, rules(), {})
    if len(scenes) > 1 or not scenes and any(each.domain == "scene" for each in house.devices):
        return None
    if not scenes:
        return Sample(house, sentence, REFUSAL, "no.mood")
    return Sample(house, sentence, Action("turn_on", (scenes[0].name,)), "scene.mood")


def of_use(house: House, split: str, rng: random.Random) -> Sample | None:
    """What an appliance does. Where the house has no such appliance it is refused."""
    uses = blocks("uses")
    present = [keys for keys in uses if users(house, keys)]
    missing = rng.random() < 0.12
    if not present and not missing:
        return None
    keys = rng.choice(present) if present and not missing else rng.choice((*uses, "coffee,espresso", "coffee,espresso"))
    devices = users(house, keys)
    local = [each for each in devices if each.area == house.here] or devices
    if len(local) > 1:
        return None
    sentence = expand(rng.choice(uses[keys]), rng, rules(), {})
    imperative = not sentence.startswith(("i ", "i'", "the ", "time", "it", "how", "can", "a ", "one", "coffee"))
    parts = first_said(sentence, keys.split(","))
    sentence, times = wrapped(sentence, imperative, "turn_on", split, rng) if imperative else (sentence, {})
    values = tuple(times.items())
    if not local:
        if keys.startswith(("towel", "router", "blanket")) or any(
            word in each.name for each in house.devices for word in keys.split(",")
        ):
            return None
        return Sample(house, sentence, Action("turn_on", (), values), "missing.use", parts)
    return Sample(house, sentence, Action("turn_on", (local[0].name,), values), "on.use", parts)


def users(house: House, keys: str) -> list[Device]:
    wanted = set(keys.split(","))
    switches = [each for each in house.devices if each.domain == "switch"]
    return [each for each in switches if wanted & set(each.name.replace("waffle iron", "waffle").split())]


def of_everything(house: House, split: str, rng: random.Random) -> Sample | None:
    family = next(family for family in families() if family.modes == "e")
    area = rng.choice((*house.areas, house.here, EVERYWHERE))
    target = f"{area}/{EVERYTHING}"
    if target not in house.targets(TOOLS["turn_off"][0]):
        return None
    place = (
        in_area(area, rng) if area != EVERYWHERE else rng.choice(("in the house", "everywhere", "in the whole house"))
    )
    if area == house.here and rng.random() < 0.5:
        place = rng.choice(("in here", "in this room", "in the room"))
    sentence = expand(rng.choice(family.templates), rng, rules(), {"inx": place})
    parts = parts_said(sentence, (place,))
    sentence, times = wrapped(sentence, True, "turn_off", split, rng)
    return Sample(house, sentence, Action("turn_off", (target,), tuple(times.items())), family.kind, parts)


def of_correction(house: House, _: str, rng: random.Random) -> Sample | None:
    tool = rng.choice(["turn_on", "turn_off", "dim", "brighten", "open", "close", "lock", "unlock"])
    domains = [domain for domain in TOOLS[tool][0] if domain not in ("scene", "media_player")]
    right, wrong = refer(house, domains, rng.choice("nna"), rng), refer(house, domains, rng.choice("nna"), rng)
    if right is None or wrong is None or right.place or wrong.place:
        return None
    if house.resolve(right.targets[0]) & house.resolve(wrong.targets[0]):
        return None
    verbs = [verb.removesuffix(" {t}") for verb in blocks("verbs")[tool] if verb.endswith(" {t}")]
    slots = {"verb": rng.choice(verbs), "t": right.whole, "wrong": wrong.whole}
    sentence = expand(rng.choice(blocks("wraps")["correction"]), rng, rules(), slots)
    return Sample(house, sentence, Action(tool, right.targets), "correction", parts_said(sentence, (right.said,)))


# With what a command of Home Assistant's must begin for "could you" to go with it.
VERBS = (
    "turn switch put activate deactivate set change make open close shut raise lower lift increase "
    "decrease pause stop skip resume unpause start return lock unlock illuminate adjust run bring "
    "transition get "
)


def of_ha(house: House, split: str, rng: random.Random) -> Sample | None:
    """By the templates of Home Assistant."""
    drawn = ha_command(house, rng)
    if drawn is None:
        return None
    sentence, action, parts = drawn
    sentence, times = wrapped(sentence, sentence.split()[0] in VERBS.split(), action.tool, split, rng)
    action = replace(action, values=(*action.values, *times.items()))
    return Sample(house, sentence, action, "ha." + action.tool, parts)


MAKERS: Mapping[Callable[[House, str, random.Random], Sample | None], float] = {
    of_family: 0.74, of_ha: 0.08, of_scene: 0.05, of_mood: 0.03, of_use: 0.05, of_everything: 0.02,
    of_correction: 0.03,
}
RARE = of_mood, of_use  # each of their many wordings is rare, so training has them twice as often
SHARES = {
    "train": [share * (2 if maker in RARE else 1) for maker, share in MAKERS.items()], "test": list(MAKERS.values())
}  # fmt: skip


def unclear(sample: Sample) -> bool:
    """Whether a sentence names a device that its action does not mean."""
    if sample.sentence in ("switch on", "switch off"):
        return True
    meant_devices = {each for target in sample.action.targets for each in sample.house.resolve(target)}
    text = sample.sentence
    longest_first = {"key": len, "reverse": True}
    for name in (
        *sorted((each.name for each in meant_devices), **longest_first),
        *sorted(sample.house.areas, **longest_first),
    ):
        if name in text:
            text = re.sub(rf"\b{re.escape(name)}\b", "#", text)
    others = [each.name for each in sample.house.devices if each not in meant_devices]
    return any(name in text and re.search(rf"\b{re.escape(name)}\b", text) for name in others)


# The share of easy commands that a training leaves out. Of a test they are four fifths, with a third of the errors: the
# others are called by a part of their name or by their use, or are several.
EASY_LEFT_OUT = 0.6


def command(house: House, split: str, rng: random.Random) -> Sample:
    while True:
        sample = rng.choices(list(MAKERS), SHARES[split])[0](house, split, rng)
        if sample is None or sample.kind != "correction" and sample.action.targets and unclear(sample):
            continue
        if split == "train" and is_easy(sample) and rng.random() < EASY_LEFT_OUT:
            continue
        return sample


def is_easy(sample: Sample) -> bool:
    """Whether the only target is a group, or a device that is called by its whole name, or there is none."""
    first, *others = sample.action.targets or ("",)
    is_group = first not in {each.name for each in sample.house.devices}
    return not others and (is_group or first in sample.sentence)


NAMED_LAST = {"train": 0.3, "test": 0.1}  # share of the assistants' names that end a sentence


def addressed(sentence: str, split: str, rng: random.Random) -> str:
    if rng.random() < 0.16:
        name = rng.choice(assistants(split))
        if split == "train":
            # Any word can be an assistant's name. A decoder that knows a few takes others for parts of a device's name.
            name = rng.choice((name, strange(rng), rng.choice(words("people", split))))
        wake = rng.choice(blocks("wraps")["wake"]).replace("{w}", name)
        if rng.random() < NAMED_LAST[split]:
            return f"{sentence} {name}"
        return f"{wake}{rng.choice((' ', ' ', ', '))}{sentence}"
    return sentence


MISTYPED = {"train": 0.12, "test": 0.04}  # share of the sentences with a typing error
COMMANDS = {"train": 0.71, "test": 0.76}  # share of the sentences; the others are refused


def make_sample(rng: random.Random, split: str, house: House | None = None) -> Sample:
    """Of a house, by default of a new one."""
    house = house or make_house(rng, split)
    sample = command(house, split, rng) if rng.random() < COMMANDS[split] else refusal(house, split, rng)
    sentence = addressed(sample.sentence, split, rng)
    result = heard(sentence, rng, MISTYPED[split])
    words = as_heard(sample.parts, sentence, result)[:MOST_WORDS]
    return replace(sample, sentence=result, action=replace(sample.action, words=words))
