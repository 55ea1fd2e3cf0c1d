"""Compares the targets of an answer with its `words`, which the model copied from the sentence.

A name that no training house has is copied well and looked up badly: the words are "boombox", the target is a fan.
Which words a target explains is seen without a model: those of its name and of its area, and those for its domain.
Where other targets explain more, the model chooses again among them. A call whose targets explain none of its words
is carried out only where the model is surer than of other calls.
"""

import difflib
import re
from collections.abc import Sequence
from functools import lru_cache

from merino_runtime.house.house import EVERYTHING, EVERYWHERE, SURE, TOOLS, Call, House

# The least probability of a call whose targets explain none of its words. Of 31 such calls in houses with the
# training's names 7 of the 9 below it are wrong and none of the 22 above it.
SURE_UNEXPLAINED = 0.5
# Words that name neither a device nor a place.
LITTLE = frozenset({
    "a", "all", "also", "an", "and", "around", "as", "at", "both", "each", "entire", "every", "everywhere", "here",
    "house", "i", "in", "inside", "is", "it", "me", "my", "of", "on", "one", "our", "please", "plus", "room", "rooms",
    "single", "so", "that", "the", "this", "to", "us", "well", "whole",
})  # fmt: skip
# Words for any device of a domain, in the singular.
KINDS = {
    "light": {"light", "lighting", "lamp", "bulb"}, "switch": {"switch", "plug", "socket", "outlet", "appliance"},
    "fan": {"fan"}, "cover": {"blind", "shade", "curtain", "shutter", "window", "cover"}, "lock": {"door", "lock"},
    "climate": {"heating", "heat", "thermostat", "radiator", "temperature", "ac", "air"},
    "media_player": {"music", "speaker", "sound", "volume"},
    "vacuum": {"vacuum", "robot", "cleaner", "hoover", "cleaning"}, "scene": {"scene", "mode", "mood"},
    EVERYTHING: {"everything"},
}  # fmt: skip
DOMAINS = tuple(dict.fromkeys(domain for domains, _ in TOOLS.values() for domain in domains))
ALIKE = 0.8  # difflib's least ratio of such words


def content_words(text: str) -> frozenset[str]:
    """The words that may name a device or a place, in the singular."""
    spelled = re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))
    return frozenset(singular(word) for word in spelled if word not in LITTLE)


def singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def among(said: frozenset[str], names: frozenset[str]) -> frozenset[str]:
    """Of the words that were said those that are among the names; a longer word with a typing error too."""
    return frozenset(word for word in said if word in names or any(alike(word, name) for name in names))


@lru_cache(maxsize=100_000)
def alike(word: str, name: str) -> bool:
    """Whether a typing error may tell them apart."""
    compared = difflib.SequenceMatcher(None, name, word)
    return len(word) > 3 < len(name) and compared.quick_ratio() >= ALIKE <= compared.ratio()


def explained(said: frozenset[str], target: str, house: House) -> tuple[frozenset[str], frozenset[str]]:
    """(the words that the target explains, of these the words of the device's own name or of the group's domain)."""
    named = [device for device in house.devices if device.name == target]
    area, _, domain = target.partition("/")
    kind = frozenset(KINDS.get(named[0].domain if named else domain, ()))
    own = content_words(target) if named else kind
    places = [device.area for device in named] if named else [area] if area != EVERYWHERE else []
    return among(said, own | kind | content_words(" ".join(places))), among(said, own)


def to_choose_again(action: Call, house: House) -> dict[str, list[list[str]]]:
    """Where other targets explain more words than the action's: by tool, for each place in its targets what to choose
    among. The tool stays where it is for one of them; else it is one of the tools that are. Empty where none do."""
    said = content_words(action.words)
    if said == frozenset().union(*(explained(said, target, house)[0] for target in action.targets)):
        return {}  # a refusal has no words
    better = better_targets(action, house, house.targets(TOOLS[action.tool][0]))
    if better or len(action.targets) > 1:
        return {action.tool: better} if better else {}
    for better in better_targets(action, house, house.targets(DOMAINS)):
        fitting = {tool: house.targets(domains) for tool, (domains, _) in TOOLS.items()}
        by_tool = {tool: [target for target in better if target in targets] for tool, targets in fitting.items()}
        return {tool: [targets] for tool, targets in by_tool.items() if targets}
    return {}


def better_targets(action: Call, house: House, targets: Sequence[str]) -> list[list[str]]:
    """Of these targets those that explain more words than the action's, for each of its places. One place changes: that
    whose target explains least. An action without a target gets one that explains all words."""
    said = content_words(action.words)
    by_target = {target: explained(said, target, house) for target in targets}
    named = {target: words for target, (words, own) in by_target.items() if own}
    if not action.targets:
        all_words = [target for target, words in named.items() if words == said]
        return [all_words] if all_words else []
    now = [explained(said, target, house)[0] for target in action.targets]
    for place in sorted(range(len(now)), key=lambda place: len(now[place])):
        others = frozenset().union(*now[:place], *now[place + 1 :])
        better = {target: words | others for target, words in named.items() if words | others > now[place] | others}
        most = [target for target, words in better.items() if not any(words < other for other in better.values())]
        if most:
            return [most if place == other else [target] for other, target in enumerate(action.targets)]
    return []


def least_probability(action: Call, house: House) -> float:
    """Of an action that is carried out without a question to the speaker."""
    said = content_words(action.words)
    unexplained = said and not any(explained(said, target, house)[0] for target in action.targets)
    return SURE_UNEXPLAINED if unexplained and action.targets else SURE
