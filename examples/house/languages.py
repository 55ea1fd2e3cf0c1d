"""Sentences of a language that has a folder here, each with the calls that it asks for.

What is said is data: Home Assistant's templates, and the folder's phrases. A sentence names a device, or the devices of
a domain by a word for them: in an area or on a floor, where the speaker is, or in the whole house.

    python examples/house/languages.py LANGUAGE COUNT

checks the phrases and prints samples.
"""

import random
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

from grammar import blocks, home_assistant, pairs, spelled, value
from items import WEIGHTS, Names, brand, make_house, new_house, strange
from refer import MARK, MARKS, here_target, marked
from refusals import mistyped, words_said
from sentences import Sample

from merino_edge.jobs.templates import parsed, slots_of
from merino_edge.jobs.templates import sentence as sentence_of
from merino_runtime.errors import MerinoError
from merino_runtime.house.house import (
    COLORS,
    EVERYTHING,
    EVERYWHERE,
    MOST_WORDS,
    NO_EFFECT,
    NOWHERE,
    STATES,
    TOOLS,
    UNTIMED,
    Call,
    Device,
    House,
)
from merino_runtime.house.words import content_of, spelled_words, split_words, words_of

TRIES = 60
COMMANDS = 0.74  # share of the sentences; of the others MISSING ask for what the house has not
MISSING = 0.4
HELD_OUT = 0.3  # share of a test's sentences of a tool that are of its held-out family
SCENES = ("scene", "script", "todo")
OF_STATE = {"on": ("light", "switch", "fan", "climate", "media_player"), "open": ("cover",), "locked": ("lock",),
            "playing": ("media_player",)}  # fmt: skip
OF_STATE |= {"off": OF_STATE["on"], "closed": ("cover",), "unlocked": ("lock",), "paused": ("media_player",)}
Maker = Callable[["Speaker", House], Sample | None]


class Speaker(NamedTuple):
    """Who says the sentences: in a language, for a split, at random by `rng`."""

    language: str
    split: str
    rng: random.Random

    def lines(self, file: str, head: str) -> tuple[str, ...]:
        return blocks(file, self.language)[head]

    def any(self, head: str, file: str = "names") -> str:
        """A line, or an entry of a list with commas."""
        return self.rng.choice(entries(self.language, file, head))

    def expand(self, template: str, slots: dict[str, Any]) -> str:
        text = expand_plain(template, self.rng, slots)
        for pattern, replacement in contractions(self.language):
            text = pattern.sub(replacement, text)
        return " ".join(text.split())


def expand_plain(template: str, rng: random.Random, slots: dict[str, Any]) -> str:
    return sentence_of(template, rng, slots)[0]


