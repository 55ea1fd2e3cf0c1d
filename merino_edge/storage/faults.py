"""Describe pydantic's validation errors as one plain message that names every fault of a file, in the words of the
board's `json_shape`."""

import difflib
import shlex
from collections.abc import Iterable

from pydantic import ValidationError

from merino_runtime.errors import MerinoError
from merino_runtime.io.json_shape import listed, missing, path_of, unknown, wrong

LONGEST_SHOWN = 80  # characters of a wrong value
WORDS = (("Input should", "must"), ("greater than or equal to", "at least"), ("less than or equal to", "at most"))


def fault_list(error: ValidationError) -> str:
    """Return every fault, joined by semicolons."""
    return listed([fault(detail) for detail in error.errors(include_url=False, include_context=False)])


def refuse_other_schema(raw: object, schema: int, origin: str, *command: str) -> None:
    """Raise MerinoError for a file of another schema, because a list of its wrong keys would mean nothing. command:
    makes the file."""
    version = raw.get("schema", schema) if isinstance(raw, dict) else schema
    if isinstance(version, int) and version != schema:
        raise MerinoError(
            f"{origin} has schema {shortened(str(version))}, this version reads schema {schema}: make it again, "
            f"`{shlex.join(command)}`"
        )


def fault(detail: object) -> str:
    """Return one fault in words; `detail` is an entry of `ValidationError.errors()`."""
    assert isinstance(detail, dict)
    path, kind = path_of(detail["loc"]), detail["type"]
    if kind == "missing":
        return missing(path)
    if kind == "extra_forbidden":
        return unknown(path)
    message = in_words(detail["msg"])
    if path and isinstance(detail["input"], str | int | float | bool):
        return wrong(path, detail["input"], message)
    return f"{path or 'the file'}: {message}"


def in_words(message: str) -> str:
    """Return pydantic's message about a value, as `must be at least 1`."""
    message = message.removeprefix("Value error, ")
    for original, words in WORDS:
        message = message.replace(original, words)
    return f"{message[0].lower()}{message[1:]}"


def one_line(error: Exception) -> str:
    """Return another library's error without line breaks and not longer than a message may be."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, 500)


def shortened(text: str, most: int = LONGEST_SHOWN) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def near_names(name: str, known: Iterable[str]) -> str:
    """Return `; near names: ...`, at most five; empty if no known name is near."""
    near = difflib.get_close_matches(name, known, 5)
    return f"; near names: {', '.join(near)}" if near else ""
