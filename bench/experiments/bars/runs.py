"""Rounds of fresh processes that take turns, kept in a JSON file that grows by one run at a time.

What is in the file is not measured again, so a run can be stopped and gone on with, or given more rounds.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from entrants import Entrant, make, measure

from merino_bench.harness.cases import Case
from merino_bench.sensors.environment import machine
from merino_edge.storage.atomic import write_text
from merino_runtime.errors import MerinoError

sys.path.append(str(Path(__file__).parents[1]))
from write_record import with_this  # noqa: E402

SCHEMA = 1
TRIES = 3  # of a round that others disturbed


class Runs:
    """The file: `{schema, commits, machine, settings, entrants: {name: facts}, runs: [...]}`."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        if path.exists():
            self.content = json.loads(path.read_text())
            if self.content["settings"] != settings:
                raise MerinoError(f"{path} was begun with {self.content['settings']}, not {settings}: name another")
        else:
            self.content = {"schema": SCHEMA, "machine": machine(), "settings": settings, "entrants": {}, "runs": []}

    def find(self, **keys: Any) -> list[dict[str, Any]]:
        return [run for run in self.content["runs"] if all(run[key] == value for key, value in keys.items())]

    def good(self, **keys: Any) -> list[dict[str, Any]]:
        """Runs without an error, one per round: the undisturbed ones, or all where each was disturbed."""
        rounds = {run["round"]: run for run in self.find(**keys) if "error" not in run}
        quiet = {run["round"]: run for run in rounds.values() if not run.get("flags")}
        return list((quiet or rounds).values())

    def add(self, run: dict[str, Any]) -> None:
        self.content["runs"].append(run)
        self.save()

    def save(self) -> None:
        self.content["commits"] = with_this(self.content.get("commits", []))
        head = {key: value for key, value in self.content.items() if key != "runs"}
        lines = ",\n  ".join(json.dumps(run, allow_nan=False) for run in self.content["runs"])
        text = f'{json.dumps(head, indent=1)[:-2]},\n "runs": [\n  {lines}\n ]\n}}\n'
        write_text(self.path, text)

    def facts(self, entrant: Entrant) -> dict[str, Any]:
        return dict(self.content["entrants"].get(entrant.name, {}))


def take_turns(
    runs: Runs, section: str, tests: list[tuple[Entrant, Case]], rounds: int, repetitions: int, cache: Path
) -> None:
    """Round by round each test in turn. A run that others disturbed is kept and repeated at once, a few times. One that
    fails is a run with `error` and is not tried again; delete its line to try it anew."""
    for number in range(rounds):
        for entrant, case in tests:
            keys = {"section": section, "entrant": entrant.name, "test": case.name}
            while not finished(runs.find(**keys), number):
                print(f"{section} {number + 1}/{rounds}: {entrant.name} {case.name}", file=sys.stderr, flush=True)
                began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                try:
                    runs.content["entrants"][entrant.name] = make(entrant, cache)
                    found = measure(entrant, cache, case, repetitions)
                except MerinoError as error:
                    found = {"error": str(error)}
                runs.add({**keys, "round": number, "date": began, **found})


def finished(done: list[dict[str, Any]], number: int) -> bool:
    here = [run for run in done if run["round"] == number]
    failed = any("error" in run for run in done)
    return failed or len(here) >= TRIES or any(not run.get("flags") for run in here)
