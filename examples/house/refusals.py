"""Samples: commands, and sentences that are to be refused because they are no command to the house, or for what it has
not; as typed, or as a speech recognizer heard them."""

import random
import re
from collections.abc import Callable, Set
from functools import cache

from grammar import blocks, expand, home_assistant, number_words, pairs, spelled, value
from items import area_name, assistants, device_name, make_house, near, strange, words
from refer import MARK, MARKS, called, in_area, refer, the_area, with_article
from sentences import Sample, command, families, ha_template, of_family, of_scene

from merino_runtime.house.house import MOST_WORDS, TOOLS, Device, House
from merino_runtime.house.words import among, content_words, words_of

COMMANDS = {"train": 0.71, "test": 0.76}  # share of the sentences; the others are refused
ABSENT = {"train": 0.45, "test": 0.33}  # share of the refusals that ask for what the house has not
MISTYPED = {"train": 0.12, "test": 0.04}  # share of the sentences with a typing error
TRIES = 300  # of a command for one house
# Words that may stand between two parts of one reference, as in "lights in the hall".
BETWEEN = {"in", "inside", "at", "on", "of", "the", "my", "our", "all", "and", "plus", "also", "well", "as", "to"}
ASKING = "can", "could", "would", "will", "what", "how", "is ", "why", "who", "do ", "are ", "where", "when"


def make_sample(rng: random.Random, split: str, house: House | None = None) -> Sample:
    """Of a house, by default of a new one."""
    house = house or make_house(rng, split)
    if rng.random() < COMMANDS[split]:
        return heard(command(house, split, rng), split, rng)
    # What fails more often, the commands for what it has not, is tried so long that it is as often as ABSENT says.
    first = [missing, no_command] if rng.random() < ABSENT[split] else [no_command, missing]
    made = (kind(house, split, rng) for kind in first for _ in range(TRIES))
    return heard(next(sample for sample in made if sample), split, rng)


@cache
def kinds(held_out: bool) -> dict[str, tuple[str, ...]]:
    return {kind.rstrip("!"): lines for kind, lines in blocks("refusals").items() if kind.endswith("!") == held_out}


def new_wordings() -> set[str]:
    """The kinds of samples that no training sample is of."""
    return {family.kind for family in families() if family.held_out} | {"no." + kind for kind in kinds(held_out=True)}


def no_command(house: House, split: str, rng: random.Random) -> Sample | None:
    """Chat, questions, half sentences, negated commands. Slots are what the house has, so words alone tell nothing."""
    slots, device, how = prose_slots(house, split, rng), rng.choice(house.devices), rng.random()
    if how < 0.1:
        intent = rng.choice(blocks("home_assistant")["refused"])
        listed = [one for block in home_assistant("en")["intents"][intent]["data"] for one in block["sentences"]]
        sentence = expand(
            ha_template(rng.choice(listed)), rng, {**slots, "area": device.area or "hall", "kinds": "blinds"}
        )
        return Sample(house, sentence, (), "no.ha")
    if how < 0.16:
        beginnings = blocks("half")["of a device" if device.domain != "scene" and rng.random() < 0.4 else "of none"]
        return Sample(house, expand(rng.choice(beginnings), rng, {**slots, "area": device.area}), (), "no.half")
    listed_kinds = kinds(split == "test" and rng.random() < 0.3)
    weights = [
        len(templates) ** 0.6 * (3 if kind in blocks("choices")["hard"] else 1)
        for kind, templates in listed_kinds.items()
    ]
    kind = rng.choices(list(listed_kinds), weights)[0]
    return Sample(house, expand(rng.choice(listed_kinds[kind]), rng, slots, split), (), "no." + kind)


