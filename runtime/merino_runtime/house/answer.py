"""Answers a sentence: candidates, the model's calls, targets checked against the words, and whether to ask.

The schema of the answer is the same for all houses, so it is compiled once. A target that the house does not have is
chosen again among those that it has.

The targets of a call are compared with its words, which the model copied from the sentence. A name that no training
house has is copied well and looked up badly: the words are "boombox", the target is a fan. Which words a target
explains is seen without a model: those of its name and of its area, and those for its domain. If other targets explain
more, the model chooses again among them.
"""
import math
import os
import re
from typing import Any, Dict, FrozenSet, List, NamedTuple, Sequence, Tuple

from merino_runtime.api import LanguageModel
from merino_runtime.generation.generate import Token, TokenLogprobs
from merino_runtime.house.candidates import candidates, whole_calls
from merino_runtime.house.house import (
    EVERYWHERE,
    LENGTH,
    MOST_TARGETS,
    NO_EFFECT,
    TIMES,
    TOOLS,
    Call,
    House,
    has_effect,
    prompt,
    read_calls,
    row_schema,
    schema,
    write_calls,
)
from merino_runtime.house.words import among, content_words, ratio, split_words, words_of
from merino_runtime.job import JOB, job_content
from merino_runtime.sampling import GREEDY

MOST_TOKENS = 112
SURE = 0.84  # the least probability of calls that are carried out without a question
TOP = 12  # tokens that are looked at for other targets with the same effect
IN_WORDS = re.compile(r'\["\w+","([^"\\]|\\.)*$')  # what is written up to a token of a call's words
LIKE = 0.6  # the least likeness of words that are put right
CONFIRMED = ("unlock",)  # tools whose calls are always asked for
UNCOMPARED = ("add_item", "get_state", "get_temperature") + tuple(
    name for name, tool in TOOLS.items() if not tool.domains)  # their words name no device, or nothing is done
COMPARED = {name: tool for name, tool in TOOLS.items() if name not in UNCOMPARED}


class Answer(NamedTuple):
    """`calls`: none is a refusal, and one without targets says that the house has no such device. `probability`: see
    `decoded`. `asks`: whether the speaker is to confirm the calls. `text`: what the model wrote."""
    calls: Tuple[Call, ...]
    probability: float
    asks: bool
    text: str


def answer(model: LanguageModel, house: House, sentence: str, sure: float = SURE) -> Answer:
    """Answer with calls whose targets are of the whole house."""
    shown = candidates(house, sentence)
    asked = prompt(shown, sentence)
    text, probability = decoded(model, asked, schema(), shown)
    calls = read_calls(text)
    if calls is None:  # it was cut
        return Answer((), 0.0, False, text)
    calls = [told_apart(call, shown) for call in calls]
    for check in (said_again, chosen_again):
        again = [check(call, shown, sentence.lower()) for call in calls]
        if any(again):
            rows = [form or kept(call) for call, form in zip(calls, again)]
            form = {"type": "array", "prefixItems": rows, "minItems": len(calls), "maxItems": len(calls)}
            text, probability = decoded(model, asked, form, shown)
            calls = read_calls(text) or []
    confirmed = any(call.tool in CONFIRMED and call.targets for call in calls)
    whole = tuple(in_house(call, house, sentence) for call in whole_calls(calls, shown, house))
    doubtful = confirmed or probability < sure or is_doubtful(calls, sentence.lower(), house.language)
    return Answer(whole, probability, has_effect(whole, house) and doubtful, text)


def threshold(folder: str) -> float:
    """Return the least probability of calls without a question: the bundle's, which `job make` chose, or SURE."""
    path = os.path.join(folder, JOB)
    return job_content(path)["threshold"] if os.path.isfile(path) else SURE


def language_of(folder: str) -> str:
    """Return the language of a bundle: of its job, or English."""
    path = os.path.join(folder, JOB)
    return job_content(path).get("language", "en") if os.path.isfile(path) else "en"


def in_house(call: Call, house: House, sentence: str) -> Call:
    """The call with the speaker's area in place of the house, unless the sentence says that it means all; a timer by
    its bare name, such as "pasta" or "5 minute"."""
    if not TOOLS[call.tool].domains:
        return call._replace(words=words_of(house.language).timer.sub("", call.words))
    if words_of(house.language).every & set(split_words(sentence, house.language)):
        return call
    local = {device.domain for device in house.devices if device.area and device.area == house.here}

    def nearer(target: str) -> str:
        place, _, domain = target.partition("/")
        return "{}/{}".format(house.here, domain) if place == EVERYWHERE and domain in local else target

    return call._replace(targets=tuple(map(nearer, call.targets)))


def is_doubtful(calls: List[Call], sentence: str, language: str) -> bool:
    """Whether words are not those of the sentence, or the time that it says is in no call."""
    said = all(part in sentence for call in calls for part in call.words.split(", "))
    timed = any(name in LENGTH or name in TIMES for call in calls for name, _ in call.values)
    return not said or not timed and bool(words_of(language).later.search(sentence))


