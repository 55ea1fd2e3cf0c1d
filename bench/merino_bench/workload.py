"""What is measured: prefills of prompts (`pp512`) and decode steps (`tg128`), and how often.

Turns a request into cases that fit the bundles' context, or refuses it. Knows no clock and no model.
"""
from typing import NamedTuple, Optional, Sequence, Tuple

from merino_runtime.errors import MerinoError

USUAL_PROMPT, USUAL_STEPS = 512, 128
START_PROMPT = 8  # cached before the first decode step of a tg case


class Case(NamedTuple):
    """One row. pp: a prefill of `prompt` ids, no step. tg: a prefill of `prompt` ids, then `steps` timed
    decode steps; the prefill gives the first token, so the steps are the tokens after it."""
    name: str
    prompt: int
    steps: int


class Workload(NamedTuple):
    """Lengths of None are chosen to fit the bundles; those that were asked for are kept or refused."""
    prompts: Optional[Tuple[int, ...]] = None
    steps: Optional[Tuple[int, ...]] = None
    repetitions: int = 5
    threads: Optional[int] = None  # None: the bundle's choice
    seed: int = 0  # of the prompt's ids


def parse_lengths(text: str) -> Tuple[int, ...]:
    """"128,512" -> (128, 512); "0" -> (), which leaves that kind of test out."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() for word in words):
        raise MerinoError(f"lengths are {text!r}, expected numbers of tokens such as 512 or 128,512 "
                          "(0: leave the test out).")
    lengths = [int(word) for word in words if int(word)]
    return tuple(sorted(set(lengths), key=lengths.index))


def prefill_case(prompt: int) -> Case:
    return Case(f"pp{prompt}", prompt, 0)


def decode_case(steps: int) -> Case:
    return Case(f"tg{steps}", START_PROMPT, steps)


def cases_for(workload: Workload, contexts: Sequence[Tuple[str, int]]) -> Tuple[Case, ...]:
    """contexts: (name, context) of each bundle. All bundles get the same cases, so that rows compare: the
    usual lengths shrink to the smallest context, and the rows' names say so."""
    _check_counts(workload)
    name, context = min(contexts, key=lambda one: one[1]) if contexts else ("none", 2 * USUAL_PROMPT)
    if workload.prompts is None:
        prompts: Tuple[int, ...] = (min(USUAL_PROMPT, max(1, context // 2)),)
    else:
        prompts = workload.prompts
    if workload.steps is None:
        steps: Tuple[int, ...] = (min(USUAL_STEPS, max(1, context - START_PROMPT)),)
    else:
        steps = workload.steps
    cases = tuple(map(prefill_case, prompts)) + tuple(map(decode_case, steps))
    if not cases:
        raise MerinoError("nothing is left to measure: -p and -n are both 0. Give a length to one of them.")
    too_long = [case.name for case in cases if case.prompt + case.steps > context]
    if too_long:
        raise MerinoError(
            f"{', '.join(too_long)} does not fit the context of {name!r}, which is {context}: allowed are -p "
            f"up to {context} and -n up to {max(0, context - START_PROMPT)} (decoding starts behind "
            f"{START_PROMPT} cached tokens). Ask for less, or export with a longer --context.")
    return cases


def _check_counts(workload: Workload) -> None:
    rules = [("repetitions", workload.repetitions, 1), ("seed", workload.seed, 0)]
    if workload.threads is not None:
        rules.append(("threads", workload.threads, 1))
    rules.extend(("length", length, 1) for length in (workload.prompts or ()) + (workload.steps or ()))
    wrong = [f"{name} is {value}, allowed: {least} or more" for name, value, least in rules if value < least]
    if wrong:
        raise MerinoError(f"the benchmark cannot be run so: {'; '.join(wrong)}.")
