"""What a constraint adds to a decode step: the masks of the built-in automaton and of llguidance, and masked sampling,
against the step and sampling without it.

    python bench/experiments/constraint_cost.py BUNDLE -o bench/results/constraint-cost-x86-2cores.json

Any bundle with a tokenizer. One process; steps and constraints alternate, answer by answer; medians over answers.
`first`: a constraint that was made for this answer, so that no mask is kept; `kept`: one that has answered before.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
from write_record import kept_record, table, write_record

from merino_runtime.api import open_model
from merino_runtime.errors import MerinoError
from merino_runtime.generation.constraints import Grammar, schema_node
from merino_runtime.generation.constraints.automaton import Automaton
from merino_runtime.generation.constraints.guidance import guided
from merino_runtime.generation.constraints.tokens import Trie
from merino_runtime.generation.sampler import Sampler
from merino_runtime.sampling import Sampling

ROUNDS, STEPS = 10, 12
CASES = {
    "light": (
        {"type": "object", "properties": {
            "room": {"enum": ["kitchen", "bedroom", "bathroom"]}, "on": {"type": "boolean"},
            "brightness": {"type": "integer", "minimum": 0, "maximum": 100},
        }, "required": ["room", "on", "brightness"]},
        {"room": "bedroom", "on": True, "brightness": 40},
    ),
    "text": (
        {"type": "object", "properties": {
            "title": {"type": "string", "maxLength": 60}, "summary": {"type": "string", "maxLength": 400},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 5},
        }, "required": ["title", "summary", "tags"]},
        {"title": "The old mill", "summary": "The river runs past the old mill, and the miller counts the sacks of "
         "flour in the evening. In the morning the baker buys three of them.", "tags": ["river", "mill", "bread"]},
    ),
}  # fmt: skip


def ms_of(work, *arguments):
    start = time.perf_counter()
    result = work(*arguments)
    return result, 1e3 * (time.perf_counter() - start)


def own(trie, schema, eos_ids):
    automaton = Automaton(trie.spelled)
    return Grammar(trie, automaton, schema_node(automaton, schema), eos_ids)


def by_llguidance(trie, schema, eos_ids):
    return guided(trie, eos_ids, {"schema": schema}, MerinoError("the schema is refused"))


def answer(grammar, ids, logits, sampler):
    """ms of each token that was not forced, and how many were."""
    state, forced, costs, left = grammar.start(), 0, [], list(ids)
    while left and not state.ended:
        start = time.perf_counter()
        tokens = state.forced()
        if tokens and left[: len(tokens)] == tokens:
            for token in tokens:
                state.advance(token)
            forced += len(tokens)
            left = left[len(tokens) :]
            continue
        sampler.sample(logits, state.allowed())
        state.advance(left.pop(0))
        costs.append(1e3 * (time.perf_counter() - start))
    assert state.finished and not left
    return costs, forced


def measure(folder):
    rows = []
    with open_model(folder) as model:
        trie, made_ms = ms_of(Trie, model.tokenizer)
        eos_ids, backend = model.bundle.stop_ids, model.backend
        sampling = Sampling(seed=0)
        logits = np.random.default_rng(0).normal(size=backend.vocab).astype(np.float32)
        for case, (schema, value) in CASES.items():
            ids = model.tokenizer.encode("\n" + json.dumps(value, separators=(",", ":")), False)
            ids = ids[len(model.tokenizer.encode("\n", False)) :]
            for engine, made in (("own", own), ("llguidance", by_llguidance)):
                try:
                    kept = made(trie, schema, eos_ids)
                except MerinoError as error:  # llguidance takes no tokenizer that was made up for random weights
                    print(f"{case}, {engine}: {error}")
                    continue
                answer(kept, ids, logits, Sampler(sampling))
                step_ms, choice_ms, first, again = [], [], [], []
                for _ in range(ROUNDS):
                    backend.truncate(0)
                    backend.prefill(ids)
                    step_ms += [ms_of(backend.step, ids[0])[1] for _ in range(STEPS)]
                    free = Sampler(sampling)
                    choice_ms += [ms_of(free.sample, logits)[1] for _ in range(STEPS)]
                    grammar, compile_ms = ms_of(made, trie, schema, eos_ids)
                    costs, forced = answer(grammar, ids, logits, Sampler(sampling))
                    first.append(statistics.mean(costs) + compile_ms / len(ids))
                    again.append(statistics.mean(answer(kept, ids, logits, Sampler(sampling))[0]))
                step, choice = statistics.median(step_ms), statistics.median(choice_ms)
                rows.append({
                    "case": case, "engine": engine, "tokens": len(ids), "forced": forced, "step_ms": step,
                    "choice_ms": choice, "trie_ms": made_ms,
                    "first_ms": statistics.median(first), "kept_ms": statistics.median(again),
                    "first_added": (statistics.median(first) - choice) / step,
                    "kept_added": (statistics.median(again) - choice) / step,
                })  # fmt: skip
        return {"bundle": model.bundle.name, "params": model.bundle.params, "precision": model.bundle.precision,
                "vocab": backend.vocab, "rows": rows}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("-o", type=Path, required=True)
    parser.add_argument("--disturbed", action="store_true", help="other programs ran beside it")
    given = parser.parse_args()
    measured = dict(measure(given.bundle), disturbed=given.disturbed)
    record = kept_record(given.o, {"schema": 1, "bundles": {}})
    record["bundles"][measured["bundle"] + " " + measured["precision"]] = measured
    write_record(given.o, record)
    print(table(
        ("answer", "engine", "tokens", "forced", "step ms", "first: added", "kept: added"),
        [(row["case"], row["engine"], str(row["tokens"]), str(row["forced"]), f"{row['step_ms']:.2f}",
          f"{row['first_added']:.1%}", f"{row['kept_added']:.1%}") for row in measured["rows"]],
    ))  # fmt: skip


if __name__ == "__main__":
    main()
