"""Pydantic's validation errors as one plain message that names every fault of a file."""

import json
import re
import shlex
from collections.abc import Iterable

from pydantic import ValidationError

from merino_runtime.errors import MerinoError

MOST_LISTED = 50
LONGEST_SHOWN = 80  # characters of a wrong value or of an odd key


def fault_list(error: ValidationError) -> str:
    """`key: what is wrong (found: value)` for each fault, joined by semicolons."""
    found = error.errors(include_url=False, include_context=False)
    more = [f"and {len(found) - MOST_LISTED} more"] if len(found) > MOST_LISTED else []
    return "; ".join([fault(detail) for detail in found[:MOST_LISTED]] + more)


def refuse_other_schema(raw: object, schema: int, origin: str, *again: str) -> None:
    """Under another schema a list of wrong keys would mean nothing. again: the command that makes the file."""
    found = raw.get("schema", schema) if isinstance(raw, dict) else schema
    if isinstance(found, int) and found != schema:
        raise MerinoError(
            f"{origin} has schema {shortened(str(found))}, this version reads schema {schema}: make it again, "
            f"`{shlex.join(again)}`"
        )


def fault(detail: object) -> str:
    """One fault; `detail` is an entry of `ValidationError.errors()`."""
    assert isinstance(detail, dict)
    key = key_path(detail["loc"]) or "the file"
    kind = detail["type"]
    if kind == "missing":
        return f"{key}: missing"
    if kind == "extra_forbidden":
        return f"{key}: unknown key, remove it"
    message = detail["msg"].removeprefix("Value error, ")
    found = detail["input"]
    shown = f" (found: {shortened(repr(found))})" if isinstance(found, str | int | float | bool) else ""
    return f"{key}: {message[0].lower()}{message[1:]}{shown}"


def key_path(loc: Iterable[int | str]) -> str:
    """`blocks.0.width`. A key that is no plain word is quoted, since it may hold a line break or steer a terminal."""
    words = (str(part) for part in loc)
    return ".".join(word if re.fullmatch(r"[\w-]+", word) else shortened(json.dumps(word)) for word in words)


def one_line(error: Exception) -> str:
    """What another library's error says, without line breaks and not longer than a message may be."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, 500)


def shortened(text: str, most: int = LONGEST_SHOWN) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
