"""Medians, ratios and verdicts of the runs, as Markdown."""

from collections.abc import Iterable, Sequence
from statistics import mean, median
from typing import Any

from entrants import PROBE, Entrant
from models import VOCAB_CUT
from plan import Bar, Section
from runs import Runs

from merino_bench.harness.interval import Ratio, paired_ratio

CEILING_BAR = 0.75
READ = "weights read per token, 10^6 bytes"


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
