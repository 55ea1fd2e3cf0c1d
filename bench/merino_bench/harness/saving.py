"""Files of benchmark records: a JSON list, written whole, or JSON lines, appended to (docs/formats.md)."""
from typing import Any, Dict, Sequence

from merino_bench.harness.render import as_json, as_json_lines
from merino_runtime.outputs import append_output, check_output, write_output


def check_can_save(path: str) -> None:
    """Raises MerinoError where `path` cannot be written. To be called before measuring: a missing folder then costs no
    hour."""
    check_output(path)


def save(records: Sequence[Dict[str, Any]], path: str) -> None:
    """A JSON list in place of what was there. MerinoError where it cannot be written."""
    write_output(path, as_json(records))


def appends(path: str) -> bool:
    """Whether records are appended to the file (JSON lines); any other is written anew."""
    return path.endswith(".jsonl")


def append(records: Sequence[Dict[str, Any]], path: str) -> None:
    """One line per record, synced: a power cut then costs the last line alone. MerinoError where that fails."""
    append_output(path, as_json_lines(records))