def prose_slots(house: House, split: str, rng: random.Random) -> dict[str, Callable[[], str]]:
    def thing() -> str:
        device = rng.choice([each for each in house.devices if each.domain != "scene"] or house.devices)
        name = rng.choice(called(device.name, device.domain)) if rng.random() < 0.2 else device.name
        return f"{with_article(name, rng)} {name}"

    def things() -> str:
        domains = [each.domain for each in house.devices if each.domain not in ("scene", "media_player")]
        reference = refer(house, [rng.choice((*domains, "light"))], rng.choice("aag"), rng)
        return reference.whole.replace(MARK, "") if reference else "the lights"

    def plain_command() -> str:
        """For what must not be obeyed: "don't ..."."""
        present = {device.domain for device in house.devices}
        for _ in range(TRIES):
            tool = rng.choice([tool for tool in blocks("verbs") if present & set(TOOLS[tool].domains)])
            ref = refer(house, [one for one in TOOLS[tool].domains if one != "scene"], rng.choice("nnag"), rng)
            if ref and not ("media_player" in TOOLS[tool].domains and tool == "pause" and ref.area is not None):
                return rng.choice(blocks("verbs")[tool]).replace("{t}", ref.whole.replace(MARK, ""))
        return "turn on the light"

    return {
        "thing": thing, "things": things, "area": lambda: the_area(rng.choice(house.areas), rng),
        "name": lambda: rng.choice(house.devices).name, "in": lambda: in_area(rng.choice(house.areas), rng),
        "person": lambda: rng.choice(words("people", split)), "n": lambda: spelled(rng.randint(2, 60), rng),
        "v": lambda: spelled(rng.randint(2, 50), rng), "time": lambda: value("duration", rng)[0],
        "item": lambda: rng.choice((*words("items"), *words("timers"))), "command": plain_command,
        "room": lambda: rng.choice(house.areas),
    }  # fmt: skip


def missing(house: House, split: str, rng: random.Random) -> Sample | None:
    """A command for a name, an area, a domain or a scene that the house has not: as said in a house which has it."""
    kind = rng.choices(("name", "area", "domain", "scene"), (40, 32, 20, 8))[0]
    for _ in range(30):
        ghost = ghost_of(house, kind, split, rng)
        if ghost is None:
            continue
        larger = house._replace(devices=(*house.devices, ghost))
        sample = of_scene(larger, split, rng, ghost) if kind == "scene" else of_family(larger, split, rng, "", ghost)
        if sample is None or len(sample.calls[0].targets) > 1 or any(map(house.resolve, sample.calls[0].targets)):
            continue
        text = sample.sentence.replace(MARK, "")
        # Said by a part or by a word for its kind it could be another's.
        needed = {"name": ghost.name, "area": ghost.area, "scene": ghost.name}.get(kind, "")
        if needed in text and "qqq" not in text:
            return sample._replace(house=house, calls=(sample.calls[0]._replace(targets=()),), kind=f"missing.{kind}")
    return None


def ghost_of(house: House, kind: str, split: str, rng: random.Random) -> Device | None:
    """A device that the house has not, and that no speaker would take for one that it has; None if it is none."""
    present = {each.domain for each in house.devices}
    named = {word for each in house.devices for word in each.name.split()}
    near_words = {domain: set(listed.split(", ")) for domain, listed in pairs("choices", "near words")}
    area, domain = rng.choice(house.areas), rng.choice(list(near_words))
    others = [each for each in house.devices if each.domain == domain]
    if kind == "scene":
        name = device_name(rng, "scene", house.here, split)
        return None if named & set(name.split()) or name in house.areas else Device(name, "scene", "")
    if kind == "domain":
        if domain in present or near_words[domain] & named or domain == "climate" and "fan" in present:
            return None
        usual = {"cover": ("blinds", "curtains"), "media_player": ("tv", "speaker", "radio")}
        return Device(rng.choice(usual.get(domain, ("qqq",))), domain, rng.choice((house.here or area, area)))
    if kind == "area":
        domain = rng.choice(("light", "light", "light", "fan", "cover", "media_player", "media_player"))
        if rng.random() < 0.55:
            area = area_name(rng, split)
            places = [*house.areas, *(floor for floor, _ in house.floors), *near(house.areas)]
            if any(area in place or place in area for place in places) or area.split()[-1] in named:
                return None
        elif any(each.domain == domain and each.area == area or area in each.name for each in house.devices):
            return None
        return Device("blinds" if domain == "cover" else "qqq", domain, area)
    domain = rng.choice((domain, "light", "switch", "media_player"))
    others = [each for each in house.devices if each.domain == domain]
    ghost = Device(device_name(rng, domain, area, split), domain, area)
    told, spoken = content_words(ghost.name, "en"), set(ghost.name.split())
    kinds = words_of("en").kinds[domain]
    if others and (domain in ("climate", "vacuum") or told <= kinds) or spoken & {"light", "lights"} == spoken:
        return None
    for each in house.devices:
        own = set(each.name.split())
        shared = set(called(ghost.name, domain)) & set(called(each.name, each.domain))
        if (
            own <= spoken
            or spoken <= own
            or shared - {"lamp"}
            or domain == "lock" == each.domain
            and own & spoken - {"door", "lock"}
        ):
            return None
        if each.domain == domain and not among(frozenset(told), frozenset(own)) ^ told - kinds:
            return None
    return None if any(place in ghost.name for place in house.areas) else ghost