def told_apart(call: Call, shown: House) -> Call:
    """The call with the room of each device whose name occurs in several: the room that is said, or the speaker's."""
    words, labels = content_words(call.words, shown.language), shown.labels()

    def label(target: str) -> str:
        same = [device for device in shown.devices if device.name == target and labels[device] != target]
        areas = {device: content_words(device.area, shown.language) for device in same}
        said = [device for device in same if areas[device] and areas[device] <= words]
        here = [device for device in same if device.area == shown.here]
        return labels[(said or here)[0]] if said or here else target

    return call._replace(targets=tuple(map(label, call.targets)))


def said_again(call: Call, shown: House, sentence: str) -> Any:
    """The schema of the call with words as the sentence has them, if it does not have them so."""
    words = ", ".join(span(part, sentence) for part in call.words.split(", "))
    return None if words == call.words else row_schema(call.tool, {"const": words}, any_of(call, shown))


def span(part: str, sentence: str) -> str:
    """The words of the sentence that are most like these; these if none are."""
    if part in sentence:
        return part
    spoken, count = sentence.split(), len(part.split())
    spans = [" ".join(spoken[first:first + size]) for size in (count, count - 1, count + 1) if size
             for first in range(len(spoken) - size + 1)]
    best = max(spans, key=lambda text: ratio(part, text, LIKE), default=part)
    return best if ratio(part, best, LIKE) else part


def any_of(call: Call, shown: House) -> Any:
    allowed = shown.targets(TOOLS[call.tool].domains)
    if not allowed:
        return {"type": "array", "maxItems": 0}
    return {"type": "array", "items": {"enum": allowed}, "maxItems": MOST_TARGETS, "uniqueItems": True}


def chosen_again(call: Call, shown: House, _: str = "") -> Any:
    """The schema of the call if its targets are to be chosen again: because the house lacks one, or by its words."""
    words = {"const": call.words}
    if not set(call.targets) <= set(shown.targets(TOOLS[call.tool].domains)):
        return row_schema(call.tool, words, any_of(call, shown))
    better = to_choose_again(call, shown) if call.tool not in NO_EFFECT else {}
    rows = [row_schema(tool, words, one_of_each(targets)) for tool, targets in better.items()]
    return {"anyOf": rows} if rows else None


def explained(said: FrozenSet[str], target: str, house: House) -> Tuple[FrozenSet[str], FrozenSet[str]]:
    """(the words that the target explains, of these the words of the device's own name or of the group's domain)."""
    named = [device for device, label in house.labels().items() if label == target]
    place, _, domain = target.partition("/")
    kind = words_of(house.language).kinds.get(
        named[0].domain if named else domain, frozenset())  # type: FrozenSet[str]
    own = content_words(named[0].name, house.language) if named else kind
    places = [device.area for device in named] if named else [place] if place != EVERYWHERE else []
    where = content_words(" ".join(places), house.language)
    return among(said, own | kind | where), among(said, own - where or own)


def to_choose_again(call: Call, house: House) -> Dict[str, List[List[str]]]:
    """If other targets explain more words than the call's: by tool, for each place in its targets what to choose among.
    The tool stays if it is for one of them; else it is one of the tools that are. Empty if none do."""
    said = content_words(call.words, house.language)
    if call.tool in UNCOMPARED or said == frozenset().union(
            *(explained(said, target, house)[0] for target in call.targets)):
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
    said = content_words(call.words, house.language)
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


def kept(call: Call) -> Any:
    """The schema of a call that stays."""
    return row_schema(call.tool, {"const": call.words}, one_of_each([[target] for target in call.targets]))


def one_of_each(targets: List[List[str]]) -> Any:
    if not targets:
        return {"type": "array", "maxItems": 0}
    return {"type": "array", "prefixItems": [{"enum": choices} for choices in targets], "minItems": len(targets),
            "maxItems": len(targets)}


def decoded(model: LanguageModel, asked: str, form: Any, shown: House) -> Tuple[str, float]:
    """Greedy and constrained -> the answer, and the probability of its tokens without those that are forced. A token
    counts with the others that lead to a target with the same effect, and one of the words for a third."""
    events = list(model.generate(asked, json_schema=form, max_new_tokens=MOST_TOKENS, sampling=GREEDY, top=TOP))
    text = "".join(event.text for event in events if isinstance(event, Token))
    same, before, logprobs = same_effect(text, shown), "", 0.0
    for token, chosen in zip(events, events[1:]):
        if isinstance(token, Token):
            if isinstance(chosen, TokenLogprobs):
                others = ((before + model.tokenizer.bytes_of(number).decode("utf-8", "replace"), math.exp(logprob))
                          for number, logprob in chosen.top if number != token.id)
                alike = sum(probability for begun, probability in others
                            if any(other.startswith(begun) for other in same))
                logprobs += math.log(math.exp(chosen.logprob) + alike) / (3 if IN_WORDS.search(before) else 1)
            before += token.text
    return text, min(1.0, math.exp(logprobs))


def same_effect(text: str, shown: House) -> List[str]:
    """The answers that differ from this one by a target that means the same devices."""
    calls = read_calls(text) or []
    return [write_calls(calls[:place] + [call._replace(targets=call.targets[:at] + (other,) + call.targets[at + 1:])]
                        + calls[place + 1:])
            for place, call in enumerate(calls) for at, target in enumerate(call.targets)
            for other in shown.targets(TOOLS[call.tool].domains)
            if other != target and shown.resolve(other) == shown.resolve(target)]
