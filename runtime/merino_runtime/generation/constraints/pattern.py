"""A regular expression over the characters of a text or of a JSON string, as an expression over its bytes; several of
them together.

Python's own parser reads it. What JSON schema's dialect and Python's mean alike is taken, the rest is refused: look
around, back references, boundaries, flags. In a JSON string each character is written as `json.dumps` writes it.
"""
import functools
import json
import re
import sys
import warnings
from typing import Any, Callable, Dict, List, Sequence, Tuple

from merino_runtime.errors import MerinoError
from merino_runtime.generation.constraints.automaton import DEAD, NOTHING, Automaton

LAST = sys.maxunicode
Ranges = List[Tuple[int, int]]  # of code points, both ends included
WITHOUT_SURROGATES: Ranges = [(0, 0xD7FF), (0xE000, LAST)]
MOST_REPEATED = 1000
CLASSES = {"DIGIT": [(48, 57)], "SPACE": [(9, 13), (32, 32)], "WORD": [(48, 57), (65, 90), (95, 95), (97, 122)]}
# Characters that some dialects count into a class and others do not: they match neither it nor its opposite.
DOUBTFUL = {"DIGIT": [(128, LAST)], "WORD": [(128, LAST)], "SPACE": [
    (28, 31), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x180E, 0x180E), (0x2000, 0x200D), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x2060), (0x3000, 0x3000), (0xFEFF, 0xFEFF)]}
MOST_STATES = 8000
Refuse = Callable[[str], MerinoError]
Build = Callable[[Automaton], int]
Write = Callable[[Ranges], int]  # one character of these -> its expression
# The formats of JSON schema as patterns. Each takes a part of what its standard does.
_YEAR = r"(\d{3}[1-9]|\d{2}[1-9]\d|\d[1-9]\d{2}|[1-9]\d{3})"
_LEAP = r"(\d\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DAY = (r"(" + _YEAR + r"-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|"
        r"02-(0[1-9]|1\d|2[0-8]))|" + _LEAP + r"-02-29)")
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_NAME = r"[A-Za-z0-9]{1,16}(-[A-Za-z0-9]{1,16}){0,2}"  # of a host; hyphens are single
_HOST = _NAME + r"(\." + _NAME + r"){0,3}"
_HEX = "[0-9A-Fa-f]{1,4}"
_IPV6 = "|".join([f"{_HEX}(:{_HEX}){{7}}", f"::({_HEX}(:{_HEX}){{0,6}})?", *[
    f"{_HEX}(:{_HEX}){{{count - 1}}}::({_HEX}(:{_HEX}){{0,{6 - count}}})?" for count in range(1, 7)]])
