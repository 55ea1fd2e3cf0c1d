"""Chooses the devices of a house that the model reads for a sentence: as many as its listing holds.

A device scores by the words of the sentence that its name, aliases, area, floor and domain explain. Rare words of the
house count more. Words that chosen devices explain count less for the next one, so that each part of a sentence gets
its devices. What is left over goes to the speaker's area.
"""
import math
from collections import Counter, OrderedDict
from functools import lru_cache
from typing import Callable, Dict, FrozenSet, Iterable, List, Sequence, Tuple

from merino_runtime.house.house import EVERYWHERE, Call, Device, House, entry
from merino_runtime.house.words import ratio, split_words, words_of

MOST_DEVICES = 16
LONGEST_LISTING = 330  # characters, without the domains behind areas
ALSO_LENGTH = 2
UNGROUPED = ("scene", "script", "todo")
NAME, PLACE, KIND, HINT, SYNONYM = 1.0, 0.7, 0.5, 0.3, 0.6  # what an explained word counts
FUZZY = 0.7  # least ratio of two words of at least four letters
FADED = 0.72  # what a word counts for each device that explained it before
HERE = 0.25  # of a device in the speaker's area
TOGETHER = 0.8  # of a device whose area and something else is said
WHOLE = 0.4  # of a device, times the share of its name's words that are said


def listed_length(device: Device) -> int:
    return len(entry(device.name)) + len(device.domain) + 3


def whole_fits(house: House) -> bool:
    length = sum(map(listed_length, house.devices)) + sum(len(area) + 2 for area in house.areas) + floors_length(house)
    return len(house.devices) <= MOST_DEVICES and length <= LONGEST_LISTING


def floors_length(house: House) -> int:
    return sum(len(floor) + 2 for floor, _ in house.floors)


def candidates(house: House, sentence: str) -> House:
    """The house with only those devices, and domains for the rest. A candidate has the name or alias that fits the
    sentence best."""
    if whole_fits(house):
        return house
    said = said_words(sentence, house.language)
    explained = explanations(house, said)
    close = {device: closeness(device, house, explained[device]) for device in house.devices}
    worth = dict.fromkeys(said, 1.0)
    counts = Counter(device.domain for device in house.devices)
    left = dict.fromkeys(house.devices)  # type: Dict[Device, None]
    chosen = []  # type: List[Device]
    areas = {house.here}
    length = len("here: ") + len(house.here) + floors_length(house)
    few = [device for device in house.devices if counts[device.domain] == 1]
    while left and len(chosen) < MOST_DEVICES:
        # People do not name a device that is the only one of its domain.
        best = few.pop() if few else max(left, key=lambda device: close[device] + sum(
            worth[word] * value for word, value in explained[device].items()))
        del left[best]
        more = listed_length(best) + (0 if best.area in areas else len(best.area) + ALSO_LENGTH)
        if length + more > LONGEST_LISTING:
            if LONGEST_LISTING - length < 25:
                break
            continue
        length += more
        areas.add(best.area)
        chosen.append(best)
        for word in explained[best]:
            worth[word] *= FADED
    kept = set(chosen)
    return part(house, tuple(named(device, said, house.language) for device in house.devices if device in kept), kept)


def part(house: House, shown: Tuple[Device, ...], kept: "set[Device]") -> House:
    """The part of a house that has these devices, with what its areas and the house have besides."""
    places = [area for area in dict.fromkeys([device.area for device in shown] + [house.here]) if area]
    also = OrderedDict((place, []) for place in places + [EVERYWHERE])  # type: Dict[str, List[str]]
    listed = {(device.area, device.domain) for device in shown}
    anywhere = {domain for _, domain in listed}
    for device in house.devices:
        if device in kept or device.domain in UNGROUPED:
            continue
        if device.area in also and (device.area, device.domain) not in listed:
            listed.add((device.area, device.domain))
            anywhere.add(device.domain)
            also[device.area].append(device.domain)
    for device in house.devices:
        if device.domain not in anywhere and device.domain not in UNGROUPED:
            anywhere.add(device.domain)
            also[EVERYWHERE].append(device.domain)
    more = tuple((place, tuple(domains)) for place, domains in also.items() if domains)
    return House(shown, house.here, house.floors, more, house.language)


