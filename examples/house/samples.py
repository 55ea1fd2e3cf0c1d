"""What `merino-edge job make` asks a job's program for: samples for training, sentences for the test, and judgments."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import languages
import refusals
from items import LAST, make_house, new_house, with_hidden
from refusals import make_sample
from sentences import Sample

from merino_runtime.house.answer import answer
from merino_runtime.house.candidates import candidates
from merino_runtime.house.house import (
    TOOLS,
    Call,
    Device,
    House,
    has_effect,
    meanings,
    prompt,
    read_calls,
    said,
    write_calls,
)

TURNS = 14  # as many of them as the context holds are kept


def a_house(rng: random.Random, split: str, language: str, size: int = 0) -> House:
    """A house that the model reads, or of so many devices."""
    if language != "en":
        return languages.a_house(language, rng, split, size)
    return new_house(rng, split, size) if size else make_house(rng, split)


def a_sample(rng: random.Random, split: str, house: House) -> Sample:
    if house.language == "en":
        return make_sample(rng, split, house)
    return languages.make_sample(house, languages.Speaker(house.language, split, rng))


def new_wordings(language: str = "en") -> set[str]:
    """The kinds of samples that no training sample is of."""
    return refusals.new_wordings() if language == "en" else languages.new_wordings(language)


def samples(count: int, seed: int, language: str = "en") -> Iterator[dict[str, Any]]:
    """Sentences for one house: the first prompt has its listing."""
    rng = random.Random(f"train {seed}")
    LAST.clear()
    for _ in range(count):
        shown = a_house(rng, "train", language)
        house = with_hidden(shown, rng) if shown.also else shown
        prompts: list[str] = []
        answers: list[str] = []
        while len(answers) < TURNS:
            sample = a_sample(rng, "train", house)
            if house == shown or fits_part(sample.calls, sample.sentence, house, shown):
                for call in sample.calls:
                    check(shown, call)
                prompts.append(said(sample.sentence) if answers else prompt(shown, sample.sentence))
                answers.append(write_calls(sample.calls))
        yield {"prompt": prompts, "completion": answers}


def fits_part(calls: Sequence[Call], sentence: str, house: House, shown: House) -> bool:
    """Whether a sentence for the house is one for the part of it that is shown: it names no hidden device."""
    hidden = {device.name for device in house.devices} - {device.name for device in shown.devices}
    if any(name in sentence for name in hidden) or " wing" in sentence:
        return False
    return all(set(call.targets) <= set(shown.targets(TOOLS[call.tool].domains)) for call in calls)


def check(house: House, call: Call) -> None:
    """Raises ValueError for a call that cannot be of this house."""
    if read_calls(write_calls([call])) != [call]:
        raise ValueError(f"{call} is not what its text {write_calls([call])} says")
    if not set(call.targets) <= set(house.targets(TOOLS[call.tool].domains)):
        raise ValueError(f"{call} of {call.targets}: the house has {house.targets(TOOLS[call.tool].domains)}")


def tests(
    count: int, seed: int, size: int = 0, split: str = "test", language: str = "en"
) -> Iterator[dict[str, Any]]:
    """Sentences of houses that are new, small or of so many devices."""
    rng = random.Random(f"{split} {seed} {size}")
    LAST.clear()
    for _ in range(count):
        sample = a_sample(rng, split, a_house(rng, split, language, size))
        devices = [[each.name, each.domain, each.area] for each in sample.house.devices]
        house = {"here": sample.house.here, "floors": sample.house.floors, "devices": devices, "language": language}
        shown = candidates(sample.house, sample.sentence)
        yield {"items": house, "sentence": sample.sentence, "call": write_calls(sample.calls), "family": sample.kind,
               "prompt": prompt(shown, sample.sentence)}  # fmt: skip


def read_house(content: dict[str, Any]) -> House:
    floors = tuple((floor, tuple(areas)) for floor, areas in content.get("floors", ()))
    devices = tuple(Device(*device) for device in content["devices"])
    return House(devices, content["here"], floors, language=content.get("language", "en"))


def judge(model: Any, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, bool, bool, float]]:
    """(family, whether the calls do what is expected, whether they have an effect, their probability)."""
    for row in rows:
        house = read_house(row["items"])
        given, wanted = answer(model, house, row["sentence"]), read_calls(row["call"]) or []
        right = meanings(given.calls, house) == meanings(wanted, house)
        yield row["family"].partition(".")[0], right, has_effect(given.calls, house), given.probability
