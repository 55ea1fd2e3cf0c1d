"""Records as text: a GitHub-markdown table, JSON, JSON lines; and their files, a JSON list written whole or JSON
lines appended to (docs/formats.md). Derives no number.
"""

import json
import os
import shutil
import sys
import textwrap
from contextlib import suppress
from typing import Any, Dict, Iterable, List, Optional, Sequence

from merino_bench.harness.record import FAILED, failures, format_words
from merino_runtime.errors import MerinoError
from merino_runtime.io.outputs import append_output, check_output, write_output
from merino_runtime.io.visible import visible_text

LEFT = ("bundle", "format", "weights", "engine", "test", "vs baseline", "ratio at", "flags")
BY_WORTH = ("tok/s", "vs baseline", "flags", "ratio at", "prefill ms", "ms p50", "p90", "p99", "TTFT ms", "MBU",
            "J/token", "RSS MB", "bundle MB", "params M", "load ms", "format", "weights", "threads", "engine")
REQUESTED = ("format", "weights", "engine", "threads", "ratio at")
Columns = Dict[str, List[str]]  # a column's cells by its title, in the order of the table


def render(records: Sequence[Dict[str, Any]], output: str, width: Optional[int] = None) -> str:
    """Return the records as text that ends with a line break. output: `md`, `json` or `jsonl`. width: columns of the
    terminal; None without a terminal."""
    if output == "md":
        return visible_text(as_markdown(records, width))  # names come from files; JSON spells them out itself
    return as_json(records) if output == "json" else as_json_lines(records)


