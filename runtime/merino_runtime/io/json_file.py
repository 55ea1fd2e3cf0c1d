"""Reads text and JSON that anyone may have written: bounds on size, nesting and numbers, and one message per fault.

Standard library only. The reader of each kind of file interprets the keys.
"""
import collections
import json
import math
import os
import re
import sys
from typing import Any, List, Tuple

from merino_runtime.errors import MerinoError

JSON = "JSON that can be read"
LARGEST_BYTES = 64 * 2 ** 20  # the largest published tokenizer.json has 33 MB
DEEPEST = 64  # lists and objects within each other; no file of this project has more than 8
TOO_DEEP = f"its lists and objects are nested too deeply, allowed are {DEEPEST} levels"
LONGEST_INTEGER = 4300  # digits, as Python 3.11 has it: earlier versions take quadratic time
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # the escape of a surrogate, which UTF-8 cannot encode


def read_text(path: str, kind: str, remedy: str, largest_bytes: int = LARGEST_BYTES) -> str:
    """Return the text of a file. kind: what it should be, for messages. remedy: a sentence on what to do about a wrong
    file. Raise MerinoError if it cannot be read, is larger, or is not UTF-8."""
    try:
        with open(path, "rb") as file:
            # `read` allocates as much as is requested. A pipe, and what /proc shows, have the size 0.
            data = file.read(min(largest_bytes, os.fstat(file.fileno()).st_size or largest_bytes) + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        next_step = "Check the folder's permissions." if isinstance(error, PermissionError) else remedy
        raise MerinoError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}. {next_step}") from error
    if len(data) > largest_bytes:
        raise MerinoError(f"{path} is not {kind}: it has more than {largest_bytes / 2 ** 20:g} MB. {remedy}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MerinoError(f"{path} is not {kind}: byte {error.start} is not UTF-8. {remedy}") from error


def read_json(path: str, remedy: str) -> Any:
    """Return the value in a JSON file. Raise MerinoError as `read_text` does, and if the text is not valid JSON."""
    return read_json_and_text(path, remedy)[0]


def read_json_and_text(path: str, remedy: str) -> Tuple[Any, str]:
    """Return the value and the text, for a parser that checks a schema."""
    text = read_text(path, JSON, remedy)
    try:
        return value_of(text), text
    except ValueError as error:
        raise MerinoError(f"{path} is not {JSON}: {error}. {remedy}") from error


def value_of(text: str, any_depth: bool = False) -> Any:
    """Return the value of a JSON text. Raise ValueError, with the reason in one line, if it is not JSON, or has a
    duplicate key, NaN, a number that is too large, half of a surrogate pair, or more than DEEPEST levels.

    any_depth: only reject what is too deep for Python's parser, which saves a pass over all values.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite,
                           parse_int=None if hasattr(sys, "set_int_max_str_digits") else _short)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if not any_depth and text.count("[") + text.count("{") > DEEPEST:
        check_depth(value)
    if _HALF_PAIR.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("a text in it has half of a surrogate pair") from None
        except RecursionError:
            raise ValueError(TOO_DEEP) from None
    return value


def _unique(pairs: List[Tuple[str, Any]]) -> Any:
    members = dict(pairs)
    if len(members) != len(pairs):
        twice = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it has the key {json.dumps(twice)[:80]} twice")
    return members


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _short(text: str) -> int:
    if len(text) > LONGEST_INTEGER:
        raise ValueError(f"the number {text[:20]}... has {len(text)} digits, allowed are {LONGEST_INTEGER}")
    return int(text)


def check_depth(value: Any) -> None:
    """Raise ValueError if lists and objects are nested more than DEEPEST levels."""
    level = [value]
    for _ in range(DEEPEST):
        members = [inner for outer in level if isinstance(outer, (list, dict))
                   for inner in (outer.values() if isinstance(outer, dict) else outer)]
        level = [inner for inner in members if isinstance(inner, (list, dict))]
    if level:
        raise ValueError(TOO_DEEP)
