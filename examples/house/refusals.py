"""Sentences that are to be refused: those that are no command to the house, and commands for what it has not."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from command_families import REFUSAL, WEIGHTS, Sample, by_tool, families, of_family, pick, said, scene_said, target_of
from grammar import blocks, expand, rules
from houses import area_name, device_name, make_house, near, words
from refer import GENERIC, Reference, article, called, in_area, opaque, refer, the_area
from spoken import duration, spelled
from templates import ha_question

from merino_runtime.house.house import TOOLS, Call, Device, House
from merino_runtime.house.words import KINDS, content_words

# Kinds of negatives that share most of their words with commands.
HARD = (
    "negated", "hypothetical", "past", "state", "about", "tricky", "judged", "modals", "modals asked", "reported",
    "quoted", "past doings", "habits", "done already", "later", "thinking aloud", "fine as it is", "states asked",
    "how asked", "why asked", "rules asked", "not wanted",
)
ABSENT = {"train": 0.45, "test": 0.33}  # share of the refusals that ask for what the house has not
TRIES = 300  # of a command for one house
# What is asked for and is not there, by domain.
ASKED = (
    "light", "light", "light", "switch", "switch", "fan", "cover", "lock", "climate", "media_player", "media_player",
    "vacuum",
)


def refusal(house: House, split: str, rng: random.Random) -> Sample:
    """What is asked for is chosen once, and tried until it can be said of this house: else what fails more often, the
    commands for what it has not, would be rarer than ABSENT says."""
    kinds = [missing, no_command] if rng.random() < ABSENT[split] else [no_command, missing]
    made = (kind(house, split, rng) for kind in kinds for _ in range(TRIES))
    return next(sample for sample in made if sample)


@cache
def kinds(held_out: bool) -> dict[str, tuple[str, ...]]:
    return {kind.rstrip("!"): lines for kind, lines in blocks("negatives").items() if kind.endswith("!") == held_out}


def new_wordings() -> set[str]:
    """The kinds of samples that no training sample is of."""
    return {family.kind for family in families() if family.held_out} | {"no." + kind for kind in kinds(held_out=True)}


def no_command(house: House, split: str, rng: random.Random) -> Sample | None:
    """Chat, questions, half sentences, negated commands. Slots are what the house has, so words alone tell nothing."""
    if rng.random() < 0.1:
        named = {"name": rng.choice(house.devices).name, "area": rng.choice(house.areas)}
        sentence = ha_question({**named, **prose_slots(house, split, rng)}, rng)
        return Sample(house, sentence, REFUSAL, "no.ha") if sentence else None
    if rng.random() < 0.06:
        return half(house, rng)
    held = split == "test" and rng.random() < 0.3
    listed = kinds(held)
    weights = [len(templates) ** 0.6 * (3 if kind in HARD else 1) for kind, templates in listed.items()]
    kind = rng.choices(list(listed), weights)[0]
    sentence = expand(rng.choice(listed[kind]), rng, rules(split), prose_slots(house, split, rng))
    return Sample(house, sentence, REFUSAL, "no." + kind)


def prose_slots(house: House, split: str, rng: random.Random) -> dict[str, str | Callable[[], str]]:
    def thing() -> str:
        device = rng.choice([each for each in house.devices if each.domain != "scene"] or house.devices)
        name = rng.choice(called(device.name, device.domain)) if rng.random() < 0.2 else device.name
        return f"{article(name, rng)} {name}"

    def lights() -> str:
        domains = [each.domain for each in house.devices if each.domain not in ("scene", "media_player")] or ["light"]
        reference = refer(house, [rng.choice((*domains, "light"))], rng.choice("aag"), rng)
        return reference.whole if reference else "the lights"

    return {
        "thing": thing, "things": lights, "area": lambda: the_area(rng.choice(house.areas), rng),
        "in": lambda: in_area(rng.choice(house.areas), rng), "person": lambda: rng.choice(words("people", split)),
        "n": lambda: spelled(rng.randint(2, 60), rng), "time": lambda: duration(rng)[0],
        "command": lambda: plain_command(house, rng), "room": lambda: rng.choice(house.areas),
    }  # fmt: skip


def plain_command(house: House, rng: random.Random) -> str:
    """An imperative for what must not be obeyed: 'don't ...'. The house could obey it, unless no command names one of
    its devices unmistakably."""
    for _ in range(TRIES):
        domains = {device.domain for device in house.devices}
        tool = rng.choice([tool for tool in blocks("verbs") if domains & set(TOOLS[tool].domains)])
        family = by_tool()[tool][0]
        ref = refer(house, family.domains, rng.choice("nnag"), rng)
        if ref is None or "media_player" in family.domains and ref.area is not None:
            continue
        return rng.choice(blocks("verbs")[tool]).replace("{t}", ref.whole)
    return "turn on the light"


def half(house: House, rng: random.Random) -> Sample | None:
    """A sentence that breaks off before it says what is to be done, or to what."""
    device = rng.choice(house.devices)
    slots = {"name": device.name, "area": device.area}
    beginnings = blocks("half")["of a device" if device.domain != "scene" and rng.random() < 0.4 else "of none"]
    sentence = expand(rng.choice(beginnings), rng, {}, slots)
    return Sample(house, sentence, REFUSAL, "no.half")


def missing(house: House, split: str, rng: random.Random) -> Sample | None:
    """A command for a name, an area, a domain or a scene that the house has not: as said in a house which has it."""
    kind = rng.choices((missing_name, missing_area, missing_domain, missing_scene), (40, 32, 20, 8))[0]
    made = (kind(house, split, rng) for _ in range(30))
    return next((sample for sample in made if sample), None)


def ask(house: House, ghost: Device, mode: str, split: str, rng: random.Random, kind: str) -> Sample | None:
    larger = House((*house.devices, ghost), house.here, house.floors)
    ref = refer(larger, [ghost.domain], mode, rng)
    if ref is None or all(house.resolve(target) for target in ref.targets) or len(ref.targets) > 1:
        return None
    fit = [tool for tool in WEIGHTS if ghost.domain in TOOLS[tool].domains]
    tool = rng.choice(fit)
    listed = [family for family in by_tool()[tool] if mode in family.modes and ghost.domain in family.domains]
    if not listed:
        return None
    sample = said(pick(listed, split, rng), ref, larger, split, rng)
    return missed(sample, house, kind) if sample else None


def missed(sample: Sample, house: House, kind: str) -> Sample:
    """The same sentence in a house without such a device: a call without a target."""
    return replace(sample, house=house, action=sample.action._replace(targets=()), kind=kind)


def alike(house: House, ghost: Device) -> bool:
    """Whether a speaker who names the ghost could mean a device of the house."""
    spoken = set(ghost.name.split())
    for each in house.devices:
        names = called(each.name, each.domain)
        own = set(each.name.split())
        if ghost.name in names or own <= spoken or spoken <= own:
            return True
        shared = set(called(ghost.name, ghost.domain)[1:]) & set(names)
        if shared and shared != {"lamp"}:
            return True
        if each.domain == ghost.domain and not (own ^ spoken) - SAME_THING:
            return True
    return any(area in ghost.name for area in house.areas)


# Words that do not tell two lights of a house apart for all speakers.
SAME_THING = {
    "ceiling", "overhead", "main", "big", "light", "lights", "lamp", "wall", "hanging", "pendant", "bed", "bedside",
    "night", "reading", "table", "desk",
}


def missing_name(house: House, split: str, rng: random.Random) -> Sample | None:
    area, domain = rng.choice(house.areas), rng.choice(ASKED)
    ghost = Device(device_name(rng, domain, area, split), domain, area)
    if alike(house, ghost) or ghost.name in ("light", "lights", "fan", "lock"):
        return None
    if opaque(ghost.name) and rng.random() < 0.5:
        return None
    others = [each for each in house.devices if each.domain == domain]
    if domain in ("climate", "vacuum") and others or domain == "lock" and not told_apart(ghost, others):
        return None
    singles, plurals = GENERIC[domain]
    any_of_them = content_words(ghost.name) <= KINDS[domain]
    if others and (any_of_them or ghost.name in (*singles, *plurals, "lamp", "plug", "socket", "outlet")):
        return None
    sample = ask(house, ghost, "n", split, rng, "missing.name")
    # Said by a part or by a word for its kind it could be another's.
    return sample if sample and ghost.name in sample.sentence else None


def told_apart(ghost: Device, others: Sequence[Device]) -> bool:
    """Whether a lock is none of the others by a word before the last: "front door", not "side door"."""
    first = set(ghost.name.split()[:-1])
    return not others or bool(first) and not any(first & set(each.name.split()) for each in others)


def missing_scene(house: House, split: str, rng: random.Random) -> Sample | None:
    """A scene that the house has not, by a name of which no device has a word."""
    name = device_name(rng, "scene", house.here, split)
    if {word for each in house.devices for word in each.name.split()} & set(name.split()) or name in house.areas:
        return None
    sentence, times, _ = scene_said(name, split, rng)
    return Sample(house, sentence, Call("turn_on", (), tuple(times.items())), "missing.scene", (name,))


def missing_area(house: House, split: str, rng: random.Random) -> Sample | None:
    """A command for an area that the house has not, or for one that has no such device."""
    domain = rng.choice([domain for domain in ASKED if domain in ("light", "fan", "cover", "media_player")])
    area = area_it_has_not(house, split, rng) if rng.random() < 0.55 else area_without(house, domain, rng)
    if area is None:
        return None
    if domain == "cover":
        return missing_covers(house, area, split, rng)
    ghost = Device("qqq", domain, area)
    if domain == "media_player":
        lonely = House((*[each for each in house.devices if each.domain != domain], ghost), house.here)
        tool = rng.choice(("louder", "quieter", "pause", "play", "next", "set_volume"))
        sample = of_family(lonely, split, rng, tool)
        if sample is None or sample.action.targets[0] != f"{area}/{domain}":
            return None
        return missed(sample, house, "missing.area")
    sample = ask(house, ghost, "a", split, rng, "missing.area")
    return sample if sample and area in sample.sentence else None


def area_it_has_not(house: House, split: str, rng: random.Random) -> str | None:
    area, named = area_name(rng, split), names_of(house)
    last = area.split()[-1]
    places = [*house.areas, *(floor for floor, _ in house.floors)]
    known = any(area in other or other in area for other in places) or area in near(house.areas)
    if known or last in named.split() or area in named:
        return None
    same_kind = last in ("room", "bedroom", "bathroom") and any(last in other for other in house.areas)
    if same_kind and "'s" not in area and rng.random() < 0.5:
        return None
    return area


def area_without(house: House, domain: str, rng: random.Random) -> str | None:
    """An area of the house that has no device of this domain."""
    area = rng.choice(house.areas)
    has = any(each.domain == domain and (each.area == area or area in each.name) for each in house.devices)
    return None if has or area in names_of(house) else area


def names_of(house: House) -> str:
    return " ".join(each.name for each in house.devices)


def missing_covers(house: House, area: str, split: str, rng: random.Random) -> Sample | None:
    ghost = Device("blinds" if rng.random() < 0.6 else "curtains", "cover", area)
    if any("gate" not in each.name and each.domain == "cover" and each.area == area for each in house.devices):
        return None
    larger = House((*house.devices, ghost), area)
    place = in_area(area, rng)
    if rng.random() < 0.5:
        ref = Reference((f"{area}/cover",), "the", ghost.name, place, True, area)
    else:
        ref = Reference((f"{area}/cover",), "" if "'s " in area else "the", f"{area} {ghost.name}", "", True, area)
    tool = rng.choice(("open", "close", "set_position"))
    listed = [each for each in by_tool()[tool] if not any(word in each.kind for word in ("sun", "view", "glare"))]
    sample = said(pick(listed, split, rng), ref, larger, split, rng)
    return missed(sample, house, "missing.area") if sample else None


# By domain: words of names by which a device of another domain could be meant.
NEAR_WORDS = {
    "light": {"lamp", "light", "lights"}, "cover": {"blinds"}, "lock": {"door", "gate"},
    "climate": {"heater", "fan", "heating", "warmer", "ac", "blanket"},
    "media_player": {"radio", "tv", "console", "computer", "pc"}, "vacuum": {"vacuum", "robot", "hoover"},
    "fan": {"fan", "ventilator", "purifier", "hood"},
}  # fmt: skip


def missing_domain(house: House, split: str, rng: random.Random) -> Sample | None:
    """A command of a domain that the house has none of."""
    present = {device.domain for device in house.devices}
    lacking = [domain for domain in NEAR_WORDS if domain not in present]
    if not lacking:
        return None
    domain = rng.choice(lacking)
    named = {word for each in house.devices for word in each.name.split()}
    if NEAR_WORDS[domain] & named or domain == "climate" and "fan" in present:
        return None
    names = {"cover": ("blinds", "curtains"), "media_player": ("tv", "speaker", "radio")}.get(domain, ("qqq",))
    here = [area for area in house.areas if area == house.here]
    ghost = Device(rng.choice(names), domain, rng.choice((*here, *house.areas)))
    larger = House((*house.devices, ghost), house.here)
    fit = [tool for tool in WEIGHTS if domain in TOOLS[tool].domains]
    tool = rng.choice([tool for tool in fit if domain != "fan" or tool == "set_speed" or rng.random() < 0.5])
    family = pick([each for each in by_tool()[tool] if domain in each.domains], split, rng)
    kept = [each for each in larger.devices if each.domain == domain or each.domain not in family.domains]
    only = House(tuple(kept), house.here)
    ref = target_of(family, only, rng)
    if ref is None or any(not target.endswith(f"/{domain}") and target != ghost.name for target in ref.targets):
        return None
    sample = said(family, ref, larger, split, rng)
    return missed(sample, house, "missing.domain") if sample and "qqq" not in sample.sentence else None


def negatives(count: int, seed: int) -> list[str]:
    """Distinct sentences that are no commands, from held-out templates and words."""
    rng = random.Random(seed)
    sentences: dict[str, None] = {}
    while len(sentences) < count:
        house = make_house(rng, "test")
        templates = rng.choice(list(kinds(True).values()))
        sentences[expand(rng.choice(templates), rng, rules("test"), prose_slots(house, "test", rng))] = None
    return list(sentences)
