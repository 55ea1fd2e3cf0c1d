"""Checks a JSON value against its shape and names every fault at once. Standard library only.

A shape is a nested description of JSON: {...} is an object of exactly these keys, [x] a list of x, [x, n] a list of at
most n, `Maybe(x)` null or x, and a leaf is a function that takes a value and returns what was expected, or None if the
value is valid.
"""
import json
import re
from typing import Any, Callable, Iterable, List, NamedTuple, Optional, Union

LARGEST = 2 ** 53  # to which JSON's numbers are exact everywhere
LONGEST_TEXT = 1000  # characters
LONGEST_PASSAGE = 100000  # characters
MOST_LISTED = 50  # problems of one message
# What would break a message's line, control a terminal, or change the direction of what follows.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
Leaf = Callable[[Any], Optional[str]]


class Maybe(NamedTuple):
    shape: Any


def problems_in(value: Any, shape: Any) -> List[str]:
    """Return a sentence for each wrong key or value."""
    problems: List[str] = []
    _check(value, shape, "", problems)
    return problems


def integer(low: int, high: int = LARGEST) -> Leaf:
    def leaf(value: Any) -> Optional[str]:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole and low <= value <= high else f"an integer, {low} to {high}"
    return leaf


def one_of(*names: str) -> Leaf:
    return lambda value: None if isinstance(value, str) and value in names else " or ".join(map(repr, names))


def or_null(leaf: Leaf) -> Leaf:
    def either(value: Any) -> Optional[str]:
        expected = leaf(value)
        return None if value is None or expected is None else expected + " or null"
    return either


def text(value: Any) -> Optional[str]:
    good = isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT and not _CONTROL.search(value)
    return None if good else f"a string of up to {LONGEST_TEXT} characters, no control characters"


def passage(value: Any) -> Optional[str]:
    """Return what was expected of text for a model, which may have several lines and is never printed as it is."""
    good = isinstance(value, str) and len(value) <= LONGEST_PASSAGE
    return None if good else f"a string of up to {LONGEST_PASSAGE} characters"


def texts_by_name(value: Any) -> Optional[str]:
    good = isinstance(value, dict) and all(re.match(r"[a-z_]+\Z", key) and passage(text) is None
                                           for key, text in value.items())
    return None if good else "an object of names (a to z, _) and strings"


def version(value: Any) -> Optional[str]:
    good = isinstance(value, str) and re.match(r"\d{1,6}(\.\d{1,6}){1,3}\Z", value, re.ASCII)
    return None if good else "a version such as 1.18"


def an_object(value: Any) -> Optional[str]:
    return None if isinstance(value, dict) else "an object"


def sha256(value: Any) -> Optional[str]:
    good = isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")
    return None if good else "64 lower-case hex digits"


def inner_path(value: Any) -> Optional[str]:
    """Return what was expected. A path that leads out of the folder is rejected, because a bundle may come from
    anyone."""
    good = isinstance(value, str) and value not in ("", ".") and bool(re.match(r"[ -~]+\Z", value))
    good = good and not set(value) & set("\\:") and not value.startswith("/") and ".." not in value.split("/")
    return None if good else "a path inside the bundle (ASCII, not absolute, no '..')"


count, size = integer(0), integer(1)


def _check(value: Any, shape: Any, where: str, problems: List[str]) -> None:
    if isinstance(shape, Maybe):
        if value is not None:
            _check(value, shape.shape, where, problems)
    elif callable(shape):
        expected = shape(value)
        if expected:
            problems.append(wrong(where, value, "must be " + expected))
    elif isinstance(shape, list):
        if not isinstance(value, list):
            problems.append(wrong(where, value, "must be a list"))
            return
        if len(value) > (shape[1:] or [LARGEST])[0]:
            problems.append(wrong(where, value, f"must be a list of at most {shape[1]}"))
            return
        for index, item in enumerate(value):
            _check(item, shape[0], f"{where}[{index}]", problems)
    elif not isinstance(value, dict):
        problems.append(wrong(where, value, "must be an object"))
    else:
        prefix = where + "." if where else ""
        problems.extend(unknown(prefix + path_of([key])) for key in value if key not in shape)
        problems.extend(missing(prefix + key) for key in shape if key not in value)
        for key in shape:
            if key in value:
                _check(value[key], shape[key], prefix + key, problems)


def shown(value: Any) -> str:
    """Return a wrong value as an error message shows it."""
    if isinstance(value, (list, dict)):
        return f"a list of {len(value)}" if isinstance(value, list) else "an object"
    return json.dumps(value, default=repr)[:80]


def listed(problems: List[str]) -> str:
    """Return all problems in one line, or the first ones and how many more there are."""
    more = len(problems) - MOST_LISTED
    return "; ".join(problems[:MOST_LISTED] + [f"and {more} more"] * (more > 0))


# The words for each fault of a file: this module uses them, and the workstation for pydantic's faults.


def missing(path: str) -> str:
    return f"{path}: missing"


def unknown(path: str) -> str:
    return f"{path}: unknown key"


def wrong(path: str, value: Any, what: str) -> str:
    """Return the problem of a value. what: as in "must be a list"."""
    return f"{path or 'the file'} is {shown(value)}, {what}"


def path_of(parts: Iterable[Union[int, str]]) -> str:
    """Return a path such as `blocks[0].width`. A key that is not a plain word is quoted: it may hold a line break or
    control a terminal."""
    spelled = [part if isinstance(part, int) or re.match(r"[\w-]+\Z", part, re.ASCII) else json.dumps(part)[:80]
               for part in parts]
    return "".join(f"[{part}]" if isinstance(part, int) else "." + part for part in spelled).lstrip(".")
