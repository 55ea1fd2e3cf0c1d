"""Measure what guesses from repetitions in the text save: runs of the graph, right guesses and CPU seconds for five
kinds of text, with and without guesses, greedy and sampled. The answers must be equal.

    python bench/experiments/guesses.py BUNDLE... [-o bench/results/guesses-NAME.json]
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from write_record import write_record

from merino_runtime.api import LanguageModel, open_model
from merino_runtime.generation.generate import Done, Token
from merino_runtime.sampling import Sampling

CODE = '''class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance += amount
        return self.balance

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
        return self.balance
'''
DEVICES = (
    '{"devices": [{"id": "light.kitchen", "state": "on", "brightness": 120}, {"id": "light.bedroom", "state": "off", '
    '"brightness": 0}, {"id": "switch.fan", "state": "on"}, {"id": "sensor.garden", "state": "21.5"}]}'
)
BOARD = (
    "The Raspberry Pi Zero 2 W is a small computer. It has a quad-core Cortex-A53 processor and 512 MB of memory. It "
    "costs 15 dollars. It is used for cameras, sensors and home automation. It has wireless LAN and Bluetooth."
)
TASKS = {
    "code": f"Rename the class Account to Wallet and return the whole code.\n```python\n{CODE}```",
    "json": f"Return this JSON again with the bedroom light on:\n{DEVICES}",
    "summary": f"Summarize: {BOARD}",
    "prose": "Write a short story about a lighthouse keeper who finds a letter.",
    "answer": "What are three good habits for a healthy life, and why?",
}
REPEATS = 3
CLAIM = "Runs of the graph and CPU seconds that guesses from repetitions in the text save"


def answered(model: LanguageModel, prompt: str, lookup: bool, temperature: float) -> dict[str, Any]:
    """Return the ids, the counts, and the median CPU seconds of the decode steps."""
    seconds = []
    for _ in range(REPEATS):
        model.backend.truncate(0)
        sampling = Sampling(temperature=temperature, seed=1)
        generation = model.generate(prompt, max_new_tokens=200, sampling=sampling, lookup=lookup)
        ids = [next(generation).id]  # type: ignore[union-attr]
        start = time.process_time()
        for event in generation:
            if isinstance(event, Token):
                ids.append(event.id)
        assert isinstance(event, Done)
        seconds.append(time.process_time() - start)
    return {"ids": ids, "guessed": event.guessed, "cpu_s": sorted(seconds)[REPEATS // 2]}


def row_cost(model: LanguageModel, behind: int = 256) -> dict[int, float]:
    """Return the CPU time of a run by its number of positions, relative to a decode step."""
    backend, result = model.backend, {}
    for count in (1, 2, 3, 5, 9):
        seconds = []
        for _ in range(5):
            backend.truncate(0)
            backend.prefill(list(range(100, 100 + behind)))
            start = time.process_time()
            backend.verify(list(range(50, 50 + count)))
            seconds.append(time.process_time() - start)
        result[count] = sorted(seconds)[len(seconds) // 2]
    return {count: round(took / result[1], 2) for count, took in result.items()}


def measured(folder: str) -> dict[str, Any]:
    rows = []
    with open_model(folder, threads=1) as model:
        for task, text in TASKS.items():
            prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
            for temperature in (0.0, 0.8):
                answered(model, prompt, True, temperature)  # warm up
                plain, guessing = (answered(model, prompt, lookup, temperature) for lookup in (False, True))
                tokens = len(plain["ids"])
                rows.append({
                    "task": task, "temperature": temperature, "tokens": tokens, "guessed": guessing["guessed"],
                    "runs": tokens - guessing["guessed"], "same": plain["ids"] == guessing["ids"],
                    "cpu_s": round(plain["cpu_s"], 3), "cpu_s_with_guesses": round(guessing["cpu_s"], 3),
                })  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
        name = f"{model.bundle.name} {model.bundle.precision}"
        return {f"{name} rows": rows, f"{name} row_cost": row_cost(model)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("-o", dest="output", type=Path, required=True)
    arguments, record = parser.parse_args(), {}
    for folder in arguments.bundles:
        record.update(measured(folder))
    write_record(arguments.output, record, CLAIM, shlex.join(["python", *sys.argv]))


if __name__ == "__main__":
    main()
