"""Cases: what one row of the benchmark measures. A prefill of 512 ids is `pp512`, 128 decode steps are `tg128`, and
`tg128 @ d512` are the same steps behind 512 cached tokens.

Turns a request into cases that fit the contexts of all bundles, or refuses it. Measures nothing.
"""
import re
from typing import List, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.backends.threads import check_threads
from merino_runtime.errors import MerinoError

DEFAULT_PROMPT, DEFAULT_STEPS = 512, 128
START_PROMPT = 8  # cached before the first decode step of a tg case that names no depth
MOST_VALUES = 4096  # of one list: it is easy to forget the step of a range
# 18 digits at most: Python refuses to read a number of thousands of them.
_RANGE = re.compile(r"(\d{1,18})(?:-(\d{1,18})(?:([+*])(\d{1,18}))?)?$")


class Case(NamedTuple):
    """What one row measures.

    pp: a timed prefill of `prompt` ids behind `depth` cached ones, no step. tg: a timed prefill of `prompt` ids, then
    `steps` timed decode steps, the first behind `decode_start` cached ids. The prefill chooses the first token, so the
    steps are the tokens after it.
    """
    name: str
    prompt: int
    steps: int
    depth: int = 0
    threads: Optional[int] = None  # None: the bundle's choice

    @property
    def decode_start(self) -> int:
        """Return the filled cache slots after the timed prefill."""
        return (self.depth or self.prompt) if self.steps else self.depth + self.prompt

    @property
    def untimed(self) -> int:
        """Return the ids that are cached once before the timing, and stay for all repetitions."""
        return self.decode_start - self.prompt

    @property
    def slots(self) -> int:
        """Return the cache slots that one repetition fills."""
        return self.decode_start + self.steps


class BenchRequest(NamedTuple):
    """What to measure. Lengths of None become the defaults, shortened to the bundles' contexts; given lengths that do
    not fit are refused."""
    prompts: Optional[Tuple[int, ...]] = None
    steps: Optional[Tuple[int, ...]] = None
    repetitions: int = 5
    threads: Tuple[int, ...] = ()  # (): the bundle's choice
    depths: Tuple[int, ...] = (0,)
    backend: Optional[str] = None  # of every bundle; None: as `choose_backend` does it


def parse_numbers(text: str, what: str, least: int = 0) -> Tuple[int, ...]:
    """Parse numbers and ranges in the syntax of llama-bench: `128,512`, `1-4` (each), `128-512+128`, `128-2048*2`.
    Return each value once, in the given order. Raise MerinoError for other text and for values below `least`."""
    values: List[int] = []
    for word in text.split(","):
        values.extend(_range_values(word.strip(), text, what))
        if len(values) > MOST_VALUES:
            raise MerinoError(f"{what} are {text!r}, more than {MOST_VALUES} of them. Give the range a step: "
                              "128-2048+128 or 128-2048*2.")
    wrong = [value for value in values if value < least]
    if wrong:
        raise MerinoError(f"{what} are {text!r}, {wrong[0]} is too small, allowed: {least} or more.")
    return tuple(sorted(set(values), key=values.index))


def parse_lengths(text: str) -> Tuple[int, ...]:
    """Parse lengths: "128,512" -> (128, 512); "0" -> (), which leaves out that kind of test."""
    return tuple(length for length in parse_numbers(text, "lengths") if length)


def parse_depths(text: str) -> Tuple[int, ...]:
    return parse_numbers(text, "depths")


def parse_threads(text: str) -> Tuple[int, ...]:
    return parse_numbers(text, "threads", least=1)


def prefill_case(prompt: int, depth: int = 0, threads: Optional[int] = None) -> Case:
    return Case(_name(f"pp{prompt}", depth), prompt, 0, depth, threads)


def decode_case(steps: int, depth: int = 0, threads: Optional[int] = None) -> Case:
    return Case(_name(f"tg{steps}", depth), min(START_PROMPT, depth or START_PROMPT), steps, depth, threads)


def cases_for(request: BenchRequest, contexts: Sequence[Tuple[str, int]]) -> Tuple[Case, ...]:
    """Return the cases of a request, the same for all bundles, so that rows can be compared. The default lengths are
    shortened to the smallest context, and the cases are named after the shortened lengths.

    contexts: (name, context) of each bundle. Raise MerinoError if a given length does not fit all of them, or nothing
    is left to measure.
    """
    check_request(request)
    name, context = min(contexts, key=lambda bundle: bundle[1]) if contexts else ("none", 2 * DEFAULT_PROMPT)
    deepest = max(request.depths)
    prompts, steps = request.prompts, request.steps
    if prompts is None:
        prompts = (min(DEFAULT_PROMPT, max(1, (context - deepest) // 2)),)
    if steps is None:
        steps = (min(DEFAULT_STEPS, max(1, context - (deepest or START_PROMPT))),)
    cases = tuple(case for threads in request.threads or (None,) for depth in request.depths
                  for case in [*(prefill_case(length, depth, threads) for length in prompts),
                               *(decode_case(length, depth, threads) for length in steps)])
    if not cases:
        raise MerinoError("nothing is left to measure: -p and -n are both 0. Give a length to one of them.")
    too_long = [case.name for case in cases if case.slots > context]
    if too_long:
        raise MerinoError(
            f"{', '.join(sorted(set(too_long), key=too_long.index))} does not fit the context of {name!r}, "
            f"which is {context}: allowed are -d and -p up to {context} together, and -n up to "
            f"{max(0, context - (deepest or START_PROMPT))} (decoding starts behind "
            f"{deepest or START_PROMPT} cached tokens). Request less, or export with a longer --context.")
    return cases


def _range_values(word: str, text: str, what: str) -> Sequence[int]:
    match = _RANGE.match(word)
    if not match:
        raise MerinoError(f"{what} are {text!r}, expected numbers such as 512 or 128,512, or ranges: 1-4, "
                          "128-512+128, 128-2048*2 (a length of 0: leave the test out).")
    first = int(match.group(1))
    last = first if match.group(2) is None else int(match.group(2))
    step = 1 if match.group(4) is None else int(match.group(4))
    multiplies = match.group(3) == "*"
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


def check_request(request: BenchRequest) -> None:
    """Raise MerinoError for fewer than one repetition, and for thread counts that this machine does not allow. Lengths
    and depths are checked where they are parsed."""
    if request.repetitions < 1:
        raise MerinoError(f"repetitions is {request.repetitions}, allowed: 1 or more.")
    for count in request.threads:
        check_threads("threads", count)
