"""Files of benchmark records: a JSON list, written whole, or JSON lines, appended to (docs/formats.md)."""
import json
import os
from typing import Any, Dict, Sequence

from merino_bench.harness.render import as_json, as_json_lines
from merino_runtime.errors import MerinoError
from merino_runtime.io.outputs import append_output, check_output, write_output


def check_can_save(path: str) -> None:
    """Raises MerinoError where `path` cannot be written, or is to be appended to and holds no JSON lines. To be called
    before measuring: a missing folder then costs no hour."""
    check_output(path)
    if appends(path) and os.path.isfile(path) and not _holds_lines(path):
        raise MerinoError(f"{path} holds no JSON lines, so no records are appended to it. Choose another --save, such "
                          "as FILE.json, or move the file away.")


def _holds_lines(path: str) -> bool:
    """Whether a line of the file is a JSON object, or the file is empty or one torn line, as a power cut leaves it."""
    with open(path, "rb") as file:
        lines = [line for line in file if line.strip()]
    return not lines or any(map(_is_object, lines)) or (len(lines) == 1 and lines[0].startswith(b'{"'))


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8")), dict)
    except (ValueError, RecursionError):
        return False


def save(records: Sequence[Dict[str, Any]], path: str) -> None:
    """A JSON list in place of what was there. MerinoError where it cannot be written."""
    write_output(path, as_json(records))


def appends(path: str) -> bool:
    """Whether records are appended to the file (JSON lines); any other is written anew."""
    return path.endswith(".jsonl")


def append(records: Sequence[Dict[str, Any]], path: str) -> None:
    """One line per record, synced: a power cut then costs the last line alone. MerinoError where that fails."""
    append_output(path, as_json_lines(records))
