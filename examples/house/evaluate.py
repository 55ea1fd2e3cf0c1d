"""How often a bundle does what a sentence asks: exact actions on generated houses, on utterances by people, and how
many sentences that are no commands it acts upon. Answers are greedy and constrained to the tools of the house.

    python examples/house/evaluate.py BUNDLE --generated test.jsonl --negatives negatives.txt
"""

import argparse
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from agreement import least_probability, to_choose_again
from merino_runtime.house.house import REFUSAL, Device, House, device_tool, meaning, prompt, read_action, tools
from refusals import new_wordings

from merino_runtime.api import LanguageModel, open_model
from merino_runtime.generation.generate import Token, TokenLogprobs
from merino_runtime.sampling import GREEDY

HERE = Path(__file__).parent
MOST_TOKENS = 96
Answer = Callable[[House, str], str]


class Case(NamedTuple):
    """A sentence in a house. `actions`: those that do what it asks, as texts; none where it asks for nothing."""

    house: House
    sentence: str
    actions: list[str]
    kind: str


def generated(path: Path, most: int) -> Iterator[Case]:
    """Of make_data.py's samples the first `most`."""
    for line in path.read_text(encoding="utf-8").splitlines()[:most]:
        row = json.loads(line)
        yield Case(read_house(row["house"]), row["sentence"], [row["completion"]], row["kind"])


def negatives(path: Path) -> Iterator[Case]:
    """Sentences that ask for nothing, one a line, spoken in turn in the houses of the utterances."""
    houses = list(dict.fromkeys(case.house for case in utterances()))
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        yield Case(houses[place % len(houses)], line, [], "asks for nothing")


def utterances(path: Path = HERE / "slurp.json") -> Iterator[Case]:
    content = json.loads(path.read_text(encoding="utf-8"))
    houses = {name: read_house(house) for name, house in content["houses"].items()}
    for row in content["sentences"]:
        kind = row.get("kind", "asks" if row["actions"] else "asks for nothing")
        yield Case(houses[row["house"]], row["sentence"], row["actions"], kind)


def read_house(content: dict[str, Any]) -> House:
    return House(tuple(Device(name, domain, area) for name, domain, area in content["devices"]), content["here"])


def is_right(case: Case, answer: str) -> bool:
    """Whether the answer does what is asked; where nothing is, whether it refuses."""
    action = read_action(answer)
    if action is None:
        return False
    wanted = [read_action(text) for text in case.actions] or [REFUSAL]
    return meaning(action, case.house) in {meaning(each, case.house) for each in wanted}


def has_effect(answer: str, house: House) -> bool:
    """Whether the answer does anything to a device."""
    action = read_action(answer)
    return action is not None and meaning(action, house) != meaning(REFUSAL, house)


def judge(cases: list[Case], answer: Answer) -> tuple[Counter[str], Counter[str], list[dict[str, Any]]]:
    """(right answers by kind, cases by kind, what was wrong, and whether it had an effect)."""
    right: Counter[str] = Counter()
    wrong = []
    for case in cases:
        text = answer(case.house, case.sentence)
        if is_right(case, text):
            right[case.kind] += 1
        else:
            asked = {"sentence": case.sentence, "kind": case.kind, "right": case.actions[:3]}
            wrong.append({**asked, "answer": text, "acted": has_effect(text, case.house)})
    return right, Counter(case.kind for case in cases), wrong


def show(name: str, right: Counter[str], count: Counter[str], acted: int) -> None:
    """`acted`: wrong answers with an effect."""
    print(f"{name}: {sum(right.values())} of {sum(count.values())} right, {acted} wrong with an effect")
    for kind in sorted(count):
        print(f"  {kind}: {right[kind]} of {count[kind]}, {right[kind] / count[kind]:.1%}")


def answered(model: LanguageModel, house: House, sentence: str) -> tuple[str, float]:
    """The answer and its probability. Where other targets than those of the first answer explain its words better, the
    model chooses again among them."""
    text, probability = decoded(model, house, sentence, tools(house))
    action = read_action(text)
    better = to_choose_again(action, house) if action else {}
    return chosen(model, house, sentence, action.words, better) if action and better else (text, probability)


