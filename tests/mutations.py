"""Files as a user, a disk or an enemy may leave them: a valid one, changed in its structure and in its bytes.

62 cases for each kind of file, the same each time, 600 in `make test-nightly`. `--hypothesis-profile=long` makes
30,000, and others each time.
"""

import copy
import json
import math
import random

from few_examples import ALL
from hypothesis import settings

from merino_runtime.errors import MerinoError

LONGEST_MESSAGE = 20_000  # characters

DEEP = "@deep@"  # stands for lists nested 100,000 times, which no recursive writer could write
ODD = (
    None, True, False, "", " ", "a", "x" * 5000, "\x00", "two\nlines", "\x1b[2J", "[/home/x]", "[bold]", ":smile:",
    "\ud800", "€", "../../etc/passwd", 0, 1, -1, 2, 7, 64, 1024, 2**31, 2**63, 4_000_000_000, 10**30, 10**400,
    -(10**400), 0.0, -0.0, 0.5, 1e-308, 5e-324,
    1e308, -1e308, math.nan, math.inf, -math.inf, [], {}, [[]], [None] * 300, {"a": {"b": 1}}, DEEP,
)  # fmt: skip
BYTES = (
    b"", b"\xff", b"\x00", b"\xef\xbb\xbf", b"[" * 100_000, b'{"a":' * 2_000, b"1" * 5_000, b"NaN", b"1e999",
    b"\\ud800", b'"', b"\n", b"}", b"]", b",", b"-", b"\xe2\x80\xa8",
)  # fmt: skip
NAMES = ("", "unheard of", "two\nlines", "\ud800", "[/x]", "schema", "name")


def fuzz(file, use):
    """Calls `use` with the bytes that `file` makes of a source of random numbers, again and again -> what was made of
    them, None where they were refused. Any exception but a MerinoError that `taken` saw fails the test, and so does a
    reader that takes all files or none. Not a property: drawing such data would take most of the time.
    """
    examples, outcomes = settings.default.max_examples, set()
    first = 0 if examples <= ALL else random.SystemRandom().getrandbits(64)
    for seed in range(first, first + (6 * examples if examples >= ALL else max(30, 5 * examples // 2))):
        data = file(random.Random(seed))
        try:
            outcomes.add(use(data) is not None)
        except BaseException:
            print(f"case {seed}, {len(data)} bytes: {data[:5000]!r}")
            raise
    assert outcomes == {True, False}


def taken(read, *arguments):
    """What was read; None where it was refused by a message that a terminal can take."""
    try:
        return read(*arguments)
    except MerinoError as error:
        output = str(error)
        assert output and len(output) < LONGEST_MESSAGE, output[:1000]
        output.encode("utf-8")
        return None


def mutated_json(*values):
    """Bytes of JSON files near these values: as they are, changed in their structure, in their bytes, or in both."""
    return _mutated(values, lambda value: json.dumps(value, ensure_ascii=False).replace(f'"{DEEP}"', "[" * 10**5))


def mutated_toml(*values):
    return _mutated(values, _toml)


def _mutated(values, write):
    def file(chance):
        value = copy.deepcopy(chance.choice(values))
        for _ in range(chance.choice([0, 1, 1, 1, 2, 3])):
            value = _changed(chance, value)
        return mutated_bytes(chance, write(value).encode("utf-8", "surrogatepass"))

    return file


def mutated_bytes(chance, data):
    """A third stays as it is. Others are cut, lose or repeat a piece, or get an odd one."""
    for _ in range(chance.choice([0, 0, 1, 1, 2])):
        start = chance.randint(0, len(data))
        end = chance.randint(start, min(len(data), start + 40))
        how = chance.choice(["cut", "lose", "repeat", "insert", "replace", "flip"])
        if how == "cut":
            data = data[:start]
        elif how == "repeat":
            data = data[:end] + data[start:end] + data[end:]
        elif how == "flip":
            flipped = bytes(byte ^ 1 << chance.randint(0, 7) for byte in data[start:start + 1])
            data = data[:start] + flipped + data[start + 1:]
        else:
            odd = b"" if how == "lose" else chance.choice(BYTES)
            data = data[:start] + odd + data[start if how == "insert" else end:]
    return data


def _changed(chance, value):
    """One key or item deleted, renamed, replaced by an odd value or by another part, or put in a list."""
    places = list(_places(value))
    if not places:
        return copy.deepcopy(chance.choice(ODD))
    holder, key = chance.choice(places)
    how = chance.choice(["delete", "odd", "odd", "odd", "other", "rename", "wrap", "repeat"])
    if how == "delete":
        del holder[key]
    elif how == "odd":
        holder[key] = copy.deepcopy(chance.choice(ODD))
    elif how == "other":
        other, part = chance.choice(places)
        holder[key] = copy.deepcopy(other[part])
    elif how == "rename" and isinstance(holder, dict):
        holder[chance.choice(NAMES)] = holder.pop(key)
    elif how == "repeat" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[key] = [holder[key]]
    return value


def _places(value):
    """(list or object, key or index) of every part."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(inner):
        yield value, key
        yield from _places(part)


def _toml(value):
    """A TOML document, with tables inline. TOML has no null: the key is written without a value."""
    if not isinstance(value, dict):
        return _toml_value(value)
    return "".join(f"{json.dumps(key)} = {_toml_value(part)}\n" for key, part in value.items())


def _toml_value(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml_value(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if value == DEEP:
        return "[" * 10**5
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    return "" if value is None else json.dumps(value)
