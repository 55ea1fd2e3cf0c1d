"""How often a bundle does what a sentence asks: on generated houses, on utterances by people, on Home Assistant's own
test sentences, and on sentences that are no commands.

    python examples/house/evaluate.py BUNDLE --generated test.jsonl --negatives negatives.txt

An answer is right, asked (the speaker is asked first, and the call is right or wrong), refused (nothing would be done
though something is asked for), or wrong, without or with an effect. `--templates alone` judges Home Assistant's
templates, and `--templates first` the model after them.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from refusals import new_wordings

from merino_runtime.api import open_model
from merino_runtime.house.answer import CONFIRMED, answer
from merino_runtime.house.candidates import candidates
from merino_runtime.house.house import NO_EFFECT, TOOLS, Call, Device, House, has_effect, meanings, read_calls

HERE = Path(__file__).parent
WRONG = 10  # questions that a wrong call costs
COLUMNS = ("right", "asked, call right", "asked, call wrong", "refused", "wrong without effect", "wrong with effect")
Meanings = frozenset[tuple[Any, ...]]


class Given(NamedTuple):
    """What an answer does, whether the speaker is asked first, and the model's text and its probability."""

    done: Meanings
    asks: bool
    text: str
    probability: float


Answerer = Callable[[House, str], Given]


class Case(NamedTuple):
    """A sentence in a house. `wanted`: what right answers do; nothing if it asks for nothing."""

    house: House
    sentence: str
    wanted: tuple[Meanings, ...]
    kind: str


def read_house(content: dict[str, Any]) -> House:
    floors = tuple((floor, tuple(areas)) for floor, areas in content.get("floors", ()))
    return House(tuple(Device(*device) for device in content["devices"]), content["here"], floors)


def generated(path: Path, most: int) -> Iterator[Case]:
    """The first `most` of make_data.py's samples. Their prompts name targets of a part of the house."""
    for line in path.read_text(encoding="utf-8").splitlines()[:most]:
        row = json.loads(line)
        house = read_house(row["house"])
        yield Case(house, row["sentence"], (meanings(read_calls(row["completion"]) or [], house),), row["kind"])


def negatives(path: Path) -> Iterator[Case]:
    """Sentences that ask for nothing, one a line, spoken in turn in the houses of the utterances."""
    houses = list(dict.fromkeys(case.house for case in utterances(HERE / "slurp.json")))
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        yield Case(houses[place % len(houses)], line, (frozenset(),), "asks for nothing")


def utterances(path: Path) -> Iterator[Case]:
    content = json.loads(path.read_text(encoding="utf-8"))
    houses = {name: read_house(house) for name, house in content["houses"].items()}
    for row in content["sentences"]:
        house = houses[row["house"]]
        kind = row.get("kind", "asks" if row["actions"] else "asks for nothing")
        wanted = tuple(meanings([call_of(text)], house) for text in row["actions"]) or (frozenset(),)
        yield Case(house, row["sentence"], wanted, kind)


def call_of(text: str) -> Call:
    """A call in OpenAI's form."""
    call = json.loads(text)
    values = dict(call["arguments"])
    words, targets = values.pop("words", ""), tuple(values.pop("targets", ()))
    return Call(call["name"], targets, tuple(values.items()), words)


def home_assistant(folder: Path) -> Iterator[Case]:
    from intents import test_sentences

    for house, sentence, wanted, _ in test_sentences(folder):
        done = (frozenset([wanted]),) if wanted else (frozenset(),)
        yield Case(house, sentence.lower().rstrip("?!."), done, "in its domain" if wanted else "outside")


def column(case: Case, given: Given) -> str:
    acting = frozenset(call for call in given.done if call[0] not in NO_EFFECT)
    is_right = given.done in case.wanted or bool(acting) and acting in case.wanted
    if given.asks:
        return "asked, call right" if is_right else "asked, call wrong"
    if is_right:
        return "right"
    if not given.done:
        return "refused"
    return "wrong with effect" if acting else "wrong without effect"


def recalled(case: Case, row_calls: list[Call]) -> bool:
    """Whether the candidates have all targets of a generated sample."""
    shown = candidates(case.house, case.sentence)
    devices, labels = set(shown.devices), {label: device for device, label in case.house.labels().items()}
    return all(
        labels[target] in devices if target in labels else target in shown.targets(TOOLS[call.tool].domains)
        for call in row_calls for target in call.targets
    )  # fmt: skip


def judge(cases: list[Case], answerer: Answerer) -> tuple[dict[str, Counter[str]], list[dict[str, Any]]]:
    """(columns by kind, the answers that are not right)."""
    counts: dict[str, Counter[str]] = {}
    wrong = []
    for case in cases:
        given = answerer(case.house, case.sentence)
        found = column(case, given)
        counts.setdefault(case.kind, Counter())[found] += 1
        if found != "right":
            asked = {"sentence": case.sentence, "kind": case.kind, "here": case.house.here, "column": found}
            shown = [list(map(in_words, want)) for want in case.wanted[:2]]
            wrong.append({**asked, "wanted": shown, "answer": given.text, "probability": round(given.probability, 3)})
    return counts, wrong


