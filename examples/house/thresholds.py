"""Chooses the least probability of calls that are carried out without a question to the speaker.

    python examples/house/thresholds.py BUNDLE sure.jsonl

On sentences of their own, a wrong call that is carried out costs as much as ten questions.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from evaluate import generated

from merino_runtime.api import open_model
from merino_runtime.house.answer import CONFIRMED, answer
from merino_runtime.house.house import has_effect, meanings

WRONG = 10  # questions
LIMITS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 1.0)


class Acted(NamedTuple):
    probability: float
    is_right: bool


def cost(answers: list[Acted], limit: float) -> int:
    return sum(1 if one.probability < limit else WRONG * (not one.is_right) for one in answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("samples", type=Path, nargs="+")
    given = parser.parse_args()
    acted: list[Acted] = []
    with open_model(str(given.bundle)) as model:
        for case in (case for path in given.samples for case in generated(path, 10**6)):
            found = answer(model, case.house, case.sentence)
            if has_effect(found.calls, case.house) and not any(call.tool in CONFIRMED for call in found.calls):
                acted.append(Acted(found.probability, meanings(found.calls, case.house) in case.wanted))
    costs = {limit: cost(acted, limit) for limit in LIMITS}
    best = min(costs, key=lambda limit: (costs[limit], limit))
    wrong = sum(not one.is_right for one in acted)
    print(f"{len(acted)} calls, {wrong} wrong; limit {best}; costs {costs}")


if __name__ == "__main__":
    main()
