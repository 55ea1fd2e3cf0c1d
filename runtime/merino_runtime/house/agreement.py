"""Compares the targets of a call with its words, which the model copied from the sentence.

A name that no training house has is copied well and looked up badly: the words are "boombox", the target is a fan.
Which words a target explains is seen without a model: those of its name and of its area, and those for its domain.
If other targets explain more, the model chooses again among them.
"""
from typing import Dict, FrozenSet, List, Sequence, Tuple

from merino_runtime.house.house import EVERYWHERE, TOOLS, Call, House
from merino_runtime.house.words import KINDS, among, content_words

UNCOMPARED = ("add_item", "get_state", "get_temperature") + tuple(
    name for name, tool in TOOLS.items() if not tool.domains)  # their words name no device, or nothing is done
COMPARED = {name: tool for name, tool in TOOLS.items() if name not in UNCOMPARED}


def explained(said: FrozenSet[str], target: str, house: House) -> Tuple[FrozenSet[str], FrozenSet[str]]:
    """(the words that the target explains, of these the words of the device's own name or of the group's domain)."""
    named = [device for device, label in house.labels().items() if label == target]
    place, _, domain = target.partition("/")
    kind = KINDS.get(named[0].domain if named else domain, frozenset())  # type: FrozenSet[str]
    own = content_words(named[0].name) if named else kind
    places = [device.area for device in named] if named else [place] if place != EVERYWHERE else []
    where = content_words(" ".join(places))
    return among(said, own | kind | where), among(said, own - where or own)


def all_explained(said: FrozenSet[str], targets: Sequence[str], house: House) -> FrozenSet[str]:
    return frozenset().union(*(explained(said, target, house)[0] for target in targets))


def to_choose_again(call: Call, house: House) -> Dict[str, List[List[str]]]:
    """If other targets explain more words than the call's: by tool, for each place in its targets what to choose among.
    The tool stays if it is for one of them; else it is one of the tools that are. Empty if none do."""
    said = content_words(call.words)
    if call.tool in UNCOMPARED or said == all_explained(said, call.targets, house):
        return {}
    better = better_targets(call, house, house.targets(TOOLS[call.tool].domains))
    if better or len(call.targets) > 1:
        return {call.tool: better} if better else {}
    domains = [domain for tool in COMPARED.values() for domain in tool.domains]
    for choices in better_targets(call, house, house.targets(list(dict.fromkeys(domains)))):
        fitting = {name: house.targets(tool.domains) for name, tool in COMPARED.items()}
        by_tool = {name: [target for target in choices if target in targets] for name, targets in fitting.items()}
        return {name: [targets] for name, targets in by_tool.items() if targets}
    return {}


def better_targets(call: Call, house: House, targets: Sequence[str]) -> List[List[str]]:
    """Of these targets those that explain more words than the call's, for each of its places. One place changes: that
    whose target explains least. A call without a target gets one that explains all words."""
    said = content_words(call.words)
    by_target = {target: explained(said, target, house) for target in targets}
    named = {target: words for target, (words, own) in by_target.items() if own}
    if not call.targets:
        all_words = [target for target, words in named.items() if words == said]
        return [all_words] if all_words else []
    now = [explained(said, target, house)[0] for target in call.targets]
    for place in sorted(range(len(now)), key=lambda place: len(now[place])):
        others = frozenset().union(*(now[:place] + now[place + 1:]))  # type: FrozenSet[str]
        better = {target: words | others for target, words in named.items() if words | others > now[place] | others}
        most = [target for target, words in better.items() if not any(words < other for other in better.values())]
        if most:
            return [most if place == other else [target] for other, target in enumerate(call.targets)]
    return []
