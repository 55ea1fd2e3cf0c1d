"""Writes the training or test data of the house example: `make_data.py OUT --samples N --seed S [--split test]`.

A line of OUT is a sample: `prompt` and `completion` are what the model reads and writes, `house`, `sentence` and `kind`
are for the analysis of errors. Equal arguments write equal files, whatever the number of processes.
"""

import argparse
import json
import multiprocessing
import random
import sys
import time
from functools import partial
from operator import add
from pathlib import Path
from typing import Any

import refusals
from house import REFUSAL, TIMES, TOOLS, Action, House, prompt, read_action, said
from houses import SPLITS, make_house
from sentences import Sample, make_sample

CHUNK = 2000


def row(sample: Sample) -> dict[str, Any]:
    house = sample.house
    return {
        "prompt": prompt(house, sample.sentence),
        "completion": sample.action.text(),
        "house": {"here": house.here, "devices": [[each.name, each.domain, each.area] for each in house.devices]},
        "sentence": sample.sentence,
        "kind": sample.kind,
    }


def turns_row(rng: random.Random, split: str, turns: int) -> dict[str, Any]:
    """Sentences for one house: the first prompt has its listing."""
    house = make_house(rng, split)
    samples: list[Sample] = []
    while len(samples) < turns:
        sample = make_sample(rng, split, house)
        if sample.house == house:  # a refusal can be of a house without the device
            check(house, sample.action)
            samples.append(sample)
    return {
        "prompt": [prompt(house, samples[0].sentence), *[said(each.sentence) for each in samples[1:]]],
        "completion": [each.action.text() for each in samples],
        "kind": [each.kind for each in samples],
    }


def check(house: House, action: Action) -> None:
    """Raises ValueError for an action that cannot be of this house."""
    if read_action(action.text()) != action:
        raise ValueError(f"{action} is not what its text {action.text()} says")
    if action == REFUSAL:
        return
    if action.tool not in TOOLS:
        raise ValueError(f"{action} is no call of a tool and not the refusal")
    domains, values = TOOLS[action.tool]
    given = [name for name, _ in action.values]
    if given != [*values, *[name for name in TIMES if name in given]]:
        raise ValueError(f"{action.tool} takes {[*values, *TIMES]}, not {given}")
    if not set(action.targets) <= set(house.targets(domains)):
        raise ValueError(f"{action.tool} of {action.targets}: the house has {house.targets(domains)}")


def document(row: dict[str, Any]) -> str:
    """A sample of several sentences as text, such as `merino-edge export --calibrate` reads."""
    return "".join(map(add, row["prompt"], row["completion"])) + "<|endoftext|>\n"


def chunk(number: int, seed: int, split: str, samples: int, turns: int, text: bool) -> str:
    rng = random.Random(f"{split} {seed} {number}")
    lines = []
    for _ in range(min(CHUNK, samples - number * CHUNK)):
        if turns > 1:
            made = turns_row(rng, split, turns)
            lines.append(document(made) if text else json.dumps(made, ensure_ascii=False) + "\n")
            continue
        sample = make_sample(rng, split)
        check(sample.house, sample.action)
        lines.append(json.dumps(row(sample), ensure_ascii=False) + "\n")
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--turns", type=int, default=1, help="sentences of one house in a sample")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--text", action="store_true", help="write the samples of --turns as text")
    parser.add_argument(
        "--negatives", action="store_true", help="write sentences that are no commands, one a line, in place of samples"
    )
    args = parser.parse_args()
    if args.text and args.turns < 2:
        parser.error("--text writes the samples of --turns 2 or more: name --turns")
    begun = time.monotonic()
    with args.out.open("w", encoding="utf-8") as out:
        if args.negatives:
            out.writelines(f"{sentence}\n" for sentence in refusals.negatives(args.samples, args.seed))
            return
        work = partial(chunk, seed=args.seed, split=args.split, samples=args.samples, turns=args.turns, text=args.text)
        with multiprocessing.Pool(args.processes) as pool:
            for text in pool.imap(work, range(-(-args.samples // CHUNK))):
                out.write(text)
    print(f"{args.samples} samples in {time.monotonic() - begun:.0f} s: {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
