"""Speed ratios to a baseline, each with its interval and its kind: at equal format, or as shipped.

A row with flags (disturbed or failed) has no ratio, and its notes say why.
"""
from typing import Any, Dict, List, Optional, Sequence

from merino_bench.harness.interval import ratio_interval
from merino_bench.harness.record import FAILED, speeds_of

EQUAL, AS_SHIPPED = "equal format", "as shipped"
Record = Dict[str, Any]


def add_ratios(records: Sequence[Record], baselines: Sequence[Record], in_turn: Sequence[Record] = ()) -> None:
    """To the rows of one case: `baseline` (which, and its format), `ratio_kind`, `ratio_to_baseline` (this row's
    tok_s over the baseline's), `ratio_interval`, and `params_ratio`.

    baselines: rows of this case; a row is compared with the first one of its own format, else with the first.
    in_turn: the rows that were measured in turn with the baselines, so that their repetitions pair.
    """
    for record in records:
        record.update(baseline=None, ratio_kind=None, ratio_to_baseline=None, ratio_interval=None, params_ratio=None)
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
            continue
        paired = any(record is one for one in in_turn) and record["repetitions"] == base["repetitions"]
        record["ratio_to_baseline"] = record["tok_s"] / base["tok_s"]
        record["ratio_interval"] = ratio_interval(_speeds(record), _speeds(base), paired)


def baseline_for(record: Record, baselines: Sequence[Record]) -> Optional[Record]:
    alike = [base for base in baselines if same_format(record, base)]
    return next(iter([*alike, *baselines]), None)


def same_format(record: Record, base: Record) -> bool:
    """Whether weights and dialect are equal; another engine's row has no dialect and differs in none."""
    dialects = {record["dialect"], base["dialect"]} - {None}
    return record["precision"] is not None and record["precision"] == base["precision"] and len(dialects) < 2


def name_and_format(record: Record) -> str:
    return " ".join(filter(None, [record["bundle"], record["precision"], record["dialect"]]))


def why_not(record: Record, base: Record) -> Optional[str]:
    for row, name in ((record, "this row"), (base, f"the baseline {base['bundle']}")):
        if row["flags"]:
            flags: List[str] = ["failed" if flag.startswith(FAILED) else flag for flag in row["flags"]]
            return f"{name} is flagged {', '.join(flags)}"
    return None


def _speeds(record: Record) -> List[float]:
    tokens = len(record["rounds_ms"][0]) if record["test"].startswith("tg") else record["prompt_tokens"]
    return speeds_of(record["rounds_ms"], tokens)