def whole_calls(calls: Sequence[Call], shown: House, house: House) -> List[Call]:
    """The calls with targets as the whole house names them."""
    labels, whole = {label: device for device, label in shown.labels().items()}, house.labels()

    def label(target: str) -> str:
        device = labels.get(target)
        if device is None:
            return target
        return next(whole[one] for one in house.devices if one._replace(name="") == device._replace(name="") and
                    device.name in (one.name,) + one.aliases)

    return [call._replace(targets=tuple(map(label, call.targets))) for call in calls]


def closeness(device: Device, house: House, explained: Dict[str, float]) -> float:
    """What a device scores apart from the words that it explains."""
    words, place = split_words(device.name, house.language), split_words(device.area, house.language)
    in_place = [word for word in explained if word in place]
    together = TOGETHER if in_place and len(in_place) < len(explained) else 0.0
    named = WHOLE * sum(word in explained for word in words) / max(1, len(words))
    return HERE * (device.area == house.here) + named + together


def said_words(sentence: str, language: str) -> Tuple[str, ...]:
    """Words in order, and two words in a row as one: people write "living room" and "livingroom"."""
    spelled, little = split_words(sentence, language), words_of(language).little
    kept = [word for word in spelled if word not in little]
    joined = [first + second for first, second in zip(spelled, spelled[1:]) if len(first + second) > 5]
    return tuple(dict.fromkeys(kept + joined))


def explanations(house: House, said: Tuple[str, ...]) -> Dict[Device, Dict[str, float]]:
    """By device: how much it explains each word of the sentence."""
    floor_of = {area: floor for floor, areas in house.floors for area in areas}
    language, words = house.language, words_of(house.language)
    by_name = index(house, lambda device: name_words(device, language))
    by_place = index(house, lambda device: split_words(device.area + " " + floor_of.get(device.area, ""), language))
    result = {device: {} for device in house.devices}  # type: Dict[Device, Dict[str, float]]
    for word in said:
        for by_word, weight in ((by_name, NAME), (by_place, PLACE)):
            for name, how in likenesses(word, by_word, language).items():
                rare = 1 + 0.5 * math.log(len(house.devices) / len(by_word[name]))
                for device in by_word[name]:
                    result[device][word] = max(weight * how * rare, result[device].get(word, 0.0))
        for device in house.devices:
            kind, hint = word in words.kinds.get(device.domain, ()), word in words.hints.get(device.domain, ())
            if kind or hint:
                value = KIND if kind else HINT
                result[device][word] = max(value, result[device].get(word, 0.0))
    return result


def index(house: House, words_of: Callable[[Device], Iterable[str]]) -> Dict[str, List[Device]]:
    """The devices by each of their words."""
    result = {}  # type: Dict[str, List[Device]]
    for device in house.devices:
        for word in set(words_of(device)):
            result.setdefault(word, []).append(device)
    return result


@lru_cache(maxsize=4096)
def name_words(device: Device, language: str) -> FrozenSet[str]:
    words = split_words(" ".join((device.name,) + device.aliases), language)
    joined = [first + second for first, second in zip(words, words[1:])]
    return frozenset(words + joined)


def likenesses(word: str, names: Iterable[str], language: str) -> Dict[str, float]:
    """The names that a word may mean, and how likely: 1 for an equal one."""
    found = {name: SYNONYM for name in related(word, language) if name in names}
    if word in names:
        found[word] = 1.0
    elif len(word) > 2:
        rated = ((name, ratio(word, name, FUZZY)) for name in names if len(name) > 3 and abs(len(name) - len(word)) < 4)
        found.update((name, how * how) for name, how in rated if how >= FUZZY)
    return found


@lru_cache(maxsize=65536)
def related(word: str, language: str) -> FrozenSet[str]:
    """Words of names that are meant by this one, also if it has a typing error."""
    rows = words_of(language).rows
    if word in rows or len(word) < 5:
        return rows.get(word, frozenset())
    best = max((ratio(word, known, 0.85), known) for known in rows)
    return rows[best[1]] if best[0] else frozenset()


def named(device: Device, said: Tuple[str, ...], language: str) -> Device:
    """The device by the one of its names that explains most words of the sentence; by its own if none is better."""
    if not device.aliases:
        return device
    found = set(said)
    best = max((device.name,) + device.aliases, key=lambda name: len(found & set(split_words(name, language))))
    return device._replace(name=best)
