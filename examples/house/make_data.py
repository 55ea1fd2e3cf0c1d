"""Writes the training or test data of the house example: `make_data.py OUT --samples N --seed S [--split test]`.

A line of OUT is a sample: `prompt` and `completion` are what the model reads and writes; `house`, `sentence` and `kind`
are for the evaluation. With `--tokenizer` a sample has as many sentences of one house as `--fit` tokens hold. Equal
arguments write equal files, whatever the number of processes.
"""

import argparse
import json
import multiprocessing
import random
import sys
import time
from functools import cache, partial
from operator import add
from pathlib import Path
from typing import Any

import refusals
from command_families import REFUSAL
from houses import LAST, SPLITS, large_house, make_house, with_hidden
from sentences import Sample, make_sample
from tokenizers import Tokenizer

from merino_runtime.house.candidates import candidates
from merino_runtime.house.house import MOST_CALLS, TOOLS, Call, House, prompt, read_calls, said, write_calls

CHUNK = 500


def calls_of(sample: Sample) -> list[Call]:
    calls = [one.action for one in (sample, *sample.more) if one.action.tool != REFUSAL.tool]
    return calls[:MOST_CALLS]


def row(sample: Sample) -> dict[str, Any]:
    house = sample.house
    shown = candidates(house, sample.sentence)
    devices = [[each.name, each.domain, each.area] for each in house.devices]
    return {
        "prompt": prompt(shown, sample.sentence),
        "completion": write_calls(calls_of(sample)),
        "house": {"here": house.here, "floors": house.floors, "devices": devices},
        "sentence": sample.sentence,
        "kind": sample.kind,
    }


@cache
def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def turns_row(rng: random.Random, split: str, by: Path | None, fit: int) -> dict[str, Any]:
    """Sentences for one house: the first prompt has its listing."""
    shown = make_house(rng, split)
    house = with_hidden(shown, rng) if shown.also else shown
    allowed = set(shown.targets([domain for tool in TOOLS.values() for domain in tool.domains]))
    prompts: list[str] = []
    answers: list[str] = []
    kinds: list[str] = []
    left = fit
    while len(answers) < 5:
        sample = make_sample(rng, split, house)
        if sample.house != house:  # a refusal can be of a house without the device
            continue
        calls = calls_of(sample)
        if house != shown and not fits_part(calls, sample.sentence, house, shown, allowed):
            continue
        for call in calls:
            check(shown, call)
        asked = said(sample.sentence) if answers else prompt(shown, sample.sentence)
        answer = write_calls(calls)
        if by:
            left -= len(tokenizer(by).encode(asked).ids) + len(tokenizer(by).encode(answer).ids) + 1
            if left < 0 and answers:
                break
            if left < 0:
                return turns_row(rng, split, by, fit)
        prompts.append(asked)
        answers.append(answer)
        kinds.append(sample.kind)
    return {"prompt": prompts, "completion": answers, "kind": kinds}


def fits_part(calls: list[Call], sentence: str, house: House, shown: House, allowed: set[str]) -> bool:
    """Whether a sentence for the house is one for the part of it that is shown: it names no hidden device."""
    hidden = {device.name for device in house.devices} - {device.name for device in shown.devices}
    if any(name in sentence for name in hidden) or " wing" in sentence:
        return False
    return all(target in allowed for call in calls for target in call.targets)


def check(house: House, call: Call) -> None:
    """Raises ValueError for a call that cannot be of this house."""
    if read_calls(write_calls([call])) != [call]:
        raise ValueError(f"{call} is not what its text {write_calls([call])} says")
    if not set(call.targets) <= set(house.targets(TOOLS[call.tool].domains)):
        raise ValueError(f"{call} of {call.targets}: the house has {house.targets(TOOLS[call.tool].domains)}")


def document(row: dict[str, Any]) -> str:
    """A sample of several sentences as text, such as `merino-edge export --text` reads."""
    return "".join(map(add, row["prompt"], row["completion"])) + "<|endoftext|>\n"


def chunk(number: int, given: argparse.Namespace) -> str:
    rng = random.Random(f"{given.split} {given.seed} {number}")
    LAST.clear()
    lines = []
    for _ in range(min(CHUNK, given.samples - number * CHUNK)):
        if given.turns:
            made = turns_row(rng, given.split, given.tokenizer, given.fit)
            lines.append(document(made) if given.text else json.dumps(made, ensure_ascii=False) + "\n")
            continue
        house = large_house(rng, given.split, given.size) if given.size else None
        lines.append(json.dumps(row(make_sample(rng, given.split, house)), ensure_ascii=False) + "\n")
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--turns", action="store_true", help="several sentences of one house in a sample, for training")
    parser.add_argument("--tokenizer", type=Path, help="samples fit --fit of its tokens")
    parser.add_argument("--fit", type=int, default=254)
    parser.add_argument("--size", type=int, default=0, help="devices of a house; 0: those of a small one")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--text", action="store_true", help="write the samples of --turns as text")
    parser.add_argument("--negatives", action="store_true", help="write sentences that are no commands, one a line")
    args = parser.parse_args()
    begun = time.monotonic()
    with args.out.open("w", encoding="utf-8") as out:
        if args.negatives:
            out.writelines(f"{sentence}\n" for sentence in refusals.negatives(args.samples, args.seed))
            return
        with multiprocessing.Pool(args.processes) as pool:
            for text in pool.imap(partial(chunk, given=args), range(-(-args.samples // CHUNK))):
                out.write(text)
    print(f"{args.samples} samples in {time.monotonic() - begun:.0f} s: {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
