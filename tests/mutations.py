"""Files as a user, a disk or an enemy may leave them: a valid one, changed in its structure and in its bytes.

600 cases for each kind of file, the same each time; `--hypothesis-profile=long` makes more, and others each time.
"""

import copy
import json
import math

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

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


def fuzz(files, use):
    """Calls `use` with the bytes of each file -> what was made of it, None where it was refused. Any exception but a
    MerinoError that `taken` saw fails the test, and so does a reader that takes all files or none."""
    usual, outcomes = settings.default.max_examples, set()

    @given(data=files)
    @settings(max_examples=6 * usual, deadline=None, derandomize=usual <= 100, database=None,
              phases=[Phase.generate], suppress_health_check=list(HealthCheck))  # fmt: skip
    def case(data):
        outcomes.add(use(data) is not None)

    case()
    assert outcomes == {True, False}


def taken(read, *arguments):
    """What was read; None where it was refused by a message that a terminal can take."""
    try:
        return read(*arguments)
    except MerinoError as error:
        said = str(error)
        assert said and len(said) < LONGEST_MESSAGE, said[:1000]
        said.encode("utf-8")
        return None


def mutated_json(*values):
    """Bytes of JSON files near these values: as they are, changed in their structure, in their bytes, or in both."""
    return _mutated(values, lambda value: json.dumps(value, ensure_ascii=False).replace(f'"{DEEP}"', "[" * 10**5))


def mutated_toml(*values):
    return _mutated(values, _toml)


@st.composite
def _mutated(draw, values, write):
    value = copy.deepcopy(draw(st.sampled_from(values)))
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        value = _changed(draw, value)
    data = write(value).encode("utf-8", "surrogatepass")
    return mutated_bytes(draw, data)


def mutated_bytes(draw, data):
    """A third stays as it is. Others are cut, lose or repeat a piece, or get an odd one."""
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        how = draw(st.sampled_from(["cut", "lose", "repeat", "insert", "replace", "flip"]))
        if how == "cut":
            data = data[:start]
        elif how == "repeat":
            data = data[:end] + data[start:end] + data[end:]
        elif how == "flip":
            flipped = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in data[start:start + 1])
            data = data[:start] + flipped + data[start + 1:]
        else:
            odd = b"" if how == "lose" else draw(st.sampled_from(BYTES))
            data = data[:start] + odd + data[start if how == "insert" else end:]
    return data


def _changed(draw, value):
    """One key or item deleted, renamed, replaced by an odd value or by another part, or put in a list."""
    places = list(_places(value))
    if not places:
        return copy.deepcopy(draw(st.sampled_from(ODD)))
    holder, key = draw(st.sampled_from(places))
    how = draw(st.sampled_from(["delete", "odd", "odd", "odd", "other", "rename", "wrap", "repeat"]))
    if how == "delete":
        del holder[key]
    elif how == "odd":
        holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
    elif how == "other":
        other, part = draw(st.sampled_from(places))
        holder[key] = copy.deepcopy(other[part])
    elif how == "rename" and isinstance(holder, dict):
        holder[draw(st.sampled_from(NAMES))] = holder.pop(key)
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
