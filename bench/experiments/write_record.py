"""Write a record of `bench/results`: a summary with what was claimed, and how, where and by which code it was measured.

`commits` has one entry per checkout that measured a part, the oldest first; `-dirty` marks changed files.
`docs/scripts/make.py` makes the table of all records from these fields.
"""

import json
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from merino_bench.sensors.environment import machine
from merino_edge.storage.atomic import write_text


def write_record(path: Path, content: dict[str, Any], claim: str, command: str) -> None:
    head = {
        "claim": claim, "commits": with_this(content.get("commits", [])),
        "date": datetime.now(UTC).date().isoformat(), "machine": content.get("machine", this_machine()),
        "command": command,
    }  # fmt: skip
    write_text(path, layout({**head, **{key: value for key, value in content.items() if key not in head}}))


def layout(record: dict[str, Any]) -> str:
    """Return the record as JSON with one line per fact and per row."""
    lines = [f"{json.dumps(key)}: {block(value, 1)}" for key, value in record.items()]
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def block(value: Any, depth: int) -> str:
    """Return a list of rows, or a table of rows by name, with one line per row; a row holds no further table."""
    nested = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    rows = [row for row in nested if isinstance(row, dict) or (isinstance(row, list) and isinstance(value, list))]
    if not rows or len(rows) < len(nested) or len(json.dumps(value)) < 160:
        return json.dumps(value)
    names = [f"{json.dumps(key)}: " for key in value] if isinstance(value, dict) else [""] * len(value)
    lines = [f"{' ' * (depth + 1)}{name}{block(row, depth + 1)}" for name, row in zip(names, nested, strict=True)]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return "\n".join((opening, ",\n".join(lines), " " * depth + closing))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, ["---"] * len(titles), *rows))


def this_machine() -> str:
    facts = machine()
    return f"{facts['arch']}, {facts['board']}, {facts['cpus']} cores"


def with_this(commits: list[str]) -> list[str]:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=7"]
    here = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return [*commits, *([] if here in commits else [here])]
