"""Writes a record of `bench/results` with the commits of the code that made it.

`commits`: one for each checkout that measured a part of it, the oldest first, `-dirty` where files were changed.
"""

import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from merino_edge.storage.atomic import write_text


def kept_record(path: Path, new: dict[str, Any]) -> dict[str, Any]:
    """The record that is to grow: the file's, or `new` where there is none of its schema."""
    record = dict(json.loads(path.read_text())) if path.exists() else new
    return record if record.get("schema") == new["schema"] else new


def write_record(path: Path, content: dict[str, Any]) -> None:
    content["commits"] = with_this(content.get("commits", []))
    head = {"commits": content["commits"]}
    write_text(path, json.dumps({**head, **content}, indent=1) + "\n")


def commits_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """That the rows of an experiment name, in which each new one was appended: the oldest first."""
    return list(dict.fromkeys(row["commit"] for row in rows))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, ["---"] * len(titles), *rows))


def with_this(commits: list[str]) -> list[str]:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=7"]
    here = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return [*commits, *([] if here in commits else [here])]
