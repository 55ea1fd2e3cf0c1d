"""Files of benchmark records -> checked rows. Every fault of every file is told in one message, with its rows.

The rows' types are `schema`'s; writing records is `merino_bench`'s, which runs on boards and has no pydantic.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from merino_edge.records.schema import Record
from merino_edge.storage.faults import fault, key_path
from merino_runtime.errors import MerinoError
from merino_runtime.json_file import JSON, read_text, value_of

LARGEST_BYTES = 256 * 2**20  # many runs may be appended to one file
REMEDY = "Give a file of records."
MAX_LISTED_ROWS = 5  # row numbers listed for one fault; the others are counted
MERGED_FAULTS = {"missing": "missing", "extra_forbidden": "unknown keys, remove them"}  # one line names all their keys


def read_records(paths: Iterable[Path]) -> list[Record]:
    """All rows of all files, in order. Raises one MerinoError that lists every fault of every file."""
    records: list[Record] = []
    faults: list[str] = []
    for path in paths:
        try:
            rows, wrong = parse_records(read_text(str(path), JSON, REMEDY, LARGEST_BYTES))
        except MerinoError as error:
            faults.append(str(error))
            continue
        records += rows
        faults += [f"{path}: {each}" for each in wrong]
    if faults:
        listed = "".join(f"\n  {each}" for each in faults)
        raise MerinoError(f"these are not benchmark records (`bench --save FILE` writes some), correct them:{listed}")
    return records


def parse_records(text: str) -> tuple[list[Record], list[str]]:
    """(rows, faults) of a JSON list or of JSON lines. A list begins with a bracket, whatever the file is called."""
    return _parse_list(text) if text.lstrip().startswith("[") else _parse_lines(text)


def faults_by_row(details: Sequence[tuple[int | None, dict[str, Any]]]) -> list[str]:
    """One line for each fault and set of rows, such as `row 2, 3: missing: depth, date`; the first row is 1.

    details: (index of the row or None, pydantic's detail whose `loc` begins with that index).
    """
    rows: dict[tuple[str, str], list[int]] = {}  # (merged fault or "", key or message) -> row numbers
    for index, detail in details:
        inner = {**detail, "loc": detail["loc"][1:]}
        merged = MERGED_FAULTS.get(detail["type"], "")
        key = key_path(inner["loc"])
        said = key if merged else fault(inner).removeprefix("the file: ")
        rows.setdefault((merged, said), []).extend([] if index is None else [index + 1])
    lines: dict[str, list[str]] = {}  # beginning of the line -> keys, or nothing where it is the whole line
    for (merged, said), numbers in rows.items():
        if merged:
            lines.setdefault(f"{_row_list(numbers)}{merged}: ", []).append(said)
        else:
            lines.setdefault(f"{_row_list(numbers)}{said}", [])
    return [start + ", ".join(keys) for start, keys in lines.items()]


def _parse_list(text: str) -> tuple[list[Record], list[str]]:
    try:
        value_of(text)
        rows = TypeAdapter(list[Record]).validate_json(text)
    except ValidationError as error:
        return [], faults_by_row([(int(each["loc"][0]) if each["loc"] else None, each) for each in _details(error)])
    except ValueError as error:
        return [], [f"is not {JSON}: {error}"]
    return (rows, []) if rows else ([], ["holds no record"])


def _parse_lines(text: str) -> tuple[list[Record], list[str]]:
    rows: list[Record] = []
    wrong: list[tuple[int | None, dict[str, Any]]] = []
    lines = [line for line in text.split("\n") if line.strip()]
    for index, line in enumerate(lines):
        try:
            value_of(line)
            rows.append(Record.model_validate_json(line))
        except ValidationError as error:
            wrong += [(index, {**each, "loc": (index, *each["loc"])}) for each in _details(error)]
        except ValueError as error:
            wrong.append((index, {"type": "json", "loc": (index,), "msg": f"not {JSON}: {error}", "input": None}))
    return rows, faults_by_row(wrong) if lines else ["holds no record"]


def _row_list(numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    more = f" and {len(numbers) - MAX_LISTED_ROWS} more" if len(numbers) > MAX_LISTED_ROWS else ""
    return f"row {', '.join(map(str, numbers[:MAX_LISTED_ROWS]))}{more}: "


def _details(error: ValidationError) -> list[dict[str, Any]]:
    return [dict(each) for each in error.errors(include_url=False, include_context=False)]
