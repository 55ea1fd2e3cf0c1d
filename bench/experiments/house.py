"""How often a bundle does what a sentence asks: on generated houses, on utterances by people, on Home Assistant's own
test sentences, and on sentences that are no commands.

    python bench/experiments/house.py BUNDLE --home-assistant INTENTS

An answer is right, asked (the speaker is asked first, and the call is right or wrong), refused (nothing would be done
though something is asked for), or wrong, without or with an effect. `--templates alone` judges Home Assistant's
templates, and `--templates first` the model after them.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from merino_edge.house.intents import kind_of, timer_named
from merino_runtime.api import open_model
from merino_runtime.house.answer import CONFIRMED, answer, threshold
from merino_runtime.house.candidates import candidates
from merino_runtime.house.house import NO_EFFECT, TOOLS, Call, House, has_effect, meanings, read_calls

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "examples" / "house"))

from refusals import negatives as made_negatives  # noqa: E402
from samples import new_wordings, read_house, tests  # noqa: E402

SIZES = {"small": 0, "20": 20, "60": 60, "150": 150, "300": 300}  # of generated houses
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


def generated(count: int, size: int, seed: int, language: str = "en") -> Iterator[Case]:
    for row in tests(count, seed, size, "test", language):
        house = read_house(row["items"])
        wanted = meanings([named_timer(call, house) for call in read_calls(row["call"]) or []], house)
        yield Case(house, row["sentence"], (wanted,), row["family"])


def negatives(count: int, seed: int) -> Iterator[Case]:
    """Sentences that ask for nothing, spoken in turn in the houses of the utterances."""
    houses = list(dict.fromkeys(case.house for case in utterances(HERE / "house_slurp.json")))
    for place, line in enumerate(made_negatives(count, seed)):
        yield Case(houses[place % len(houses)], line, (frozenset(),), "asks for nothing")


def utterances(path: Path) -> Iterator[Case]:
    content = json.loads(path.read_text(encoding="utf-8"))
    houses = {name: read_house(house) for name, house in content["houses"].items()}
    for row in content["sentences"]:
        house = houses[row["house"]]
        kind = row.get("kind", "asks" if row["actions"] else "asks for nothing")
        calls = [named_timer(call_of(text), house) for text in row["actions"]]
        wanted = tuple(meanings([call], house) for call in calls) or (frozenset(),)
        yield Case(house, row["sentence"], wanted, kind)


def call_of(text: str) -> Call:
    """A call in OpenAI's form."""
    call = json.loads(text)
    values = dict(call["arguments"])
    words, targets = values.pop("words", ""), tuple(values.pop("targets", ()))
    return Call(call["name"], targets, tuple(values.items()), words)


def home_assistant(folder: Path, language: str) -> Iterator[Case]:
    from house_intents import test_sentences

    for house, sentence, wanted, _ in test_sentences(folder, language):
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


def recalled(house: House, sentence: str, calls: Sequence[Call]) -> bool:
    """Whether the candidates have all targets of a generated sample."""
    shown = candidates(house, sentence)
    devices, labels = set(shown.devices), {label: device for device, label in house.labels().items()}
    return all(
        labels[target] in devices if target in labels else target in shown.targets(TOOLS[call.tool].domains)
        for call in calls for target in call.targets
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


def model_answers(model: Any, templates: str, alone: bool, sure: float, seconds: list[float]) -> Answerer:
    """`alone`: the model's own calls, each carried out. `sure`: the bundle's limit for questions."""

    def answered(house: House, sentence: str) -> Given:
        if templates:
            from house_intents import recognized

            found = recognized(house, sentence)
            if found or templates == "alone":
                return Given(found, False, "templates", 1.0)
        began = time.perf_counter()
        given = answer(model, house, sentence, sure)
        seconds.append(time.perf_counter() - began)
        done = meanings([named_timer(call, house) for call in given.calls], house)
        return Given(done, given.asks and not alone, given.text, given.probability)

    return answered


def named_timer(call: Call, house: House) -> Call:
    """The call with a timer's name as Home Assistant gets it: its area, or its length in English; "all" for all."""
    if TOOLS[call.tool].domains or call.tool == "start_timer":
        return call
    named, every = timer_named(call, house), kind_of(call, house) == "cancel_timers"
    if every:
        return call._replace(words=f"all {named.get('area', '')}".strip())
    lengths = (f"{count} {slot[len('start_') : -1]}" for slot, count in named.items() if slot.startswith("start_"))
    return call._replace(words=next(lengths, named.get("area") or named.get("name") or ""))


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
    sets: dict[str, list[Case]] = {}
    if given.language == "en":
        sets["utterances"] = list(utterances(HERE / "house_slurp.json"))
        sets["written"] = list(utterances(HERE / "house_written.json"))
        sets["written, then seen"] = list(utterances(HERE / "house_seen.json"))
        sets["negatives"] = list(negatives(500, 3))
    new = new_wordings(given.language)
    for name, size in SIZES.items():
        cases = list(generated(250 if size else 1000, size, 4, given.language))
        sets[f"generated, {name}"] = [case for case in cases if case.kind not in new]
        sets[f"generated, {name}, new wordings"] = [case for case in cases if case.kind in new]
    if given.home_assistant:
        sets["Home Assistant's sentences"] = list(home_assistant(given.home_assistant, given.language))
    return {name: cases[: given.limit] for name, cases in sets.items() if cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--home-assistant", type=Path, help="a checkout of github.com/home-assistant/intents")
    parser.add_argument("--language", default="en", help="of the bundle and the sentences")
    parser.add_argument("--sure", type=int, help="choose answer.py's SURE on so many generated sentences instead")
    parser.add_argument("--candidates", type=int, help="count how many of so many sentences' targets are candidates")
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
        if given.candidates:
            for name, size in SIZES.items():
                cases = list(tests(given.candidates, 5, size, "test", given.language))
                found = sum(
                    recalled(read_house(row["items"]), row["sentence"], read_calls(row["call"]) or []) for row in cases
                )
                print(f"{name}: the candidates of {found} of {len(cases)} sentences have all targets")
            return
        if given.sure:
            found = costs(model, list(generated(given.sure, 0, 11, given.language)))
            print(f"SURE = {min(found, key=lambda limit: (found[limit], limit))}; costs {found}")
            return
        answerer = model_answers(model, given.templates, given.alone, threshold(str(given.bundle)), seconds)
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