def in_words(meaning: tuple[Any, ...]) -> str:
    tool, devices, values, words = meaning
    return f"{tool} {sorted(device.name for device in devices)[:5]} {sorted(values)} {words}"


def show(name: str, counts: dict[str, Counter[str]]) -> None:
    total = sum(counts.values(), Counter())
    listed = ", ".join(f"{total[one]} {one}" for one in COLUMNS)
    print(f"{name}: {sum(total.values())}: {listed}")


def model_answers(model: Any, templates: str, alone: bool, seconds: list[float]) -> Answerer:
    """`alone`: the model's own calls, each carried out."""

    def answered(house: House, sentence: str) -> Given:
        if templates:
            from intents import recognized

            found = recognized(house, sentence)
            if found or templates == "alone":
                return Given(found, False, "templates", 1.0)
        began = time.perf_counter()
        given = answer(model, house, sentence)
        seconds.append(time.perf_counter() - began)
        done = meanings(given.calls, house)
        return Given(done, given.asks and not alone, given.text, given.probability)

    return answered


def costs(model: Any, cases: list[Case]) -> dict[float, int]:
    """By least probability of calls that are carried out, the cost in questions: a wrong call costs as much as ten."""
    acted: list[tuple[float, bool]] = []
    for case in cases:
        found = answer(model, case.house, case.sentence)
        if has_effect(found.calls, case.house) and not any(call.tool in CONFIRMED for call in found.calls):
            acted.append((found.probability, meanings(found.calls, case.house) in case.wanted))
    limits = [place / 50 for place in range(51)]
    return {limit: sum(1 if sure < limit else WRONG * (not right) for sure, right in acted) for limit in limits}


def sets_of(given: argparse.Namespace) -> dict[str, list[Case]]:
    """`written`: by someone who had not seen the templates, in six houses. `written, then seen`: so too, and the
    templates were extended after a look at what a model got wrong there."""
    sets = {"utterances": list(utterances(HERE / "slurp.json"))}
    sets["written"] = list(utterances(HERE / "written.json"))
    sets["written, then seen"] = list(utterances(HERE / "seen.json"))
    new = new_wordings()
    for path in given.generated or []:
        cases = list(generated(path, given.most))
        sets[f"generated, {path.stem}"] = [case for case in cases if case.kind not in new]
        sets[f"generated, {path.stem}, new wordings"] = [case for case in cases if case.kind in new]
    if given.negatives:
        sets["negatives"] = list(negatives(given.negatives))
    if given.home_assistant:
        sets["Home Assistant's sentences"] = list(home_assistant(given.home_assistant))
    return {name: cases[: given.limit] for name, cases in sets.items() if cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--generated", type=Path, action="append", help="JSONL of make_data.py; may be repeated")
    parser.add_argument("--negatives", type=Path, help="sentences of make_data.py --negatives")
    parser.add_argument("--home-assistant", type=Path, help="a checkout of github.com/home-assistant/intents")
    parser.add_argument("--sure", type=Path, action="append", help="choose answer.py's SURE on these samples instead")
    parser.add_argument("--most", type=int, default=1000, help="of each file of generated samples")
    parser.add_argument("--limit", type=int, help="sentences of each set")
    parser.add_argument("--templates", choices=("first", "alone"), help="Home Assistant's, before the model or alone")
    parser.add_argument("--alone", action="store_true", help="each call of the model is carried out")
    parser.add_argument("--wrong", type=Path, help="file for the answers that are not right")
    parser.add_argument("-o", "--out", type=Path, help="record, as JSON")
    given = parser.parse_args()
    seconds: list[float] = []
    record: dict[str, Any] = {"templates": given.templates, "alone": given.alone, "sets": {}}
    wrong: list[dict[str, Any]] = []
    with open_model(str(given.bundle)) as model:
        if given.sure:
            found = costs(model, [case for path in given.sure for case in generated(path, given.most)])
            print(f"SURE = {min(found, key=lambda limit: (found[limit], limit))}; costs {found}")
            return
        answerer = model_answers(model, given.templates, given.alone, seconds)
        for name, cases in sets_of(given).items():
            counts, faults = judge(cases, answerer)
            wrong += [{"set": name, **fault} for fault in faults]
            record["sets"][name] = {kind: dict(counts[kind]) for kind in sorted(counts)}
            show(name, counts)
    if seconds:
        record["median_ms"] = round(1000 * statistics.median(seconds), 2)
        print(f"{record['median_ms']} ms for an answer, in the median")
    for path, content in ((given.out, json.dumps(record, indent=1)), (given.wrong, "\n".join(map(json.dumps, wrong)))):
        if path:
            path.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