_CHAR = r"([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_TAIL = rf"(\?({_CHAR}|[/?])*)?(#({_CHAR}|[/?])*)?"
_AUTHORITY = rf"//([A-Za-z0-9._~-]+(:[A-Za-z0-9._~-]*)?@)?({_HOST}|\[({_IPV6})\])(:\d{{1,4}})?"
_URI = rf"[A-Za-z][A-Za-z0-9+.-]*:({_AUTHORITY}(/{_CHAR}*)*|/({_CHAR}+(/{_CHAR}*)*)?|{_CHAR}+(/{_CHAR}*)*){_TAIL}"
_RELATIVE = rf"({_AUTHORITY}(/{_CHAR}*)*|/({_CHAR}+(/{_CHAR}*)*)?|([A-Za-z0-9._~-]+(/{_CHAR}*)*)?){_TAIL}"
_DATES = r"(\d{1,9}Y(\d{1,9}M(\d{1,9}D)?)?|\d{1,9}M(\d{1,9}D)?|\d{1,9}D)"
_TIMES = r"T(\d{1,9}H(\d{1,9}M(\d{1,9}S)?)?|\d{1,9}M(\d{1,9}S)?|\d{1,9}S)"
_POINTER = "(/([^/~]|~[01])*)*"
FORMATS = {
    "date": f"^{_DAY}$", "time": f"^{_TIME}$", "date-time": f"^{_DAY}T{_TIME}$",
    "duration": rf"^P({_DATES}({_TIMES})?|{_TIMES}|\d{{1,9}}W)$",
    "uuid": "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
    "ipv4": rf"^{_BYTE}\.{_BYTE}\.{_BYTE}\.{_BYTE}$", "ipv6": f"^({_IPV6})$", "hostname": f"^{_HOST}$",
    "email": r"^[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+){0,4}@([A-Za-z0-9]+(-[A-Za-z0-9]+){0,4}\.){1,4}[A-Za-z]+$",
    "uri": f"^{_URI}$", "uri-reference": f"^({_URI}|{_RELATIVE})$",
    "json-pointer": f"^{_POINTER}$", "relative-json-pointer": rf"^(0|[1-9]\d{{0,8}})(#|{_POINTER})$",
}
FORMATS.update({"idn-email": FORMATS["email"], "idn-hostname": FORMATS["hostname"], "iri": FORMATS["uri"],
                "iri-reference": FORMATS["uri-reference"], "uri-template": FORMATS["uri-reference"]})
OTHER_FORMATS = {"regex"}  # of JSON schema too: texts that are of it are refused


def pattern(make: Automaton, text: str, refuse: Refuse) -> int:
    """Return a JSON string with its quotes, in which the pattern is found. `refuse` makes the error for one that is not
    supported."""
    write = functools.partial(_in_json, make)
    any_text = make.rep(write([(0, LAST)]))
    nodes = []
    for items, begins, ends in _branches(text, refuse):
        node = _sequence(make, items, refuse, write)
        nodes.append(make.seq(*[any_text] * (not begins), node, *[any_text] * (not ends)))
    return make.seq(make.lit(b'"'), make.alt(*nodes), make.lit(b'"'))


def regex(make: Automaton, text: str, refuse: Refuse) -> int:
    """Return the texts that match the pattern from their beginning to their end."""
    write = functools.partial(characters, make)
    return make.alt(*[_sequence(make, items, refuse, write) for items, _, _ in _branches(text, refuse)])


def _branches(text: str, refuse: Refuse) -> List[Tuple[List[Any], bool, bool]]:
    """Return the alternatives of a pattern, each with whether it begins and ends with an anchor."""
    parser: Any = getattr(re, "_parser", None)
    if parser is None:  # before Python 3.11
        import sre_parse as parser
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = list(parser.parse(text))
    except (re.error, RecursionError, OverflowError) as error:
        raise refuse(f"{json.dumps(text)[:80]} is not a pattern that can be read: {error}") from error
    while len(parsed) == 1 and str(parsed[0][0]) == "SUBPATTERN" and not any(parsed[0][1][1:-1]):
        parsed = list(parsed[0][1][-1])  # a group around all
    branches = list(map(list, parsed[0][1][1])) if len(parsed) == 1 and str(parsed[0][0]) == "BRANCH" else [parsed]
    results = []
    for items in branches:
        begins = bool(items) and _named(items[0]) == ("AT", "AT_BEGINNING")
        items = items[1:] if begins else items
        ends = bool(items) and _named(items[-1]) == ("AT", "AT_END")
        results.append((items[:-1] if ends else items, begins, ends))
    return results


def _named(item: Any) -> Tuple[str, str]:
    return str(item[0]), str(item[1])


def _sequence(make: Automaton, items: Sequence[Any], refuse: Refuse, write: Write) -> int:
    return make.seq(*[_item(make, str(item[0]), item[1], refuse, write) for item in items])


def _item(make: Automaton, kind: str, value: Any, refuse: Refuse, write: Write) -> int:
    if kind == "LITERAL":
        return write([(value, value)])
    if kind == "NOT_LITERAL":
        return write(others([(value, value)]))
    if kind == "ANY":
        return write(others([(10, 10), (13, 13), (0x2028, 0x2029)]))
    if kind == "IN":
        return write(_class(value, refuse))
    if kind == "SUBPATTERN" and (len(value) == 2 or not any(value[1:3])):
        return _sequence(make, value[-1], refuse, write)
    if kind == "BRANCH":
        return make.alt(*[_sequence(make, sequence, refuse, write) for sequence in value[1]])
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        low, high, inner = int(value[0]), int(value[1]), _sequence(make, value[2], refuse, write)
        high = -1 if str(value[1]) == "MAXREPEAT" else high
        if max(low, high) > MOST_REPEATED:
            raise refuse(f"a repetition of {max(low, high)}, supported are {MOST_REPEATED}")
        return make.rep(inner, low, high)
    names = {"AT": "an anchor inside it, or a boundary", "ASSERT": "look-ahead or look-behind",
             "ASSERT_NOT": "look-ahead or look-behind", "GROUPREF": "a back reference", "SUBPATTERN": "flags in it"}
    raise refuse(f"{names.get(kind, kind)} is not supported")


def _class(items: Sequence[Any], refuse: Refuse) -> Ranges:
    """Return the characters that are in the class by every dialect."""
    negated = bool(items) and str(items[0][0]) == "NEGATE"
    ranges: Ranges = []  # if negated, with those that are in it by some dialect
    for kind, value in items[1:] if negated else items:
        if str(kind) == "LITERAL":
            ranges.append((value, value))
        elif str(kind) == "RANGE":
            ranges.append((value[0], value[1]))
        elif str(kind) == "CATEGORY":
            name = str(value).replace("CATEGORY_", "")
            inner = name.replace("NOT_", "")
            if inner not in CLASSES:
                raise refuse(f"{name} is not supported")
            members = CLASSES[inner] if name.startswith("NOT_") == negated else [*CLASSES[inner], *DOUBTFUL[inner]]
            ranges += others(members) if name.startswith("NOT_") else members
        else:
            raise refuse(f"{kind} is not supported")
    return others(ranges) if negated else ranges


def others(ranges: Ranges) -> Ranges:
    gaps, begin = [], 0
    for low, high in sorted(ranges):
        if begin < low:
            gaps.append((begin, low - 1))
        begin = max(begin, high + 1)
    return [*gaps, (begin, LAST)] if begin <= LAST else gaps


def characters(make: Automaton, ranges: Ranges, plain: Ranges = WITHOUT_SURROGATES) -> int:
    """Return one character of these that is `plain`, in UTF-8."""
    return make.alt(*[make.code_points(max(low, first), min(high, last)) for low, high in ranges
                      for first, last in plain if max(low, first) <= min(high, last)])


def _in_json(make: Automaton, ranges: Ranges) -> int:
    """Return one character of these, as `json.dumps` writes it."""
    special = [code for low, high in ranges for code in [*range(32), 0x22, 0x5C] if low <= code <= high]
    plain = characters(make, ranges, [(0x20, 0x21), (0x23, 0x5B), (0x5D, 0xD7FF), (0xE000, LAST)])
    return make.alt(plain, *[make.lit(json.dumps(chr(code))[1:-1].encode()) for code in special])


def product(make: Automaton, wanted: Sequence[Build], unwanted: Sequence[Build], refuse: Refuse) -> int:
    """Return the texts that all of wanted match and none of unwanted, as a table of states. Each builds its expression
    in the automaton that it gets. `refuse` makes the error for a table that would be too large."""
    # 1. One automaton of all expressions; a state here is one state of each.
    parts = Automaton(make.spelled, make.budget)
    nodes = [build(parts) for build in [*wanted, *unwanted]]
    first = tuple(parts.start(node) for node in nodes)
    count = len(wanted)
    classes = parts.classes()  # [256], of bytes that all expressions treat alike
    of_class = {classes[byte]: byte for byte in sorted(make.spelled)}
    columns = max(classes) + 1
    # 2. All states that can be reached from the first.
    number: Dict[Tuple[int, ...], int] = {first: 0}
    states, rows = [first], []  # type: List[Tuple[int, ...]], List[List[int]]
    for state in states:  # grows
        row = [-1] * columns
        for column, byte in of_class.items():
            after = tuple(parts.after(part, byte) for part in state)
            if DEAD in after[:count]:
                continue
            if after not in number:
                if len(states) >= MOST_STATES:
                    raise refuse(f"together with the keywords beside it, it needs more than {MOST_STATES:,} states")
                number[after] = len(states)
                states.append(after)
            row[column] = number[after]
        rows.append(row)
    ends = [all(map(parts.accepts, state[:count])) and not any(map(parts.accepts, state[count:])) for state in states]
    # 3. Those that lead to an end, from the ends backward.
    before: List[List[int]] = [[] for _ in states]
    for index, row in enumerate(rows):
        for following in set(row) - {-1}:
            before[following].append(index)
    useful = {index for index, end in enumerate(ends) if end}
    left = list(useful)
    while left:
        new = set(before[left.pop()]) - useful
        useful |= new
        left += new
    if 0 not in useful or DEAD in first[:count]:
        return NOTHING
    order = {index: place for place, index in enumerate(sorted(useful))}
    return make.table(bytes(classes), [[order.get(after, -1) for after in rows[index]] for index in order],
                      [ends[index] for index in order])
