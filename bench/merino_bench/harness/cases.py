"""What is measured: prefills of prompts (`pp512`) and decode steps (`tg128`), behind how many cached tokens
(`tg128 @ d512`), on how many threads, and how often.

Turns a request into cases that fit the bundles' context, or refuses it. Knows no clock and no model.
"""
import re
from typing import List, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.errors import MerinoError

USUAL_PROMPT, USUAL_STEPS = 512, 128
START_PROMPT = 8  # cached before the first decode step of a tg case that names no depth
MOST_VALUES = 4096  # of one list: a range without its step is easily written
_RANGE = re.compile(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?$")


class Case(NamedTuple):
    """One row. pp: a timed prefill of `prompt` ids behind `depth` cached ones, no step. tg: a timed prefill of
    `prompt` ids, then `steps` timed decode steps, the first of which finds `decode_start` ids cached; the
    prefill gives the first token, so the steps are the tokens after it."""
    name: str
    prompt: int
    steps: int
    depth: int = 0
    threads: Optional[int] = None  # None: the bundle's choice

    @property
    def decode_start(self) -> int:
        """Filled cache slots after the timed prefill."""
        return (self.depth or self.prompt) if self.steps else self.depth + self.prompt

    @property
    def untimed(self) -> int:
        """Ids that are cached once, before the clock runs, and stay for all repetitions."""
        return self.decode_start - self.prompt

    @property
    def slots(self) -> int:
        """Cache slots that a round fills."""
        return self.decode_start + self.steps


class Workload(NamedTuple):
    """Lengths of None are chosen to fit the bundles; those that were asked for are kept or refused."""
    prompts: Optional[Tuple[int, ...]] = None
    steps: Optional[Tuple[int, ...]] = None
    repetitions: int = 5
    threads: Tuple[int, ...] = ()  # (): the bundle's choice
    depths: Tuple[int, ...] = (0,)
    seed: int = 0  # of the prompt's ids


def parse_numbers(text: str, what: str, least: int = 0) -> Tuple[int, ...]:
    """A list of numbers and ranges as llama-bench takes them: `128,512`, `1-4` (each), `128-512+128`,
    `128-2048*2`. Each value once, in the order given."""
    values: List[int] = []
    for word in text.split(","):
        values.extend(_range_values(word.strip(), text, what))
        if len(values) > MOST_VALUES:
            raise MerinoError(f"{what} are {text!r}, more than {MOST_VALUES} of them. Give the range a step: "
                              "128-2048+128 or 128-2048*2.")
    wrong = [value for value in values if value < least]
    if wrong:
        raise MerinoError(f"{what} are {text!r}, {wrong[0]} is below the least allowed, {least}.")
    return tuple(sorted(set(values), key=values.index))


def parse_lengths(text: str) -> Tuple[int, ...]:
    """"128,512" -> (128, 512); "0" -> (), which leaves that kind of test out."""
    return tuple(length for length in parse_numbers(text, "lengths") if length)


def parse_depths(text: str) -> Tuple[int, ...]:
    return parse_numbers(text, "depths")


def parse_threads(text: str) -> Tuple[int, ...]:
    return parse_numbers(text, "threads", least=1)


def prefill_case(prompt: int, depth: int = 0, threads: Optional[int] = None) -> Case:
    return Case(_name(f"pp{prompt}", depth), prompt, 0, depth, threads)


def decode_case(steps: int, depth: int = 0, threads: Optional[int] = None) -> Case:
    return Case(_name(f"tg{steps}", depth), min(START_PROMPT, depth or START_PROMPT), steps, depth, threads)


def cases_for(workload: Workload, contexts: Sequence[Tuple[str, int]]) -> Tuple[Case, ...]:
    """contexts: (name, context) of each bundle. All bundles get the same cases, so that rows compare: the
    usual lengths shrink to the smallest context, and the rows' names say so."""
    _check_counts(workload)
    name, context = min(contexts, key=lambda one: one[1]) if contexts else ("none", 2 * USUAL_PROMPT)
    deepest = max(workload.depths)
    prompts, steps = workload.prompts, workload.steps
    if prompts is None:
        prompts = (min(USUAL_PROMPT, max(1, (context - deepest) // 2)),)
    if steps is None:
        steps = (min(USUAL_STEPS, max(1, context - (deepest or START_PROMPT))),)
    cases = tuple(case for threads in workload.threads or (None,) for depth in workload.depths
                  for case in [*(prefill_case(one, depth, threads) for one in prompts),
                               *(decode_case(one, depth, threads) for one in steps)])
    if not cases:
        raise MerinoError("nothing is left to measure: -p and -n are both 0. Give a length to one of them.")
    too_long = [case.name for case in cases if case.slots > context]
    if too_long:
        raise MerinoError(
            f"{', '.join(sorted(set(too_long), key=too_long.index))} does not fit the context of {name!r}, "
            f"which is {context}: allowed are -d and -p up to {context} together, and -n up to "
            f"{max(0, context - (deepest or START_PROMPT))} (decoding starts behind "
            f"{deepest or START_PROMPT} cached tokens). Ask for less, or export with a longer --context.")
    return cases


def _range_values(word: str, text: str, what: str) -> Sequence[int]:
    found = _RANGE.match(word)
    if not found:
        raise MerinoError(f"{what} are {text!r}, expected numbers such as 512 or 128,512, or ranges: 1-4, "
                          "128-512+128, 128-2048*2 (a length of 0: leave the test out).")
    first = int(found.group(1))
    last = first if found.group(2) is None else int(found.group(2))
    step = 1 if found.group(4) is None else int(found.group(4))
    multiplies = found.group(3) == "*"
    if last < first or step < (2 if multiplies else 1) or (multiplies and not first):
        raise MerinoError(f"{what} are {text!r}: the range {word!r} never ends or holds nothing. Allowed: "
                          "FIRST-LAST, FIRST-LAST+STEP with STEP from 1, FIRST-LAST*FACTOR with FACTOR from "
                          "2 and FIRST from 1.")
    values: List[int] = []
    while first <= last and len(values) <= MOST_VALUES:
        values.append(first)
        first = first * step if multiplies else first + step
    return values


def _name(test: str, depth: int) -> str:
    return f"{test} @ d{depth}" if depth else test


def _check_counts(workload: Workload) -> None:
    rules = [("repetitions", workload.repetitions, 1), ("seed", workload.seed, 0)]
    rules.extend(("threads", threads, 1) for threads in workload.threads)
    rules.extend(("depth", depth, 0) for depth in workload.depths)
    rules.extend(("length", length, 1) for length in (workload.prompts or ()) + (workload.steps or ()))
    wrong = [f"{name} is {value}, allowed: {least} or more" for name, value, least in rules if value < least]
    if wrong or not workload.depths:
        raise MerinoError(f"the benchmark cannot be run so: {'; '.join(wrong) or 'no depth is given'}.")
