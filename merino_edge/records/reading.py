"""Read files of benchmark records into checked rows. One message reports the faults of all files, with their rows.

A line that ends in the middle, as after a power cut or on a full disk, costs only its row and is a note. The rows'
types are in `schema`; `merino_bench`, which runs on boards and has no pydantic, writes records.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from merino_edge.records.evaluation import Evaluation, is_evaluations, parse_evaluations
from merino_edge.records.schema import Record
from merino_edge.storage.faults import fault
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import JSON, read_text, value_of
from merino_runtime.io.json_shape import path_of

LARGEST_BYTES = 256 * 2**20  # many runs may be appended to one file
REMEDY = "Give a file of records."
MAX_LISTED_ROWS = 5  # row numbers listed for one fault; the others are counted
MAX_LISTED_FAULTS = 40  # the others are counted
MERGED_FAULTS = {"missing": "missing", "extra_forbidden": "unknown keys, remove them"}  # one line names all their keys


def read_records(paths: Iterable[Path], say: Callable[[str], None] = lambda _: None) -> list[Record]:
    """Return all rows of all files, in order; `say` gets a line for each file with rows that are cut off and left out.

    Raise one MerinoError that lists the faults of all files.
    """
    records: list[Record] = []
    faults: list[str] = []
    for path in paths:
        try:
            rows, wrong, cut = parse_records(read_text(str(path), JSON, REMEDY, LARGEST_BYTES))
            if cut:
                say(f"note: {path}: {_row_list(cut)}cut off, as by a power cut or a full disk, and left out")
        except MerinoError as error:
            faults.append(str(error))
            continue
        records += rows
        faults += [f"{path}: {fault}" for fault in wrong]
    if faults:
        more = [f"and {len(faults) - MAX_LISTED_FAULTS} more"] if len(faults) > MAX_LISTED_FAULTS else []
        shown = faults[:MAX_LISTED_FAULTS] + more
        listed = f" {shown[0]}" if len(shown) == 1 else "".join(f"\n  {fault}" for fault in shown)
        raise MerinoError(
            f"these are not benchmark records: correct them, or give what `bench --save FILE` wrote:{listed}"
        )
    return records


def read_all(
    paths: Iterable[Path], say: Callable[[str], None] = lambda _: None
) -> tuple[list[Record], list[Evaluation]]:
    """Return the rows of benchmarks, and those of evaluations, each from files of their own. Raise MerinoError as
    `read_records`."""
    measured: list[Path] = []
    evaluations: list[Evaluation] = []
    for path in paths:
        text = read_text(str(path), JSON, REMEDY, LARGEST_BYTES)
        if is_evaluations(text):
            evaluations += parse_evaluations(text, path)
        else:
            measured.append(path)
    return read_records(measured, say), evaluations


def parse_records(text: str) -> tuple[list[Record], list[str], list[int]]:
    """Parse a JSON list or JSON lines into (rows, faults, numbers of cut rows). A list begins with a bracket, whatever
    the file's name. It was written as a whole, so one that is cut is a fault."""
    return _parse_list(text) if text.lstrip().startswith("[") else _parse_lines(text)


def faults_by_row(details: Sequence[tuple[int | None, dict[str, Any]]]) -> list[str]:
    """Return one line for each fault and set of rows, such as `row 2, 3: missing: depth, date`; the first row is 1.

    details: (index of the row or None, pydantic's detail whose `loc` begins with that index).
    """
    rows: dict[tuple[str, str], list[int]] = {}  # (merged fault or "", key or message) -> row numbers
    for index, detail in details:
        inner = {**detail, "loc": detail["loc"][1:]}
        merged = MERGED_FAULTS.get(detail["type"], "")
        key = path_of(inner["loc"])
        text = key if merged else fault(inner).removeprefix("the file: ")
        rows.setdefault((merged, text), []).extend([] if index is None else [index + 1])
    lines: dict[str, list[str]] = {}  # beginning of the line -> keys, or nothing where it is the whole line
    for (merged, text), numbers in rows.items():
        if merged:
            lines.setdefault(f"{_row_list(numbers)}{merged}: ", []).append(text)
        else:
            lines.setdefault(f"{_row_list(numbers)}{text}", [])
    return [start + ", ".join(keys) for start, keys in lines.items()]


def _parse_list(text: str) -> tuple[list[Record], list[str], list[int]]:
    try:
        rows = TypeAdapter(list[Record]).validate_json(text)
        value_of(text)
    except ValidationError as error:
        if _is_cut(error):
            return [], ["is a JSON list that is cut off before its end: copy it again"], []
        details = _details(error)
        return [], faults_by_row([(int(detail["loc"][0]) if detail["loc"] else None, detail) for detail in details]), []
    except ValueError as error:
        return [], [f"is not {JSON}: {error}"], []
    return rows, [] if rows else ["holds no record"], []


def _parse_lines(text: str) -> tuple[list[Record], list[str], list[int]]:
    rows: list[Record] = []
    wrong: list[tuple[int | None, dict[str, Any]]] = []
    cut: list[int] = []
    lines = [line for line in text.split("\n") if line.strip()]
    for index, line in enumerate(lines):
        try:
            row = Record.model_validate_json(line)
            value_of(line)
            rows.append(row)
        except ValidationError as error:
            if _is_cut(error):
                cut.append(index + 1)
            else:
                wrong += [(index, {**detail, "loc": (index, *detail["loc"])}) for detail in _details(error)]
        except ValueError as error:
            wrong.append((index, {"type": "json", "loc": (index,), "msg": f"not {JSON}: {error}", "input": None}))
    faults = faults_by_row(wrong)
    return rows, faults if rows or faults else ["holds no complete record" if cut else "holds no record"], cut


def _is_cut(error: ValidationError) -> bool:
    """Return whether the text is the beginning of JSON: the parser found no fault until the end came."""
    return any(detail["type"] == "json_invalid" and "EOF while parsing" in detail["msg"] for detail in _details(error))


def _row_list(numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    more = f" and {len(numbers) - MAX_LISTED_ROWS} more" if len(numbers) > MAX_LISTED_ROWS else ""
    return f"row {', '.join(map(str, numbers[:MAX_LISTED_ROWS]))}{more}: "


def _details(error: ValidationError) -> list[dict[str, Any]]:
    return [dict(detail) for detail in error.errors(include_url=False, include_context=False)]
