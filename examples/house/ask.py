"""Asks a bundle of the house example: prints the action for a sentence, its probability by the model, and how long it
took. A call of which the model is not sure is for the speaker to confirm.

python examples/house/ask.py BUNDLE "it is dark in here" [--house house.json]
"""

import argparse
import json
import time
from pathlib import Path

from evaluate import answered, has_effect, is_sure, read_house
from merino_runtime.house.house import House

from merino_runtime.api import open_model

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("sentence", nargs="+")
    parser.add_argument("--house", type=Path, default=HERE / "house.json", help="JSON of devices and here")
    given = parser.parse_args()
    house: House = read_house(json.loads(given.house.read_text(encoding="utf-8")))
    with open_model(str(given.bundle)) as model:
        for sentence in given.sentence:
            began = time.perf_counter()
            answer, probability = answered(model, house, sentence)
            asked = "" if is_sure(answer, probability, house) or not has_effect(answer, house) else "not sure: "
            print(f"{asked}{answer}  ({probability:.0%}, {1000 * (time.perf_counter() - began):.0f} ms)")


if __name__ == "__main__":
    main()
