"""Speed ratios to a baseline, each with its interval and its kind: at equal format, or as shipped.

A ratio is of pairs: processes of both rows that ran side by side. Disturbed pairs are dropped where three others
remain; else all count, and the ratio is marked with what disturbed them. Only a row that failed has no ratio.
"""
from typing import Any, Dict, Optional, Sequence

from merino_bench.harness.interval import paired_ratio
from merino_bench.harness.passes import chosen, flags_by_place
from merino_bench.harness.record import FAILED, format_words, process_speeds

EQUAL, AS_SHIPPED = "equal format", "as shipped"
Record = Dict[str, Any]


def add_ratios(records: Sequence[Record], baselines: Sequence[Record]) -> None:
    """To the rows of one case that took turns: `baseline` (which, and its format), `ratio_kind`, `ratio_to_baseline`
    (this row's speed over the baseline's), `ratio_interval`, `ratio_turns`, `ratio_flags` and `params_ratio`.

    baselines: rows of this case; a row is compared with the first one of its own format, else with the first.
    """
    for record in records:
        record.update(baseline=None, ratio_kind=None, ratio_to_baseline=None, params_ratio=None)
        base = baseline_for(record, baselines)
        if base is None:
            continue
        record["baseline"] = name_and_format(base)
        record["ratio_kind"] = EQUAL if same_format(record, base) else AS_SHIPPED
        if record["params"] and base["params"]:
            record["params_ratio"] = record["params"] / base["params"]
        reason = why_not(record, base)
        if reason:
            record["notes"] = [*record["notes"], f"no ratio: {reason}"]
        else:
            record.update(ratio_of(record, base))


def ratio_of(record: Record, base: Record) -> Dict[str, Any]:
    """The keys of the ratio; of a row with itself it is 1 and has no interval."""
    if record is base:
        return {"ratio_to_baseline": 1.0}
    choice = chosen(flags_by_place(record["processes"]), flags_by_place(base["processes"]))
    speeds, base_speeds = process_speeds(record), process_speeds(base)
    ratio = paired_ratio([speeds[place] for place in choice.places], [base_speeds[place] for place in choice.places])
    return {"ratio_to_baseline": ratio.value, "ratio_interval": ratio.interval,
            "ratio_turns": [len(choice.places), choice.turns], "ratio_flags": choice.flags}


def baseline_for(record: Record, baselines: Sequence[Record]) -> Optional[Record]:
    alike = [base for base in baselines if same_format(record, base)]
    return next(iter([*alike, *baselines]), None)


def same_format(record: Record, base: Record) -> bool:
    """Whether weights, dialect and cache are equal; another engine's row has no dialect and differs in none of the
    two. The precision of a bundle that cannot be read is unknown, and equals no other."""
    graphs = {(row["dialect"], row.get("kv")) for row in (record, base) if row.get("dialect")}
    return record.get("precision") is not None and record["precision"] == base.get("precision") and len(graphs) < 2


def name_and_format(record: Record) -> str:
    form = format_words(record["precision"], record["dialect"], record.get("kv"))
    return " ".join(filter(None, [record["bundle"], form]))


def why_not(record: Record, base: Record) -> Optional[str]:
    for row, name in ((record, "this row"), (base, f"the baseline {base['bundle']}")):
        if any(flag.startswith(FAILED) for flag in row["flags"]):
            return f"{name} failed"
    return None