def terminal_width() -> Optional[int]:
    """Return the columns of the terminal on stdout, or None if stdout is not a terminal."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return shutil.get_terminal_size().columns if is_terminal else None


def as_json(records: Sequence[Dict[str, Any]]) -> str:
    """Return a JSON list with one record per line."""
    return "[" + ",\n ".join(json.dumps(record, allow_nan=False) for record in records) + "]\n"


def as_json_lines(records: Sequence[Dict[str, Any]]) -> str:
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def as_markdown(records: Sequence[Dict[str, Any]], width: Optional[int] = None) -> str:
    """Return an aligned table, or several if one is wider than `width` columns. Below it: which rows failed, which have
    no ratio and why, and what the marks of ratios mean."""
    columns = columns_of(records)
    titles, alike = list(columns), []
    if width is not None and _table_width(columns, titles) > width:
        alike = alike_in_all_rows(columns)
        titles = [title for title in titles if title not in alike]
    tables = [titles] if width is None else titles_within(columns, titles, width)
    common = "; ".join(f"{title} {columns[title][0]}" for title in alike)
    no_ratio = [f"{record['bundle']} {record['test']} {note}" for record in records for note in record["notes"]
                if note.startswith("no ratio: ") and not any(flag.startswith(FAILED) for flag in record["flags"])]
    below = (textwrap.wrap(f"all rows: {common}", width or 0) if alike else []) + [
        *failures(records), *no_ratio, *marks_explained(records)]
    shown = "\n\n".join("\n".join(_table(columns, table)) for table in tables)
    return "\n".join([shown, *[""] * bool(below), *below]) + "\n"


def columns_of(records: Sequence[Dict[str, Any]]) -> Columns:
    with_ratio = any("ratio_to_baseline" in record for record in records)
    with_energy = any(record["j_per_token"] is not None for record in records)
    rows = [[_cell(text) for text in _cells(record, with_ratio, with_energy)] for record in records]
    titles = ["bundle", "format", "weights", "params M", "bundle MB", "engine", "threads", "test", "tok/s",
              "ms p50", "p90", "p99", "prefill ms", "TTFT ms", "load ms", "RSS MB", "MBU",
              *(["J/token"] if with_energy else []), *(["vs baseline", "ratio at"] if with_ratio else []), "flags"]
    return {title: [row[index] for row in rows] for index, title in enumerate(titles)}


def alike_in_all_rows(columns: Columns) -> List[str]:
    """Return the titles of the requested columns whose cells are the same in all rows."""
    return [title for title in REQUESTED if title in columns and len(set(columns[title])) == 1]


def titles_within(columns: Columns, titles: Sequence[str], width: int) -> List[List[str]]:
    """Return the titles of each table: all in one, or in tables of at most `width` columns if that is possible. Each of
    several begins with the keys that distinguish the rows, and the most important titles are in the first."""
    if _table_width(columns, titles) <= width:
        return [list(titles)]
    # 1. The keys: bundle and test, and further ones until no two rows look alike.
    keys = ["bundle", "test"]
    for title in ("format", "threads", "engine"):
        rows = list(zip(*(columns[key] for key in keys)))
        if len(set(rows)) == len(rows):
            break
        keys.append(title)
    # 2. Each title goes into the first table with room for it.
    tables: List[List[str]] = []
    for title in BY_WORTH:
        if title in titles and title not in keys:
            room = next((table for table in tables if _table_width(columns, [*table, title]) <= width), None)
            if room is None:
                tables.append([*keys, title])
            else:
                room.append(title)
    return [[*keys, *(title for title in titles if title in table and title not in keys)] for table in tables]


def marks_explained(records: Sequence[Dict[str, Any]]) -> List[str]:
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


def _cells(record: Dict[str, Any], with_ratio: bool, with_energy: bool) -> List[str]:
    speed = _number(record["tok_s"], 1)
    if record["tok_s_sd"] is not None:
        speed += f" ± {record['tok_s_sd']:.1f}"
    params, size, share = record["params"], record["bundle_bytes"], record["mbu"]
    threads = record["threads" if record["test"].startswith("tg") else "prefill_threads"]
    cells = [
        record["bundle"], format_words(record["precision"], record["dialect"], record.get("kv")) or "-",
        record["weights"] or "-", _number(None if params is None else params / 1e6, 1),
        _number(None if size is None else size / 2 ** 20, 1), record["engine"] or "-",
        _number(threads, 0), record["test"], speed, _number(record["ms_p50"], 2),
        _number(record["ms_p90"], 2), _number(record["ms_p99"], 2), _number(record["prefill_ms"], 1),
        _number(record["ttft_ms"], 1),
        _number(record["load_ms"], 0), _number(record["peak_rss_mb"], 0),
        "-" if share is None else f"{100 * share:.0f} %"]
    if with_energy:
        cells.append(_number(record["j_per_token"], 4))
    if with_ratio:
        cells.extend([ratio_cell(record), record.get("ratio_kind") or "-"])
    flags = [flag if not flag.startswith(FAILED) else "failed" for flag in record["flags"]]
    return [*cells, ", ".join(flags)]


def ratio_cell(record: Dict[str, Any]) -> str:
    ratio = record.get("ratio_to_baseline")
    if ratio is None:
        return "-"
    return ratio_words(ratio, record["ratio_interval"], record["ratio_turns"], record["ratio_flags"] or ())


def ratio_words(ratio: float, interval: Optional[Sequence[float]], turns: Optional[Sequence[int]],
                flags: Sequence[str]) -> str:
    """Return `3.00x [2.91, 3.10] (3 of 5 pairs)`, with the pairs if some were dropped, or flags if none could be.

    turns None: of the baseline itself.
    """
    digits = ".2f" if ratio >= 0.1 else ".2g"
    text = f"{ratio:{digits}}x"
    if turns is None:
        return text
    text += f" [{interval[0]:{digits}}, {interval[1]:{digits}}]" if interval else " (no interval)"
    if flags:
        text += f" (disturbed: {', '.join(flags)})"
    elif turns[0] < turns[1]:
        text += f" ({turns[0]} of {turns[1]} pairs)"
    return text


def _number(value: Optional[float], digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _widths(columns: Columns, titles: Iterable[str]) -> List[int]:
    return [max([3, len(title)] + [len(cell) for cell in columns[title]]) for title in titles]


def _table_width(columns: Columns, titles: Iterable[str]) -> int:
    widths = _widths(columns, titles)
    return sum(widths) + 3 * len(widths) + 1


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
    if appends(path) and os.path.isfile(path) and not _holds_lines(path):
        raise MerinoError(f"{path} holds no JSON lines, so no records are appended to it. Choose another -o, such "
                          "as FILE.json, or move the file away.")


def _holds_lines(path: str) -> bool:
    """Return whether a line of the file is a JSON object, or the file is empty or one torn line, as a power cut leaves
    it."""
    with open(path, "rb") as file:
        lines = [line for line in file if line.strip()]
    for line in lines:
        with suppress(ValueError, RecursionError):
            if isinstance(json.loads(line.decode("utf-8")), dict):
                return True
    return not lines or (len(lines) == 1 and lines[0].startswith(b'{"'))


def save(records: Sequence[Dict[str, Any]], path: str) -> None:
    """Replace the file by a JSON list. Raise MerinoError if it cannot be written."""
    write_output(path, as_json(records))


def appends(path: str) -> bool:
    """Return whether records are appended to the file (JSON lines); any other is rewritten."""
    return path.endswith(".jsonl")


def append(records: Sequence[Dict[str, Any]], path: str) -> None:
    """Append one line per record and sync, so that a power cut costs only the last line. Raise MerinoError if that
    fails."""
    append_output(path, as_json_lines(records))