def chosen(
    model: LanguageModel, house: House, sentence: str, words: str, better: dict[str, list[list[str]]]
) -> tuple[str, float]:
    """The answer with these words; `better`: by tool, for each place in its targets what to choose among."""
    tools = [device_tool(tool, {"const": words}, one_of_each(targets)) for tool, targets in better.items()]
    return decoded(model, house, sentence, tools)


def one_of_each(targets: list[list[str]]) -> dict[str, Any]:
    count = {"minItems": len(targets), "maxItems": len(targets)}
    return {"type": "array", "prefixItems": [{"enum": each} for each in targets], **count}


def decoded(model: LanguageModel, house: House, sentence: str, tools: list[dict[str, Any]]) -> tuple[str, float]:
    """Greedy, and constrained to the tools -> the answer, and the probability that the model gives to its tokens,
    without those that the tools force."""
    asked = prompt(house, sentence)
    events = list(model.generate(asked, tools=tools, max_new_tokens=MOST_TOKENS, sampling=GREEDY, top=0))
    text = "".join(event.text for event in events if isinstance(event, Token))
    return text, math.exp(sum(event.logprob for event in events if isinstance(event, TokenLogprobs)))


def is_sure(text: str, probability: float, house: House) -> bool:
    """Whether the call is carried out without a question to the speaker."""
    action = read_action(text)
    return action is None or probability >= least_probability(action, house)


def model_answers(model: LanguageModel, alone: bool, seconds: list[float]) -> Answer:
    """What is done: where the model is not sure the speaker is asked, so nothing is. `alone`: the first answer of the
    model is, whatever its targets and its probability."""

    def answer(house: House, sentence: str) -> str:
        began = time.perf_counter()
        text, probability = decoded(model, house, sentence, tools(house)) if alone else answered(model, house, sentence)
        seconds.append(time.perf_counter() - began)
        return text if alone or is_sure(text, probability, house) else REFUSAL.text()

    return answer


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """With the options that `sets_of` reads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generated", type=Path, help="JSONL of make_data.py")
    parser.add_argument("--negatives", type=Path, help="sentences of make_data.py --negatives")
    parser.add_argument("--most", type=int, default=1000, help="of the generated samples")
    return parser


def sets_of(given: argparse.Namespace) -> dict[str, list[Case]]:
    """`written`: by someone who had not seen the templates, in six houses. `written, then seen`: so too, and the
    templates were extended after a look at what a model got wrong there."""
    sets = {"utterances": list(utterances())}
    sets["written"] = list(utterances(HERE / "written.json"))
    sets["written, then seen"] = list(utterances(HERE / "seen.json"))
    if given.generated:
        cases, new = list(generated(given.generated, given.most)), new_wordings()
        sets["generated"] = [case for case in cases if case.kind not in new]
        sets["generated, new wordings"] = [case for case in cases if case.kind in new]
    if given.negatives:
        sets["negatives"] = list(negatives(given.negatives))
    return sets


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--alone", action="store_true", help="the model's first answer, each call carried out")
    parser.add_argument("--wrong", type=Path, help="file for the answers that are wrong")
    parser.add_argument("-o", "--out", type=Path, help="record, as JSON")
    given = parser.parse_args()
    seconds: list[float] = []
    record: dict[str, Any] = {"bundle": given.bundle.name, "alone": given.alone, "sets": {}, "wrong with an effect": {}}
    wrong: list[dict[str, Any]] = []
    with open_model(str(given.bundle)) as model:
        answer = model_answers(model, given.alone, seconds)
        for name, cases in sets_of(given).items():
            right, count, faults = judge(cases, answer)
            wrong += [{"set": name, **fault} for fault in faults]
            record["sets"][name] = {kind: [right[kind], count[kind]] for kind in sorted(count)}
            record["wrong with an effect"][name] = acted = sum(fault["acted"] for fault in faults)
            show(name, right, count, acted)
    record["median_ms"] = round(1000 * statistics.median(seconds), 2)
    print(f"{record['median_ms']} ms for an answer, in the median")
    for path, content in ((given.out, json.dumps(record, indent=1)), (given.wrong, "\n".join(map(json.dumps, wrong)))):
        if path:
            path.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
