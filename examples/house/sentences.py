"""Sentences for a house, each with the action that it asks for.

The answer names one device where the sentence names or singles out one, and the group of an area or of the house where
the sentence uses a plural or a word for any such device. Without an area the group is what is in `here`, else the
house's only device by its name, else the house's group. `all the lights` are the house's. `mute` is volume 0, `level
two` is 20 percent.
No tool takes how long something stays on ("for an hour"): it is ignored.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from command_families import REFUSAL, Sample, families, of_family, scene_said, wrapped
from grammar import blocks, expand, rules
from houses import assistants, make_house, strange, words
from refer import in_area, meant, on_floor, refer
from refusals import refusal
from spoken import as_heard, first_said, heard, number_words, parts_said
from templates import ha_command
from timers import of_list, of_timer

from merino_runtime.house.house import EVERYTHING, EVERYWHERE, MOST_WORDS, NO_EFFECT, TOOLS, Call, Device, House


def of_scene(house: House, split: str, rng: random.Random) -> Sample | None:
    scenes = [each for each in house.devices if each.domain in ("scene", "script")]
    if not scenes:
        return None
    scene = rng.choice(scenes)
    if meant(scene.name, house) != [scene] or any(scene.name in each.name for each in house.devices if each != scene):
        return None
    sentence, times, kind = scene_said(scene.name, split, rng, scene.domain)
    return Sample(house, sentence, Call("turn_on", (house.label(scene),), tuple(times.items())), kind, (scene.name,))


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
    return Sample(house, sentence, Call("turn_on", (house.label(scenes[0]),)), "scene.mood")


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
        return Sample(house, sentence, Call("turn_on", (), values), "missing.use", parts)
    return Sample(house, sentence, Call("turn_on", (house.label(local[0]),), values), "on.use", parts)


def users(house: House, keys: str) -> list[Device]:
    wanted = set(keys.split(","))
    switches = [each for each in house.devices if each.domain == "switch"]
    return [each for each in switches if wanted & set(each.name.replace("waffle iron", "waffle").split())]


def of_everything(house: House, split: str, rng: random.Random) -> Sample | None:
    family = next(family for family in families() if family.modes == "e")
    floors = [floor for floor, _ in house.floors]
    area = rng.choice((*house.areas, house.here, EVERYWHERE, *floors, *floors))
    target = f"{area}/{EVERYTHING}"
    if target not in house.targets(TOOLS["turn_off"].domains):
        return None
    if area == EVERYWHERE:
        place = rng.choice(("in the house", "everywhere", "in the whole house", "in the home", "at home"))
    else:
        place = on_floor(area) if area in floors else in_area(area, rng)
    if area == house.here and rng.random() < 0.5:
        place = rng.choice(("in here", "in this room", "in the room"))
    sentence = expand(rng.choice(family.templates), rng, rules(), {"inx": place})
    parts = parts_said(sentence, (place,))
    sentence, times = wrapped(sentence, True, "turn_off", split, rng)
    return Sample(house, sentence, Call("turn_off", (target,), tuple(times.items())), family.kind, parts)


def of_correction(house: House, _: str, rng: random.Random) -> Sample | None:
    tool = rng.choice(["turn_on", "turn_off", "dim", "brighten", "open", "close", "lock", "unlock"])
    domains = [domain for domain in TOOLS[tool].domains if domain not in ("scene", "media_player")]
    right, wrong = refer(house, domains, rng.choice("nna"), rng), refer(house, domains, rng.choice("nna"), rng)
    if right is None or wrong is None or right.place or wrong.place:
        return None
    if house.resolve(right.targets[0]) & house.resolve(wrong.targets[0]):
        return None
    verbs = [verb.removesuffix(" {t}") for verb in blocks("verbs")[tool] if verb.endswith(" {t}")]
    slots = {"verb": rng.choice(verbs), "t": right.whole, "wrong": wrong.whole}
    sentence = expand(rng.choice(blocks("wraps")["correction"]), rng, rules(), slots)
    return Sample(house, sentence, Call(tool, right.targets), "correction", parts_said(sentence, (right.said,)))


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
    action = action._replace(values=(*action.values, *times.items()))
    return Sample(house, sentence, action, "ha." + action.tool, parts)


JOINTS = (" and ", " and ", " and ", " and then ", ", ", ", then ", " and also ", ", and ", " then ", " also ")


def of_several(house: House, split: str, rng: random.Random) -> Sample | None:
    """Two commands, or rarely three, in a sentence."""
    samples: list[Sample] = []
    wanted = 3 if rng.random() < 0.12 else 2
    for _ in range(12):
        maker = rng.choices((of_family, of_scene, of_ha, of_timer, of_list), (12, 1, 2, 0.6, 0.6))[0]
        sample = maker(house, split, rng)
        if sample is None or sample.action.targets and unclear(sample) or len(sample.sentence) > 60:
            continue
        if sample.action.tool in NO_EFFECT or any(sample.action.targets == other.action.targets for other in samples):
            continue
        samples.append(sample)
        if len(samples) == wanted:
            break
    if len(samples) < 2:
        return None
    first, *rest = samples
    sentence = first.sentence
    for other in rest:
        sentence += rng.choice(JOINTS) + other.sentence
    return replace(first, sentence=sentence, kind="several", more=tuple(rest))


MAKERS: Mapping[Callable[[House, str, random.Random], Sample | None], float] = {
    of_family: 0.66, of_ha: 0.08, of_scene: 0.05, of_mood: 0.03, of_use: 0.05, of_everything: 0.02,
    of_correction: 0.02, of_timer: 0.05, of_list: 0.03, of_several: 0.07,
}
# Training has more of what is hard: moods and uses with their many rare wordings, and several commands at once.
HARD = {of_mood: 2, of_use: 2, of_several: 3}
HARDER = [share * HARD.get(maker, 1) for maker, share in MAKERS.items()]
SHARES = {"train": HARDER, "test": list(MAKERS.values())}


def unclear(sample: Sample) -> bool:
    """Whether a sentence names a device that its action does not mean."""
    if sample.sentence in ("switch on", "switch off"):
        return True
    meant_devices = {each for target in sample.action.targets for each in sample.house.resolve(target)}
    text = sample.sentence
    longest_first = {"key": len, "reverse": True}
    names = sorted((each.name for each in meant_devices), **longest_first)
    for name in (*names, *sorted(sample.house.areas, **longest_first)):
        if name in text:
            text = re.sub(rf"\b{re.escape(name)}\b", "#", text)
    shown = {each.name for each in meant_devices}
    others = [each.name for each in sample.house.devices if each not in meant_devices and each.name not in shown]
    return any(name in text and re.search(rf"\b{re.escape(name)}\b", text) for name in others)


# The share of easy commands that a training leaves out. Of a test they are four fifths, with a third of the errors: the
# others are called by a part of their name or by their use, or are several.
EASY_LEFT_OUT = 0.6


def command(house: House, split: str, rng: random.Random) -> Sample:
    while True:
        sample = rng.choices(list(MAKERS), SHARES[split])[0](house, split, rng)
        if sample is None or sample.kind not in ("correction", "several") and sample.action.targets and unclear(sample):
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
    sentence = numbers_said(addressed(sample.sentence, split, rng), rng)
    result = heard(sentence, rng, MISTYPED[split])

    def with_words(one: Sample) -> Sample:
        words = as_heard(tuple(numbered(one.parts, sentence)), sentence, result)[:MOST_WORDS]
        return replace(one, action=one.action._replace(words=words))

    return replace(with_words(sample), sentence=result, more=tuple(map(with_words, sample.more)))


def numbers_said(sentence: str, rng: random.Random) -> str:
    """"lamp three" for "lamp 3", sometimes."""
    if rng.random() < 0.6:
        return sentence
    return re.sub(r"(?<=[a-z] )([1-8])\b(?! ?(%|percent|degrees|min|hour|:|\.|am|pm|a\.m|p\.m|o'))",
                  lambda found: number_words(int(found[1])), sentence)


def numbered(parts: tuple[str, ...], sentence: str) -> Iterator[str]:
    """The parts as they are in the sentence, numbers as words if they are so there."""
    for part in parts:
        spelled = re.sub(r"\b([1-8])\b", lambda found: number_words(int(found[1])), part)
        yield part if part in sentence else spelled