@cache
def contractions(language: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Such as "de le" to "du"; § is where a mark may stand."""
    listed = pairs("wraps", "contractions", " = ", language) if "contractions" in blocks("wraps", language) else []
    return tuple((re.compile(pattern.replace("§", f"{MARK}?")), replacement) for pattern, replacement in listed)


@cache
def entries(language: str, file: str, head: str) -> tuple[str, ...]:
    lines = blocks(file, language)[head]
    listed = lines if file != "names" or head.startswith(("areas", "owned", "place", "floors")) else (
        name for line in lines for name in line.split(","))  # fmt: skip
    return tuple(name.strip() for name in listed if name.strip())


@cache
def places(language: str) -> dict[str, tuple[str, ...]]:
    """By area or floor: how one says that something is there."""
    listed = [*entries(language, "names", "areas"), *entries(language, "names", "areas held out")]
    listed += [part.strip() for line in entries(language, "names", "floors") for part in line.split(";")]
    split = (line.partition(":") for line in listed)
    return {name.strip(): tuple(place.strip() for place in said.split("|")) for name, _, said in split}


@cache
def little(language: str) -> frozenset[str]:
    """Words that never name a device."""
    return frozenset(" ".join(entries(language, "names", "unowned words")).replace(",", " ").split())


@cache
def names_of(language: str) -> Names:
    """Names of houses of a language, for items.py."""
    first = noun_first(language)

    def pool(listed: str, split: str, rng: random.Random) -> tuple[str, ...]:
        usual = split == "train" or rng.random() < 0.5
        return entries(language, "names", listed if usual else f"{listed} held out")

    def area(rng: random.Random, split: str) -> str:
        how = rng.random()
        if how < 0.12:
            return strange_word(rng, split)
        if how < 0.22:
            form = rng.choice(entries(language, "names", "owned areas")).partition(":")[0]
            return expand_plain(form, rng, {"person": rng.choice(pool("people", split, rng))})
        listed = pool("areas", split, rng)
        return rng.choice(listed[: rng.choice((16, 200))]).partition(":")[0].strip()

    def device(rng: random.Random, domain: str, area: str, split: str, realistic: bool) -> str:
        base = rng.choice(pool(domain, split, rng))
        if domain in SCENES:
            return base if rng.random() < 0.8 else f"{base} {strange_word(rng, split)}"
        how = rng.random()
        if split == "train" and rng.random() < 0.45:  # the decoder must copy names, and would memorize these lists
            head, word = base.split()[0 if first else -1], strange_word(rng, split)
            return rng.choice((word, f"{head} {word}", f"{head} {word}" if first else f"{word} {head}",
                               f"{head} {rng.randint(1, 9)}"))  # fmt: skip
        if how < (0.3 if realistic else 0.12) and area:
            return f"{base} {area}" if first or rng.random() < 0.5 else f"{area} {base}"
        if how < 0.42:
            maker = brand(rng, split)
            return rng.choice((f"{maker} {base}", f"{base} {maker}", f"{maker} {base} {rng.randint(1, 9)}"))
        if how < 0.5:
            return f"{base} {rng.randint(1, 9)}"
        if how < 0.58:
            form = rng.choice(entries(language, "names", "owned"))
            return expand_plain(form, rng, {"base": base, "person": rng.choice(pool("people", split, rng))})
        return base

    def floors(rng: random.Random) -> list[str]:
        line = rng.choice(entries(language, "names", "floors"))
        return [part.partition(":")[0].strip() for part in line.split(";")]

    usual = tuple(line.partition(":")[0].strip() for line in entries(language, "names", "areas")[:20])
    held = [name.partition(":")[0].strip() for domain in ("areas", *WEIGHTS)
            for name in entries(language, "names", f"{domain} held out")]  # fmt: skip
    taken = {word for line in blocks("names", language)["kinds"] for word in bare_kinds(line)}
    return Names(area, device, floors, usual, frozenset(held), frozenset(taken))


def noun_first(language: str) -> bool:
    """Whether the noun stands first in a name, as in "lampe de chevet"."""
    return "noun first" in blocks("names", language)


def bare_kinds(line: str) -> list[str]:
    return [" ".join(words[1:]) for part in re.split("[/,:]", line) if len(words := part.split()) > 1]


def strange_word(rng: random.Random, split: str) -> str:
    """A word without a meaning."""
    while True:
        word = strange(rng, split, share=0.0)
        if " " not in word:
            return word


@cache
def kinds_of(language: str) -> dict[str, tuple[tuple[str, ...], ...]]:
    """By domain: words with their article for one device, for several, and for all."""
    listed = {}
    for domain, words in pairs("names", "kinds", ":", language):
        parts = [tuple(word.strip() for word in part.split(",") if word.strip()) for part in f"{words}//".split("/")]
        listed[domain.strip()] = tuple(parts[:3])
    return listed


class Family(NamedTuple):
    """Of commands.txt, or one of Home Assistant's templates. `modes`: `n` a device, `a` an area, `g` where the speaker
    is, `h` the house. `fixed`: a state that is asked for."""

    kind: str
    tool: str
    modes: str
    domains: tuple[str, ...]
    templates: tuple[str, ...]
    fixed: str = ""
    held_out: bool = False


@cache
def families(language: str) -> tuple[Family, ...]:
    """Raises ValueError for a head or a template that cannot be."""
    every = []
    for head, templates in blocks("commands", language).items():
        asked, modes, *rest = head.replace("!", "").split()
        tool, _, fixed = asked.partition("=")
        tool, domains = {"run": "turn_on", "everything": EVERYTHING}.get(tool, tool), rest[0].split(",") if rest else ()
        is_value = fixed in (*STATES, *COLORS, "") or fixed.isdigit()
        if tool not in (*TOOLS, EVERYTHING) or set(modes) - set("nagh-l") or not is_value:
            raise ValueError(f"commands.txt of {language}: == {head} is not known")
        usual = OF_STATE.get(fixed) or TOOLS.get(tool, TOOLS["turn_off"]).domains
        if tool in TOOLS and (unfit := set(domains) - set(TOOLS[tool].domains)):
            raise ValueError(f"commands.txt of {language}: == {head}: {tool} is not for {min(unfit)}")
        listed = tuple(domains) or tuple(one for one in usual if one not in SCENES)
        for mode in modes:
            kept = tuple(line for line in templates if fits_mode(line, mode))
            if not kept:
                raise ValueError(f"commands.txt of {language}: no line of == {head} is of mode {mode}")
            held = "!" in head
            every.append(Family(f"{asked}.{mode}{'.new' * held}", tool, mode, listed, kept, fixed, held))
    return tuple(every)


def fits_mode(template: str, mode: str) -> bool:
    used = slots_of(parsed(template))
    return ("t" in used) == (mode == "n") and ("in" in used) == (mode == "a")


@cache
def templates(language: str) -> tuple[Family, ...]:
    """Home Assistant's templates that are commands."""
    modes = {name: mode for mode, listed in pairs("home_assistant", "modes", " = ") for name in listed.split()}
    content, every = home_assistant(language), []
    for use, tool in pairs("home_assistant", "uses", " = "):
        intent, domain, word = use.split()
        for block in content["intents"].get(intent, {"data": ()})["data"]:
            combination = block["metadata"]["slot_combination"]
            wanted = block.get("slots", {}).get("domain") or block.get("requires_context", {}).get("domain") or domain
            named = {wanted} if isinstance(wanted, str) else set(wanted)
            fit = tuple(sorted(named & set(TOOLS[tool].domains) & ({domain} if domain != "*" else named)))
            if not fit or combination not in modes:
                continue
            lines = [line for line in map(partial(ruled, language), block["sentences"]) if line and known_slots(
                line, language) and (word == "*" or word in combination or f"{{{word}" in line)]  # fmt: skip
            if lines:
                every.append(Family(f"ha.{tool}", tool, modes[combination], fit, tuple(lines)))
    return tuple(every)


@cache
def ruled(language: str, template: str) -> str:
    """A template with its rules; "" for one of a rule that does not end."""
    rules = home_assistant(language)["expansion_rules"]
    for _ in range(12):
        if "<" not in template:
            return template if template.strip("[]") != "{name}" else ""
        template = re.sub("<([^<>]*)>", lambda found: f"({rules[found[1]]})", template)
        if len(template) > 20_000:
            return ""
    return ""


def known_slots(template: str, language: str) -> bool:
    lists = home_assistant(language)["lists"]
    for slot in slots_of(parsed(template)):
        name = slot.partition(":")[0]
        if name in ("color_temperature", "floor") or name not in ("name", "area", "color", "cover_classes") and (
            "range" not in lists.get(name, {})
        ):  # fmt: skip
            return False
    return True


class Spoken(NamedTuple):
    """Targets, and the slots of a template that say them."""

    targets: tuple[str, ...]
    slots: dict[str, Any]


def to_device(speaker: Speaker, house: House, device: Device) -> Spoken | None:
    """By its name or a part of it, with the area or without; None if that could be another's."""
    rng, language = speaker.rng, speaker.language
    said, words = device.name, device.name.split()
    if len(words) > 1 and rng.random() < 0.3:
        left_out = rng.randrange(int(noun_first(language)), len(words))
        said = " ".join(word for place, word in enumerate(words) if place != left_out)
    own, placed = set(said.split()), device.area and device.area not in device.name and rng.random() < 0.25
    kinds = {word for part in kinds_of(language).get(device.domain, ()) for each in part for word in each.split()}
    if all(len(word) < 3 or word in little(language) for word in own) or said in house.areas or own <= kinds:
        return None
    others = [each for each in house.devices if own <= set(f"{each.name} {each.area}".split()) and each != device]
    same = [each for each in others if said == device.name != each.name]  # who is called exactly so goes before
    if left := [each for each in others if each not in same]:
        near = device.area if placed else house.here
        if device.area != near or any(each.area == near for each in left):
            return None
    article = weighted_text(speaker.lines("names", "articles"), rng)
    place = f" {marked(place_of(speaker, device.area, True))}" if placed else ""
    return Spoken((house.label(device),), {"t": f"{article} {marked(said)}{place}", "name": marked(said),
                                           "area": marked(device.area)})  # fmt: skip


def weighted_text(lines: Sequence[str], rng: random.Random) -> str:
    split = [line.partition(" ") for line in lines]
    return rng.choices([text for _, _, text in split], [float(weight) for weight, _, _ in split])[0].strip()


def place_of(speaker: Speaker, area: str, behind_noun: bool = False) -> str:
    """How one says that something is in an area; behind a noun also as "of" it."""
    if said := places(speaker.language).get(area):
        return speaker.rng.choice(said) if behind_noun else said[0]
    for form in entries(speaker.language, "names", "owned areas"):
        named, _, placed = form.partition(":")
        pattern = re.escape(named.strip()).replace(re.escape("{person}"), "(.+)")
        if found := re.fullmatch(pattern, area):
            return placed.split("|")[0].strip().replace("{person}", found[1])
    return speaker.any("place of any area").replace("{area}", area)


def to_group(speaker: Speaker, house: House, mode: str, domain: str, area: str) -> Spoken | None:
    """All devices of a domain in an area or on a floor (`a`), where the speaker is (`g`), or in the house (`h`)."""
    rng = speaker.rng
    local = any((each.domain, each.area) == (domain, house.here) for each in house.devices)
    if mode == "a" and house.floors and rng.random() < 0.25:
        area = rng.choice(house.floors)[0]
    target = {"a": f"{area}/{domain}", "g": here_target(house, domain), "h": f"{EVERYWHERE}/{domain}"}[mode]
    group = house.resolve(target)
    elsewhere = mode == "g" and not local and house.here != NOWHERE
    if not group or mode == "a" and not area or elsewhere and rng.random() < 0.7:
        return None
    one, several, every = kinds_of(speaker.language)[domain]
    words = one if len(group) == 1 else (*one, *several, *several) if domain in ("light", "climate") else (
        several if len(group) > 1 and domain != "media_player" else one)  # fmt: skip
    word, most = rng.choice(words or one), rng.choice(every or several or one)
    names = {each.name for each in house.devices}
    if any(" ".join(said.split()[1:]) in names or said in names for said in (word, most)):
        return None
    return Spoken((target,), {"k": kind_marked(speaker, word), "all": kind_marked(speaker, most), "place": area,
                              "area": marked(area), "local": local})  # fmt: skip


def kind_marked(speaker: Speaker, text: str) -> str:
    """Without the marks on the words before the noun."""
    words = text.split()
    bare = next((place for place, word in enumerate(words) if word not in little(speaker.language)), 0)
    return " ".join([*words[:bare], marked(" ".join(words[bare:]))])


def of_family(speaker: Speaker, house: House, chosen: Device | None = None) -> Sample | None:
    """A command by the folder's phrases; for a chosen device or any."""
    rng, domains = speaker.rng, {each.domain for each in house.devices} if chosen is None else {chosen.domain}
    fit = [family for family in families(speaker.language)
           if family.modes in "nagh" and family.tool in TOOLS and domains & set(family.domains)]  # fmt: skip
    tools = dict.fromkeys(family.tool for family in fit)
    weights = {tool: float(weight) for weight, tool in (line.split() for line in blocks("choices")["tools"])}
    tool = rng.choices(list(tools), [weights.get(tool, 2) for tool in tools])[0] if tools else ""
    return commanded(speaker, house, picked(speaker, [family for family in fit if family.tool == tool]), chosen)


def picked(speaker: Speaker, listed: Sequence[Family]) -> Family | None:
    """Any of these: of a held-out one only a test has sentences."""
    held = [family for family in listed if family.held_out]
    usual = [family for family in listed if not family.held_out]
    if speaker.split == "test" and held and speaker.rng.random() < HELD_OUT:
        return speaker.rng.choice(held)
    return speaker.rng.choices(usual, [len(family.templates) ** 0.7 for family in usual])[0] if usual else None


def of_template(speaker: Speaker, house: House, chosen: Device | None = None) -> Sample | None:
    """A command by one of Home Assistant's templates."""
    domains = {each.domain for each in house.devices} if chosen is None else {chosen.domain}
    fit = [family for family in templates(speaker.language) if domains & set(family.domains)]
    by_tool: dict[str, list[Family]] = {}
    for family in fit:
        by_tool.setdefault(family.tool, []).append(family)
    return commanded(speaker, house, picked(speaker, speaker.rng.choice(list(by_tool.values())) if fit else ()), chosen)


def commanded(speaker: Speaker, house: House, family: Family | None, chosen: Device | None) -> Sample | None:
    """A sentence of a family with its call."""
    rng = speaker.rng
    allowed = [each for each in house.devices if family and each.domain in family.domains and chosen in (None, each)]
    if family is None or not allowed:
        return None
    device, mode = rng.choice(allowed), family.modes
    spoken = to_device(speaker, house, device) if mode == "n" else to_group(
        speaker, house, mode, device.domain, device.area)  # fmt: skip
    if spoken is None or device.domain in SCENES and mode != "n":
        return None
    template = rng.choice(family.templates)
    used = slots_of(parsed(template))
    if "area" in used and (not device.area or mode == "n" and device.area in device.name):
        return None
    slots, values = {**spoken.slots}, {}
    if "in" in used:
        slots["in"] = marked(place_of(speaker, slots["place"], bool(used & {"k", "all"})))
    if family.fixed:
        values[next(iter(TOOLS[family.tool].values))] = int(family.fixed) if family.fixed.isdigit() else family.fixed
    elif TOOLS[family.tool].required:
        name = next(iter(TOOLS[family.tool].values))
        head = family.tool if family.tool == "set_brightness" else name
        slots["v"], values[name] = value(head, rng, speaker.language)
        if family.kind.startswith("ha."):
            slots["v"] = spelled(int(values[name]), rng, speaker.language) if name != "color" else ""
            if name == "color":
                slots["color"], values[name] = a_color(speaker)
    for slot in used:  # numbers, and words for covers
        name = slot.partition(":")[0]
        if name == "cover_classes" and not spoken.slots.get("k"):
            return None
        slots[slot] = slots.get(name) or (spoken.slots.get("k", "").split(" ")[-1] if name == "cover_classes" else
                                          slots.get("v") or spelled(rng.choice((5, 10, 20)), rng))  # fmt: skip
    sentence = speaker.expand(template, slots)
    if mode == "g" and not spoken.slots["local"] and is_here(speaker.language, sentence):
        return None
    if mode != "n" and family.kind.startswith("ha."):
        sentence = marked_kind(speaker, sentence, device.domain)
    imperative = family.tool not in NO_EFFECT
    sample = Sample(house, sentence, (Call(family.tool, spoken.targets, tuple(values.items())),), family.kind)
    return wrapped(speaker, sample) if imperative else sample


@cache
def here_words(language: str) -> frozenset[str]:
    return frozenset(" ".join(blocks("wraps", language)["here"]).replace(",", " ").split())


def is_here(language: str, sentence: str) -> bool:
    return bool(here_words(language) & set(sentence.replace(MARK, "").split()))


def a_color(speaker: Speaker) -> tuple[str, str]:
    listed = [(each["in"], each["out"]) for each in home_assistant(speaker.language)["lists"]["color"]["values"]]
    said, color = speaker.rng.choice([(said, color) for said, color in listed if color in COLORS])
    return speaker.expand(said, {}), color


def marked_kind(speaker: Speaker, sentence: str, domain: str) -> str:
    """The sentence with a mark on its first word for the domain, if it has one and none is marked."""
    kinds = words_of(speaker.language).kinds.get(domain, frozenset())
    words = sentence.split()
    for place, word in enumerate(words):
        if MARK not in word and set(split_words(word, speaker.language)) & kinds:
            words[place] = MARK + word
            break
    return " ".join(words)


def wrapped(speaker: Speaker, sample: Sample) -> Sample:
    """The command with when, why and how politely."""
    rng, (call,), sentence = speaker.rng, sample.calls, sample.sentence
    if call.tool not in ("next", "previous", "louder", "quieter", *UNTIMED) and rng.random() < 0.1:
        when, times = value("when", rng, speaker.language)
        sentence = f"{sentence} {when}" if rng.random() < 0.7 else f"{when} {sentence}"
        call = call._replace(values=(*call.values, *times.items()))
    if rng.random() < 0.35:
        held = speaker.split == "test" and rng.random() < 0.1
        sentence = speaker.any("polite held out" if held else "polite", "wraps").replace("{c}", sentence)
    if rng.random() < 0.08:
        reason = speaker.any("reasons", "wraps")
        sentence = f"{reason} {sentence}" if rng.random() < 0.55 else f"{sentence} {reason}"
    return sample._replace(sentence=sentence, calls=(call,))


def of_everything(speaker: Speaker, house: House) -> Sample | None:
    rng, area = speaker.rng, speaker.rng.choice((*house.areas, *(floor for floor, _ in house.floors)))
    family = picked(speaker, [family for family in families(speaker.language) if family.tool == EVERYTHING])
    if family is None:
        return None
    target = f"{ {'a': area, 'g': house.here, 'h': EVERYWHERE}[family.modes] }/{EVERYTHING}"
    if target not in house.targets(TOOLS["turn_off"].domains):
        return None
    slots = {"in": marked(place_of(speaker, area))}
    sentence = speaker.expand(rng.choice(family.templates), slots)
    call = Call("turn_on" if family.fixed else "turn_off", (target,))
    return wrapped(speaker, Sample(house, sentence, (call,), "everything"))


def of_wish(speaker: Speaker, house: House) -> Sample | None:
    """A mood asks for its scene, and what an appliance does for the appliance. Without it a mood is no command."""
    rng = speaker.rng
    domain, _, keys = rng.choice(list(blocks("wishes", speaker.language))).partition(" ")
    named = {word.strip() for word in keys.split(",")}
    fit = [each for each in house.devices if each.domain == domain and named & set(each.name.split())]
    near = [each for each in house.devices if named & set(each.name.split())]
    if len(fit) > 1 or near and not fit or not fit and rng.random() < 0.97:
        return None
    sentence = speaker.expand(rng.choice(blocks("wishes", speaker.language)[f"{domain} {keys}"]), {})
    words = [MARK + word if word.strip(",.") in named and domain == "switch" else word for word in sentence.split()]
    calls = (Call("turn_on", tuple(map(house.label, fit))),)
    if domain == "scene":
        return Sample(house, sentence, calls if fit else (), "scene.mood" if fit else "no.mood")
    return Sample(house, " ".join(words), calls, "on.use" if fit else "missing.use")


def of_timer(speaker: Speaker, house: House) -> Sample | None:
    rng = speaker.rng
    family = picked(speaker, [family for family in families(speaker.language) if family.modes == "-"])
    if family is None:
        return None
    text, values = value("length", rng, speaker.language)
    name = speaker.any("timers") if rng.random() < 0.6 else strange_word(rng, speaker.split)
    if family.tool != "start_timer" and rng.random() < 0.3:
        name = value("length", rng, speaker.language)[0]
    sentence = speaker.expand(rng.choice(family.templates), {"v": text, "name": marked(name)})
    given = tuple(values.items()) if TOOLS[family.tool].required else ()
    return Sample(house, sentence, (Call(family.tool, (), given),), f"timer.{family.tool}")


def of_list(speaker: Speaker, house: House) -> Sample | None:
    rng = speaker.rng
    lists = [device for device in house.devices if device.domain == "todo"]
    family = picked(speaker, [family for family in families(speaker.language) if family.modes == "l"])
    if family is None or not lists and rng.random() < 0.6:
        return None
    chosen = rng.choice(lists) if lists else None
    item = speaker.any("items") if rng.random() < 0.6 else strange_word(rng, speaker.split)
    name, template = chosen.name if chosen else speaker.any("todo"), rng.choice(family.templates)
    if "list" not in slots_of(parsed(template)) and len(lists) > 1:
        return None
    sentence = speaker.expand(template, {"item": marked(item), "list": name})
    return Sample(house, sentence, (Call("add_item", (house.label(chosen),) if chosen else ()),), "list.add")


def of_several(speaker: Speaker, house: House) -> Sample | None:
    """Two commands in a sentence."""
    rng, samples = speaker.rng, list[Sample]()
    makers: Sequence[Maker] = (of_family, of_template, of_timer, of_list)
    for _ in range(12):
        sample = rng.choices(makers, (8, 4, 0.6, 0.6))[0](speaker, house)
        if sample is None or len(sample.sentence) > 70 or sample.calls[0].tool in NO_EFFECT:
            continue
        if any(sample.calls[0].targets == other.calls[0].targets for other in samples):
            continue
        samples.append(sample._replace(sentence=sample.sentence.replace(MARK, MARKS[len(samples)])))
        if len(samples) == 2:
            joint = speaker.any("joints", "wraps").replace("_", " ")
            calls = tuple(sample.calls[0] for sample in samples)
            return Sample(house, samples[0].sentence + joint + samples[1].sentence, calls, "several")
    return None


MAKERS: dict[Maker, float] = {
    of_family: 0.42, of_template: 0.24, of_several: 0.1, of_timer: 0.08, of_wish: 0.07, of_list: 0.05,
    of_everything: 0.04,
}  # fmt: skip


def missing(speaker: Speaker, house: House) -> Sample | None:
    """A command for a device, an area or a domain that the house has not."""
    rng, language = speaker.rng, speaker.language
    kind = rng.choices(("name", "area", "domain"), (55, 30, 15))[0]
    present, area = {each.domain for each in house.devices}, rng.choice(house.areas)
    named = {word for each in house.devices for word in f"{each.name} {each.area}".split()}
    domain = rng.choice(("light", "light", "switch", "fan", "cover", "lock", "climate", "media_player", "vacuum"))
    if kind == "domain":
        if domain in present or named & words_of(language).kinds[domain] or domain == "switch":
            return None
        ghost = Device("qqq", domain, house.here or area)
    elif kind == "area":
        area = names_of(language).area(rng, speaker.split)
        if set(area.split()) - little(language) & named or any(area in place or place in area for place in house.areas):
            return None
        ghost = Device("qqq", domain, area)
    else:
        ghost = Device(names_of(language).device(rng, domain, area, speaker.split, False), domain, area)
        told, close = set(ghost.name.split()), words_of(language).rows
        related = told.union(*(close.get(word, ()) for word in told))
        if related - little(language) & named or any(place in ghost.name for place in house.areas) or not (
            told - {word for part in kinds_of(language)[domain] for each in part for word in each.split()}
        ):  # fmt: skip
            return None
    if named & set(ghost.name.split()):
        return None
    larger = house._replace(devices=(*house.devices, ghost))
    maker = rng.choice((of_family, of_template))
    sample = maker(speaker, larger, ghost)
    if sample is None or any(map(house.resolve, sample.calls[0].targets)) or "qqq" in sample.sentence:
        return None
    needed = {"name": ghost.name, "area": ghost.area}.get(kind, "")
    if needed not in sample.sentence.replace(MARK, ""):
        return None
    return sample._replace(house=house, calls=(sample.calls[0]._replace(targets=()),), kind=f"missing.{kind}")


def no_command(speaker: Speaker, house: House) -> Sample | None:
    """A sentence that asks for nothing, or for what no tool does."""
    rng, language = speaker.rng, speaker.language
    device = rng.choice(house.devices)
    one, several, _ = kinds_of(language).get(device.domain, kinds_of(language)["light"])
    article = weighted_text(speaker.lines("names", "articles"), rng)
    slots: dict[str, Any] = {
        "t": f"{article} {device.name}", "in": lambda: place_of(speaker, rng.choice(house.areas)),
        "k": rng.choice((*one, *several)), "person": lambda: speaker.any("people"), "area": rng.choice(house.areas),
        "name": device.name, "all": rng.choice(several or one),
    }  # fmt: skip
    if rng.random() < 0.12:
        listed = refused_templates(language)
        template = rng.choice(listed)
        slots |= {slot: spelled(rng.randint(2, 50), rng, language) if "range" in home_assistant(language)["lists"].get(
            slot.partition(":")[0], {}) else slots.get(slot.partition(":")[0], speaker.any("items"))
            for slot in slots_of(parsed(template))}  # fmt: skip
        return Sample(house, speaker.expand(template, slots), (), "no.ha")
    held = speaker.split == "test" and rng.random() < 0.3
    kinds = [kind for kind in blocks("refusals", language) if kind.endswith("!") == held]
    kind = rng.choices(kinds, [len(blocks("refusals", language)[kind]) ** 0.6 for kind in kinds])[0]
    sentence = speaker.expand(rng.choice(blocks("refusals", language)[kind]), slots)
    return Sample(house, sentence, (), "no." + kind.rstrip("!"))


@cache
def refused_templates(language: str) -> tuple[str, ...]:
    intents = [home_assistant(language)["intents"].get(name) for name in blocks("home_assistant")["refused"]]
    listed = [ruled(language, line) for intent in intents if intent for block in intent["data"]
              for line in block["sentences"]]  # fmt: skip
    return tuple(line for line in listed if line and "{name}" not in line)


def make_sample(house: House, speaker: Speaker) -> Sample:
    rng = speaker.rng
    while True:
        maker: Maker = rng.choices(list(MAKERS), list(MAKERS.values()))[0]
        if rng.random() >= COMMANDS:
            maker = missing if rng.random() < MISSING else no_command
        made = (maker(speaker, house) for _ in range(TRIES))
        if sample := next((sample for sample in made if sample and sample.sentence.strip()), None):
            return heard(speaker, sample)


def heard(speaker: Speaker, sample: Sample) -> Sample:
    """The sentence with an address and with faults of typing and hearing, and its calls with the words as they are
    then."""
    rng, said = speaker.rng, " ".join(sample.sentence.split())
    if rng.random() < 0.14:
        held = speaker.split == "test"
        name = speaker.any("assistants held out" if held else "assistants", "wraps").split(",")
        called = rng.choice(name).strip() if held or rng.random() < 0.6 else strange_word(rng, "train")
        said = f"{speaker.any('wake', 'wraps').replace('{w}', called)} {said}"
    found = [(next((letter for letter in word if letter in MARKS), ""), word) for word in said.split()]
    spoken = [(mark, word.replace(mark, "") if mark else word) for mark, word in found]  # "l'" may stand before a mark
    if rng.random() < 0.08:
        articles = " ".join(speaker.lines("names", "articles")).split()
        spoken = [pair for pair in spoken if pair[0] or pair[1] not in articles] or spoken
    if rng.random() < (0.1 if speaker.split == "train" else 0.04):
        place = rng.randrange(len(spoken))
        if typed := mistyped(spoken[place][1], rng):
            spoken[place] = (spoken[place][0], typed)
    if rng.random() < 0.07:
        spoken = [(mark, plain(word)) for mark, word in spoken]
    if rng.random() < 0.012:
        spoken.insert(rng.randrange(len(spoken)), ("", speaker.any("fillers", "wraps").split(",")[0].strip()))
    text, between = " ".join(word for _, word in spoken), between_words(speaker.language)
    text = text[0].upper() + text[1:] + rng.choice((".", ".", "!", "")) if rng.random() < 0.12 else text
    calls = tuple(call._replace(words=words_said(spoken, mark, between)[:MOST_WORDS])
                  for call, mark in zip(sample.calls, MARKS, strict=False))  # fmt: skip
    return sample._replace(sentence=text, calls=calls)


def plain(word: str) -> str:
    """Without its accents, as many type."""
    return "".join(letter for letter in unicodedata.normalize("NFD", word) if not unicodedata.combining(letter))


@cache
def between_words(language: str) -> frozenset[str]:
    return frozenset(content_of(language)["between"].split())


def new_wordings(language: str) -> set[str]:
    """The kinds of samples that no training sample is of."""
    told = {f"no.{kind.rstrip('!')}" for kind in blocks("refusals", language) if kind.endswith("!")}
    return told | {family.kind for family in families(language) if family.held_out}


def a_house(language: str, rng: random.Random, split: str, size: int = 0) -> House:
    """A house that the model reads, or of so many devices."""
    if size:
        return new_house(rng, split, size, names_of(language))._replace(language=language)
    kinds = [word for parts in kinds_of(language).values() for word in parts[0]]
    return make_house(rng, split, names_of(language), language, kinds)


def check(language: str) -> None:
    """Expand every template once. Raises ValueError or MerinoError that names a faulty one."""
    names_of(language)
    for family in (*families(language), *templates(language)):
        for template in family.templates:
            used = slots_of(parsed(template))
            odd = used - {"t", "in", "k", "all", "v", "name", "list", "item"}
            if odd and not family.kind.startswith("ha."):
                raise ValueError(f"{language}: {template!r} of {family.kind} has {odd}")
    for file in ("refusals", "wishes"):
        for head, lines in blocks(file, language).items():
            for template in lines:
                try:
                    odd = slots_of(parsed(template)) - {"t", "in", "k", "person", "area"}
                except MerinoError as error:
                    raise ValueError(f"{file} of {language}, {head}: {error}") from error
                if odd:
                    raise ValueError(f"{file} of {language}, {head}: {template!r} has {odd}")
    for head in ("percent", "set_brightness", "degrees", "color", "duration", "length", "when"):
        for _ in range(300):
            value(head, random.Random(head), language)
    for domain, shown in kinds_of(language).items():
        if domain not in WEIGHTS or not all(shown[:2]):
            raise ValueError(f"kinds of {language}: {domain} {shown}")
    unknown = [word for listed in words_of(language).kinds.values() for word in listed if not spelled_words(word)]
    if unknown:
        raise ValueError(f"kinds of {language}: {unknown}")


def printed(language: str, count: int) -> Iterator[str]:
    from merino_runtime.house.house import write_calls

    rng = random.Random(count)
    while count > 0:
        house = a_house(language, rng, "train")
        listed = (f"{each.name} ({each.domain}, {each.area})" for each in house.devices)
        yield f"# here: {house.here}; {', '.join(listed)}"
        for _ in range(10):
            sample = make_sample(house, Speaker(language, "train", rng))
            yield f"{sample.kind:22} {sample.sentence}  ->  {write_calls(sample.calls)}"
        count -= 10


if __name__ == "__main__":
    check(sys.argv[1])
    print(*printed(sys.argv[1], int(sys.argv[2])), sep="\n")
