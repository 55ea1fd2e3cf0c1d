"""Read files of benchmark records into checked rows. One message reports the faults of all files, with their rows.

A line that ends in the middle, as after a power cut or on a full disk, costs only its row and is a note. The rows'
types are in `schema`; `merino_bench`, which runs on boards and has no pydantic, writes records.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from merino_edge.records.evaluation import Evaluation, is_evaluations, parse_evaluations
from merino_edge.records.schema import Record
from merino_edge.storage.faults import fault_list
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import JSON, read_text, value_of

LARGEST_BYTES = 256 * 2**20  # many runs may be appended to one file
REMEDY = "Give a file of records."
MAX_LISTED_ROWS = 5  # row numbers listed for one fault; the others are counted
MAX_LISTED_FAULTS = 40  # the others are counted


def read_records(paths: Iterable[Path], say: Callable[[str], None] = lambda _: None) -> list[Record]:
    """Return all rows of benchmarks as `read_all` does. Raise MerinoError for rows of evaluations too."""
    records, evaluations = read_all(paths, say)
    if evaluations:
        raise MerinoError("these are not benchmark records but those of `eval`: give what `bench -o FILE` wrote")
    return records


def read_all(
    paths: Iterable[Path], say: Callable[[str], None] = lambda _: None
) -> tuple[list[Record], list[Evaluation]]:
    """Return the rows of benchmarks, and those of evaluations, each from files of their own, in order; `say` gets a
    line for each file with rows that are cut off and left out. Raise one MerinoError that lists the faults of all
    files."""
    records: list[Record] = []
    evaluations: list[Evaluation] = []
    faults: list[str] = []
    for path in paths:
        try:
            text = read_text(str(path), JSON, REMEDY, LARGEST_BYTES)
            if is_evaluations(text):
                evaluations += parse_evaluations(text, path)
                continue
            rows, wrong, cut = parse_records(text)
        except MerinoError as error:
            faults.append(str(error))
            continue
        if cut:
            say(f"note: {path}: {row_list(cut)}cut off, as by a power cut or a full disk, and left out")
        records += rows
        faults += [f"{path}: {fault}" for fault in wrong]
    if faults:
        more = [f"and {len(faults) - MAX_LISTED_FAULTS} more"] if len(faults) > MAX_LISTED_FAULTS else []
        shown = faults[:MAX_LISTED_FAULTS] + more
        listed = f" {shown[0]}" if len(shown) == 1 else "".join(f"\n  {fault}" for fault in shown)
        raise MerinoError(f"these are not benchmark records: correct them, or give what `bench -o FILE` wrote:{listed}")
    return records, evaluations


def parse_records(text: str) -> tuple[list[Record], list[str], list[int]]:
    """Parse a JSON list or JSON lines into (rows, faults, numbers of cut rows). A list begins with a bracket, whatever
    the file's name. It was written as a whole, so one that is cut is a fault."""
    rows: list[Record] = []
    cut: list[int] = []
    faults: dict[str, list[int]] = {}  # of a row -> the numbers of the rows that have them
    is_list = text.lstrip().startswith("[")
    try:
        parts = decode(text) if is_list else [line for line in text.split("\n") if line.strip()]
    except EOFError:
        return [], ["is a JSON list that is cut off before its end: copy it again"], []
    except ValueError as error:
        return [], [f"is not {JSON}: {error}"], []
    for number, part in enumerate(parts, 1):
        try:
            rows.append(Record.model_validate(part if is_list else decode(part)))
        except EOFError:
            cut.append(number)
        except ValidationError as error:
            faults.setdefault(fault_list(error), []).append(number)
        except ValueError as error:
            faults.setdefault(f"not {JSON}: {error}", []).append(number)
    listed = [row_list(numbers) + fault.replace("the file: ", "") for fault, numbers in faults.items()]
    return rows, listed if rows or faults else ["holds no complete record" if cut else "holds no record"], cut


def decode(text: str) -> Any:
    """Return the value of a JSON text. Raise EOFError if it is only the beginning of one, and ValueError if it is
    none."""
    try:
        from_json(text)
    except ValueError as error:
        if "EOF while parsing" in str(error):
            raise EOFError from None
    return value_of(text)


def row_list(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - MAX_LISTED_ROWS} more" if len(numbers) > MAX_LISTED_ROWS else ""
    return f"row {', '.join(map(str, numbers[:MAX_LISTED_ROWS]))}{more}: "
