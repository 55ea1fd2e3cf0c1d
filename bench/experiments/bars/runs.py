"""Rounds of interleaved processes in a JSON file that grows by one run at a time; their medians and ratios as Markdown.

What is in the file is not measured again, so a run can be stopped and gone on with, or given more rounds.
"""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from entrants import PROBE, VOCAB_CUT, Entrant, make, measure
from plan import Bar, Section

from merino_bench.harness.cases import Case
from merino_bench.harness.pairs import Ratio, paired_ratio
from merino_bench.sensors.environment import machine
from merino_edge.storage.atomic import write_text
from merino_runtime.errors import MerinoError

sys.path.append(str(Path(__file__).parents[1]))
from write_record import with_this  # noqa: E402

SCHEMA = 1
TRIES = 3  # of a round that others disturbed
CEILING_BAR = 0.75
READ = "weights read per token, 10^6 bytes"


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


def values_ms(runs: Runs, phase: str, **keys: Any) -> dict[int, float]:
    """By round: ms of a prefill, or of a decode step; the median over the process's repetitions."""
    found = runs.good(**keys)
    if phase == "prefill":
        return {run["round"]: median(run["prefill_ms"]) for run in found}
    return {run["round"]: median(mean(steps) for steps in run["step_ms"]) for run in found}


def ratio_of(runs: Runs, fast: Entrant, slow: Entrant, phase: str, **keys: Any) -> Ratio | None:
    """slow's time over fast's, of the rounds that both have: each round is a pair of processes."""
    fast_ms, slow_ms = (values_ms(runs, phase, entrant=one.name, **keys) for one in (fast, slow))
    both = sorted(set(fast_ms) & set(slow_ms))
    return paired_ratio([slow_ms[one] for one in both], [fast_ms[one] for one in both]) if both else None


def disturbed(runs: Runs, entrants: Iterable[Entrant], **keys: Any) -> bool:
    return any(run["flags"] for one in entrants for run in runs.good(entrant=one.name, **keys))


def ratio_cells(ratio: Ratio | None) -> tuple[str, str]:
    if ratio is None:
        return "-", "-"
    return f"{ratio.value:.2f}x", "{:.2f} to {:.2f}".format(*ratio.interval) if ratio.interval else "-"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def times_table(runs: Runs, section: str, entrants: Sequence[Entrant]) -> str:
    rows = []
    for entrant in dict.fromkeys(entrants):
        found = runs.find(section=section, entrant=entrant.name)
        failed = [run["error"] for run in found if "error" in run]
        facts, good = runs.facts(entrant), runs.good(section=section, entrant=entrant.name)
        if entrant.engine == PROBE or not found:
            continue
        if failed or not good:
            rows.append([entrant.name, *["-"] * 6, f"failed: {' '.join(failed)}"])
            continue
        keys = {"section": section, "entrant": entrant.name}
        decode, prefill = (median(values_ms(runs, phase, **keys).values()) for phase in ("decode", "prefill"))
        flags = [f"{flag} in all rounds" for flag in sorted({flag for run in good for flag in run["flags"]})]
        rows.append([
            entrant.name, good[0]["engine"], str(good[0]["threads"]), f"{facts['decode_weight_bytes'] / 1e6:.1f}",
            f"{decode:.2f}", f"{prefill:.1f}", f"{median(run['peak_rss_mb'] for run in good):.0f}",
            "; ".join([*flags, *facts["notes"], *good[0]["notes"]]),
        ])  # fmt: skip
    titles = ("entrant", "engine", "threads", READ, "decode ms", "prefill ms", "peak RSS MB", "notes")
    return table(titles, rows)


def bars_table(runs: Runs, section: str, bars: Sequence[Bar]) -> str:
    rows = []
    for bar in bars:
        found = ratio_of(runs, bar.fast, bar.slow, bar.phase, section=section)
        least = "-" if bar.least is None else f"{bar.least:g}x"
        met = "-" if bar.least is None or found is None else "yes" if found.value >= bar.least else "NO"
        met += " (disturbed)" * disturbed(runs, (bar.fast, bar.slow), section=section)
        rows.append([bar.phase, bar.fast.name, bar.slow.name, bar.kind, *ratio_cells(found), least, met])
    return table(["phase", "faster", "slower", "kind", "ratio", "95 %", "bar", "met"], rows)


def vocabulary_table(runs: Runs, section: str, entrants: Sequence[Entrant]) -> str:
    """What the LM head costs: bytes as stored, time as the difference to the same model with a small vocabulary."""
    by_name = {entrant.name: entrant for entrant in entrants}
    rows = []
    for entrant in by_name.values():
        cut = by_name.get(entrant._replace(model=f"{entrant.model}-v{VOCAB_CUT}").name)
        if cut is None:
            continue
        whole_ms, cut_ms = (
            list(values_ms(runs, "decode", section=section, entrant=one.name).values()) for one in (entrant, cut)
        )
        if not whole_ms or not cut_ms:
            continue
        read, read_cut = (runs.facts(one)["decode_weight_bytes"] for one in (entrant, cut))
        rows.append([
            entrant.name, f"{read / 1e6:.1f}", f"{(read - read_cut) / read:.0%}", f"{median(whole_ms):.2f}",
            f"{median(cut_ms):.2f}", f"{1 - median(cut_ms) / median(whole_ms):.0%}",
        ])  # fmt: skip
    beyond = f"of it beyond {VOCAB_CUT} ids"
    titles = ("entrant", READ, beyond, "decode ms", f"with {VOCAB_CUT} ids", "the rest's share of time")
    return "\nWhat the vocabulary contributes:\n\n" + table(titles, rows)


def ceiling_table(runs: Runs, section: str, entrants: Sequence[Entrant], cached: float) -> str:
    """cached: entries of the cache at the mean step."""
    probes = [run["read_gb_s"] for run in runs.good(section=section, entrant=PROBE)]
    rows = []
    for entrant in entrants:
        if entrant.engine == PROBE:
            continue
        times = list(values_ms(runs, "decode", section=section, entrant=entrant.name).values())
        if not times or not probes:
            continue
        facts = runs.facts(entrant)
        read = facts["decode_weight_bytes"] + facts["kv_slot_bytes"] * cached
        gb_s = read / median(times) / 1e6
        share = gb_s / median(probes)
        met = "yes" if share >= CEILING_BAR else "NO"
        met += " (disturbed)" * disturbed(runs, [entrant], section=section)
        rows.append([entrant.name, f"{read / 1e6:.1f}", f"{gb_s:.1f}", f"{median(probes):.1f}", f"{share:.0%}", met])
    titles = ("entrant", "read per token with KV, 10^6 bytes", "GB/s", "probed GB/s", "share", f"bar {CEILING_BAR:.0%}")
    return table(titles, rows)


def report(runs: Runs, name: str, section: Section, cached: float) -> str:
    parts = [f"\n### {section.title}\n"]
    if section.bars:
        parts += [times_table(runs, name, section.entrants), bars_table(runs, name, section.bars)]
    if name == "64m":
        parts.append(vocabulary_table(runs, name, section.entrants))
    if name == "ceiling":
        parts.append(ceiling_table(runs, name, section.entrants, cached))
    return "\n".join(parts)


def facts_line(runs: Runs) -> str:
    here: dict[str, Any] = runs.content["machine"]
    settings = runs.content["settings"]
    return f"{here['board']}, {here['cpus']} CPUs; {settings}; random weights; medians of fresh processes"
