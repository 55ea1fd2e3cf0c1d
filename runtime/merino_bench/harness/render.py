"""Records as text: a GitHub-markdown table, JSON, JSON lines; and their files, a JSON list written whole or JSON
lines appended to (docs/formats.md). Derives no number.
"""

import json
import os
import shutil
import sys
import textwrap
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from merino_bench.harness.record import FAILED, failures, format_words
from merino_runtime.errors import MerinoError
from merino_runtime.io.outputs import append_output, check_output, write_output
from merino_runtime.io.streams import visible_text

Record = Dict[str, Any]


def ratio_cell(record: Record) -> Optional[str]:
    """Return `3.00x [2.91, 3.10] (3 of 5 pairs)`, with the pairs if some were dropped, or flags if none could be; None
    without a ratio."""
    ratio = record.get("ratio_to_baseline")
    if ratio is None:
        return None
    digits = ".2f" if ratio >= 0.1 else ".2g"
    text, interval, turns = f"{ratio:{digits}}x", record["ratio_interval"], record["ratio_turns"]
    if turns is None:  # of the baseline itself
        return text
    text += f" [{interval[0]:{digits}}, {interval[1]:{digits}}]" if interval else " (no interval)"
    if record["ratio_flags"]:
        text += f" (disturbed: {', '.join(record['ratio_flags'])})"
    elif turns[0] < turns[1]:
        text += f" ({turns[0]} of {turns[1]} pairs)"
    return text


def _speed(record: Record) -> Optional[str]:
    speed, deviation = record["tok_s"], record["tok_s_sd"]
    if speed is None:
        return None
    return f"{speed:.1f}" if deviation is None else f"{speed:.1f} ± {deviation:.1f}"


def _figure(key: str, form: str, unit: float = 1.0) -> Callable[[Record], Optional[str]]:
    return lambda record: None if record[key] is None else form.format(record[key] / unit)


# (title, its cell), the most important ones first.
COLUMNS: Sequence[Tuple[str, Callable[[Record], Any]]] = (
    ("bundle", lambda record: record["bundle"]), ("test", lambda record: record["test"]),
    ("format", lambda record: format_words(record["precision"], record["dialect"], record.get("kv"))),
    ("tok/s", _speed), ("vs baseline", ratio_cell), ("ratio at", lambda record: record.get("ratio_kind")),
    ("flags", lambda record: ", ".join("failed" if flag.startswith(FAILED) else flag for flag in record["flags"])),
    ("prefill ms", _figure("prefill_ms", "{:.1f}")), ("ms p50", _figure("ms_p50", "{:.2f}")),
    ("p90", _figure("ms_p90", "{:.2f}")), ("p99", _figure("ms_p99", "{:.2f}")),
    ("TTFT ms", _figure("ttft_ms", "{:.1f}")), ("MBU", _figure("mbu", "{:.0%}")),
    ("J/token", _figure("j_per_token", "{:.4f}")), ("RSS MB", _figure("peak_rss_mb", "{:.0f}")),
    ("bundle MB", _figure("bundle_bytes", "{:.1f}", 2 ** 20)), ("params M", _figure("params", "{:.1f}", 1e6)),
    ("load ms", _figure("load_ms", "{:.0f}")), ("weights", lambda record: record["weights"]),
    ("threads", lambda record: record["threads" if record["test"].startswith("tg") else "prefill_threads"]),
    ("engine", lambda record: record["engine"]))
IF_KNOWN = ("vs baseline", "ratio at", "J/token")  # columns that are left out if no row has a cell
LEFT = ("bundle", "test", "format", "vs baseline", "ratio at", "flags", "weights", "engine")
Columns = Dict[str, List[str]]  # a column's cells by its title, in the order of the table


def render(records: Sequence[Record], output: str, width: Optional[int] = None) -> str:
    """Return the records as text that ends with a line break. output: `md`, `json` or `jsonl`. width: columns of the
    terminal; None without a terminal."""
    if output == "md":
        return visible_text(as_markdown(records, width))  # names come from files; JSON spells them out itself
    return as_json(records) if output == "json" else as_json_lines(records)


