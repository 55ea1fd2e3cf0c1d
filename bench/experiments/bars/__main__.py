"""The speed bars, in one run on one machine: rounds of fresh processes that take turns, medians, ratios, intervals.

    python bench/experiments/bars -o bench/results/bars-x86-2cores.json --cache DIR

Needs the extra `peers`. DIR keeps bundles and the other engines' models (12 GB); the file grows run by run and what
is in it is not measured again. `--sections` chooses, `--try` runs everything on tiny models, `--only-table` reads.
"""

import argparse
import json
import sys
from pathlib import Path

import depth
from entrants import PROMPT, export_model
from plan import SECTIONS, SMALL_SECTIONS
from runs import Runs, facts_line, report, take_turns

from merino_bench.harness.cases import Case
from merino_runtime.errors import MerinoError

STEPS = 64
NAMES = (*SECTIONS, *depth.SECTIONS)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, dest="out", help="the JSON file that grows")
    parser.add_argument("--cache", type=Path, help="folder for bundles and the other engines' models")
    parser.add_argument("-r", type=int, default=7, dest="rounds", help="rounds (default %(default)s)")
    parser.add_argument("--repetitions", type=int, default=3, help="in each process (default %(default)s)")
    parser.add_argument("-p", type=int, default=PROMPT, dest="prompt", help="ids of the prompt (default %(default)s)")
    parser.add_argument("-n", type=int, default=STEPS, dest="steps", help="decode steps (default %(default)s)")
    parser.add_argument("-t", type=int, dest="threads", help="default: each bundle's choice, and the same for peers")
    parser.add_argument("--sections", default=",".join(NAMES), help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--try", action="store_true", dest="small", help="tiny models: whether it all runs")
    parser.add_argument("--only-table", action="store_true", help="measure nothing")
    parser.add_argument("--export", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    asked = parsed()
    if asked.export:
        export_model(json.loads(asked.export))
        return
    if asked.out is None or asked.cache is None:
        raise MerinoError("-o and --cache are needed")
    names = asked.sections.split(",")
    unknown = set(names) - set(NAMES)
    if unknown:
        raise MerinoError(f"--sections names {', '.join(sorted(unknown))}: known are {', '.join(NAMES)}")
    settings = {"prompt": asked.prompt, "steps": asked.steps, "repetitions": asked.repetitions,
                "threads": asked.threads, "small": asked.small}  # fmt: skip
    runs = Runs(asked.out, settings)
    cache = asked.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    sections = {name: make() for name, make in (SMALL_SECTIONS if asked.small else SECTIONS).items()}
    deep = depth.SMALL_SECTIONS if asked.small else depth.SECTIONS
    if not asked.only_table:
        case = Case(f"tg{asked.steps}", asked.prompt, asked.steps, threads=asked.threads)
        for name in names:
            tests = (
                depth.tests(deep[name]) if name in deep
                else [(entrant, case) for entrant in dict.fromkeys(sections[name].entrants)]
            )  # fmt: skip
            take_turns(runs, name, tests, asked.rounds, asked.repetitions, cache)
    print(facts_line(runs))
    for name in names:
        if name in deep:
            print(depth.report(runs, name, deep[name]))
        else:
            print(report(runs, name, sections[name], asked.prompt + (asked.steps - 1) / 2))


if __name__ == "__main__":
    try:
        main()
    except MerinoError as error:
        sys.exit(f"bars: {error}")