def heard(sample: Sample, split: str, rng: random.Random) -> Sample:
    """The sample with an address and with the faults of typing and hearing that some sentences have, and its calls with
    the words that name devices as they are then."""
    said = " ".join(sample.sentence.split())
    if rng.random() < 0.16:
        name = rng.choice(assistants(split))
        if (
            split == "train"
        ):  # any word can be an assistant's name, which a decoder must not take for a part of a device's
            name = rng.choice((name, strange(rng), rng.choice(words("people", split))))
        wake = rng.choice(blocks("wraps")["wake"]).replace("{w}", name)
        last = rng.random() < (0.3 if split == "train" else 0.1)
        said = f"{said} {name}" if last else f"{wake}{rng.choice((' ', ' ', ', '))}{said}"
    if rng.random() < 0.4:  # "lamp three"
        unit = r"(?! ?(%|percent|degrees|min|hour|sec|:|\.|am|pm|a\.m|p\.m|o'))"
        said = re.sub(
            rf"(?<=[a-z] )([{MARKS}]?)([1-8])\b{unit}", lambda found: found[1] + number_words(int(found[2])), said
        )
    spoken = [(word[0] if word[0] in MARKS else "", word.lstrip(MARKS)) for word in said.split()]
    if rng.random() < 0.09:
        spoken = [pair for pair in spoken if pair[1] not in ("the", "a", "my") or rng.random() < 0.2] or spoken
    for share, change in ((0.05, misheard), (MISTYPED[split], mistyped)):
        places = [place for place, (_, word) in enumerate(spoken) if change(word, rng)] if rng.random() < share else []
        if places:
            place = rng.choice(places)
            spoken[place] = (spoken[place][0], change(spoken[place][1], rng))
    if rng.random() < 0.012:
        place = rng.randrange(len(spoken))
        spoken.insert(place, ("", rng.choice(("um", "uh", "er", "like", "erm", spoken[place][1]))))
    bare, how = rng.random() < 0.12, rng.random()
    spoken = [
        (mark, word.replace("'" if bare else "\n", "").replace("," if 0.13 <= how < 0.8 else "\n", ""))
        for mark, word in spoken
    ]
    text = " ".join(word for _, word in spoken)
    end = "" if how >= 0.1 else "?" if text.startswith(ASKING) else rng.choice((".", ".", "!"))
    text = text[0].upper() + text[1:] + end if how < 0.13 else text
    calls = (
        call._replace(words=words_said(spoken, mark)[:MOST_WORDS])
        for call, mark in zip(sample.calls, MARKS, strict=False)
    )
    return sample._replace(sentence=text, calls=tuple(calls))


def misheard(word: str, rng: random.Random) -> str:
    return rng.choice(blocks("heard").get(word, ("",)))


def mistyped(word: str, rng: random.Random) -> str:
    if len(word) < 4 or not word.isalpha():
        return ""
    at = rng.randrange(1, len(word) - 1)
    before, letter, after = word[:at], word[at], word[at + 1 :]
    swapped, wrong = before + after[0] + letter + after[1:], before + rng.choice("aeiostrnl") + after
    return rng.choice((before + after, before + letter + letter + after, swapped, wrong))


def words_said(spoken: list[tuple[str, str]], mark: str, joining: Set[str] = BETWEEN) -> str:
    """The marked words, in lower case. Parts with only joining words between them are joined."""
    parts: list[list[str]] = []
    between: list[str] = []
    for own, word in spoken:
        if own != mark:
            between.append(word.lower())
            continue
        if parts and joining >= set(between):
            parts[-1] += [*between, word.lower()]
        else:
            parts.append([word.lower()])
        between = []
    return ", ".join(" ".join(part).rstrip(",.?!") for part in parts)


def negatives(count: int, seed: int) -> list[str]:
    """Distinct sentences that are no commands, from held-out templates and words."""
    rng = random.Random(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        house = make_house(rng, "test")
        kind = rng.choice(list(kinds(held_out=True)))
        sentence = expand(rng.choice(kinds(held_out=True)[kind]), rng, prose_slots(house, "test", rng), "test")
        made[" ".join(sentence.split())] = None
    return list(made)
