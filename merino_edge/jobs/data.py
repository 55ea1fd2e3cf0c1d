"""Samples of a job: items that are invented for each, and sentences about them with the right calls."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from merino_edge.jobs.folder import Item, Job
from merino_edge.jobs.templates import sentence
from merino_runtime.house.words import words_of
from merino_runtime.job import ITEM, REFUSAL, call_text, item_kinds, listing, said

MARGIN = 2  # tokens of a row before and behind its sample, which some tokenizers do not count
ABSENT_SHARE = 0.3  # of refusals: commands for items that are not there


class Turn(NamedTuple):
    """A sentence and its call as text. `family`: of its phrase; `refusals` or `absent` for what is refused."""

    words: str
    call: str
    family: str


class Sample(NamedTuple):
    items: dict[str, list[str]]
    turns: list[Turn]

    def record(self) -> dict[str, Any]:
        """Return the sample in the form of `train`: the items are read once for all sentences."""
        prompts = [said(turn.words) for turn in self.turns]
        prompts[0] = listing(self.items) + prompts[0]
        return {"prompt": prompts, "completion": [turn.call for turn in self.turns]}


def records(job: Job, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield training samples in the form of `train`: of the job's program, or of its phrases."""
    if job.program:
        return iter(job.program.samples(count, seed, **spoken(job)))
    return (sample.record() for sample in samples(job, count, job.settings.data.turns, seed))


def test_rows(job: Job, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield sentences with the items that there are, the expected call and the family."""
    if job.program:
        return iter(job.program.tests(count, seed, **spoken(job)))
    return (
        {"items": sample.items, "sentence": turn.words, "call": json.loads(turn.call), "family": turn.family}
        for sample in samples(job, count, 1, seed, test=True) for turn in sample.turns
    )  # fmt: skip


def spoken(job: Job) -> dict[str, str]:
    """What a program is told beside count and seed: a language, unless it is English."""
    return {} if job.settings.language == "en" else {"language": job.settings.language}


def fitted(record: dict[str, Any], length: Callable[[str], int], context: int) -> dict[str, Any] | None:
    """Return the record with as many turns as the context holds beside MARGIN; None if it holds none."""
    left, kept = context - MARGIN, 0
    for asked, answered in zip(record["prompt"], record["completion"], strict=True):
        left -= length(asked) + length(answered) + 1
        kept += left >= 0
    return {"prompt": record["prompt"][:kept], "completion": record["completion"][:kept]} if kept else None


def samples(job: Job, count: int, turns: int, seed: int, test: bool = False) -> Iterator[Sample]:
    """Yield samples. `test`: with the items and the families of phrases that training does not have too."""
    rng, data = random.Random(f"{seed} {test}"), job.settings.data
    families = [family for family in job.phrases if test or family not in data.held_out]
    pools = {kind: part(listed, test) for kind, listed in job.items.items() if kind in item_kinds(job.tools)}
    by_tool: dict[str, list[str]] = {}
    for family in families:
        by_tool.setdefault(family.partition(".")[0], []).append(family)
    for _ in range(count):
        world = {}
        for kind, pool in pools.items():
            world[kind] = rng.sample(pool, rng.randint(1, min(len(pool), data.most_items)))
        absent = {kind: [item for item in pool if item not in world[kind]] for kind, pool in pools.items()}
        made = []
        for _ in range(turns):
            if rng.random() >= data.refusals:
                made.append(command(job, rng.choice(by_tool[rng.choice(list(by_tool))]), world, rng))
            elif rng.random() < ABSENT_SHARE and (turn := unmet(job, families, absent, rng)):
                made.append(turn)
            else:
                made.append(Turn(sentence(rng.choice(job.refusals), rng, {})[0], REFUSAL, "refusals"))
        yield Sample({kind: [item.name for item in listed] for kind, listed in world.items()}, made)


def part(items: Sequence[Item], test: bool) -> list[Item]:
    """Return every fifth item for the test, the others for training."""
    return [item for place, item in enumerate(items) if (place % 5 == 4) == test]


def command(job: Job, family: str, world: dict[str, list[Item]], rng: random.Random) -> Turn:
    tool = next(tool["function"] for tool in job.tools if tool["function"]["name"] == family.partition(".")[0])
    values: dict[str, Any] = {}
    spoken: dict[str, str] = {}
    for name, schema in tool["parameters"].get("properties", {}).items():
        if ITEM in schema:
            item = rng.choice(world[schema[ITEM]])
            values[name], spoken[name] = item.name, rng.choice(item.spoken)
        elif "enum" in schema:
            values[name] = rng.choice(schema["enum"])
            spoken[name] = str(values[name]).replace("_", " ")
        else:
            values[name] = number = rng.randint(schema.get("minimum", 0), schema.get("maximum", 100))
            numbers = list(words_of(job.settings.language).numbers)
            spoken[name] = numbers[number] if 0 <= number < len(numbers) and rng.random() < 0.6 else str(number)
    words, used = sentence(rng.choice(job.phrases[family]), rng, spoken)
    return Turn(words, call_text(tool["name"], {name: value for name, value in values.items() if name in used}), family)


def unmet(job: Job, families: Sequence[str], absent: dict[str, list[Item]], rng: random.Random) -> Turn | None:
    """Return a command for an item that is not there; None if the chosen tool has none or all items are there."""
    family = rng.choice(families)
    tool = next(tool["function"] for tool in job.tools if tool["function"]["name"] == family.partition(".")[0])
    kinds = [schema[ITEM] for schema in tool["parameters"].get("properties", {}).values() if ITEM in schema]
    if not kinds or not all(absent[kind] for kind in kinds):
        return None
    turn = command(job, family, absent, rng)
    return Turn(turn.words, REFUSAL, "absent")