def terminal_width() -> Optional[int]:
    """Return the columns of the terminal on stdout, or None if stdout is not a terminal."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return shutil.get_terminal_size().columns if is_terminal else None


def as_json(records: Sequence[Record]) -> str:
    """Return a JSON list with one record per line."""
    return "[" + ",\n ".join(json.dumps(record, allow_nan=False) for record in records) + "]\n"


def as_json_lines(records: Sequence[Record]) -> str:
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def columns_of(records: Sequence[Record]) -> Columns:
    """Return the cells of each column, `-` for a value that a record lacks."""
    return {title: [str(cell(record) or "-") for record in records] for title, cell in COLUMNS}


def as_markdown(records: Sequence[Record], width: Optional[int] = None) -> str:
    """Return an aligned table, or several if one is wider than `width` columns. Below it: which rows failed, which have
    no ratio and why, and what the marks of ratios mean."""
    columns = {title: [" ".join(text.split()).replace("|", "\\|") for text in cells]
               for title, cells in columns_of(records).items() if title not in IF_KNOWN or set(cells) != {"-"}}
    tables, below = [list(columns)], []
    if width is not None and _table_width(columns, list(columns)) > width:
        # 1. What was requested alike for all rows is listed below.
        alike = [title for title in ("format", "weights", "engine", "threads", "ratio at")
                 if len({*columns.get(title, ())} - {"-"}) == 1]
        if alike:
            below = textwrap.wrap("all rows: " + "; ".join(f"{title} {max(columns[title])}" for title in alike), width)
        # 2. The others fill tables that begin with the same keys, enough to distinguish the rows.
        keys = ["bundle", "test"]
        for title in ("format", "threads", "engine"):
            if len(set(zip(*(columns[key] for key in keys)))) < len(records) and title not in alike:
                keys.append(title)
        tables = [list(keys)]
        for title in columns:
            if title not in [*keys, *alike]:
                if _table_width(columns, [*tables[-1], title]) > width and tables[-1] != keys:
                    tables.append(list(keys))
                tables[-1].append(title)
    below += [*failures(records), *(
        f"{record['bundle']} {record['test']} {note}" for record in records for note in record["notes"]
        if note.startswith("no ratio: ") and not any(flag.startswith(FAILED) for flag in record["flags"])),
        *marks_explained(records)]
    shown = "\n\n".join("\n".join(_table(columns, table)) for table in tables)
    return "\n".join([shown, *[""] * bool(below), *below]) + "\n"


def marks_explained(records: Sequence[Record]) -> List[str]:
    """Explain the brackets and marks of the ratios, as far as they occur."""
    rated = [record for record in records if record["ratio_turns"]]
    notes = []
    if any(record["ratio_interval"] for record in rated):
        notes.append("[low, high]: 95 % interval over pairs of processes")
    if any(not record["ratio_interval"] for record in rated):
        notes.append("no interval: fewer than 3 pairs of processes, measure with -r 5")
    if any(record["ratio_flags"] for record in rated):
        notes.append("disturbed: fewer than 3 pairs were undisturbed, so all count; measure again on a quiet machine")
    return notes


def _widths(columns: Columns, titles: Sequence[str]) -> List[int]:
    return [max([3, len(title)] + [len(cell) for cell in columns[title]]) for title in titles]


def _table_width(columns: Columns, titles: Sequence[str]) -> int:
    return sum(_widths(columns, titles)) + 3 * len(titles) + 1


def _table(columns: Columns, titles: Sequence[str]) -> List[str]:
    """Return the lines of a table: head, rule, rows."""
    widths, left = _widths(columns, titles), [title in LEFT for title in titles]
    rule = [":" + "-" * (width - 1) if to_left else "-" * (width - 1) + ":" for width, to_left in zip(widths, left)]
    lines = []
    for row in [titles, rule, *zip(*(columns[title] for title in titles))]:
        cells = [cell.ljust(width) if to_left else cell.rjust(width)
                 for cell, width, to_left in zip(row, widths, left)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def check_can_save(path: str) -> None:
    """Raise MerinoError if `path` cannot be written, or is to be appended to and holds no JSON lines. To be called
    before measuring: a missing folder then costs no hour."""
    check_output(path)
    if not appends(path) or not os.path.isfile(path):
        return
    with open(path, "rb") as file:
        first = next((line for line in file if line.strip()), b'{"')
    if not first.startswith(b'{"'):
        raise MerinoError(f"{path} holds no JSON lines, so no records are appended to it. Choose another -o, such "
                          "as FILE.json, or move the file away.")


def save(records: Sequence[Record], path: str) -> None:
    """Replace the file by a JSON list. Raise MerinoError if it cannot be written."""
    write_output(path, as_json(records))


def appends(path: str) -> bool:
    """Return whether records are appended to the file (JSON lines); any other is rewritten."""
    return path.endswith(".jsonl")


def append(records: Sequence[Record], path: str) -> None:
    """Append one line per record and sync, so that a power cut costs only the last line. Raise MerinoError if that
    fails."""
    append_output(path, as_json_lines(records))
