"""Whether one JSON value is valid for a schema, as far as a constraint needs to know it before it is built."""
from typing import Any, Callable, Iterable, List, Optional

from merino_runtime.generation.constraints.keywords import (
    EXCEPT,
    KEYWORDS,
    LIMITS,
    NOT_PATTERN,
    Schema,
    different,
    identity,
    is_a,
)

Found = Callable[[str, str], Optional[bool]]


def all_known(results: Iterable[Optional[bool]]) -> Optional[bool]:
    """Return the conjunction of results, where None is unknown."""
    known = list(results)
    return False if False in known else None if None in known else True


def _not(result: Optional[bool]) -> Optional[bool]:
    return None if result is None else not result


def _any(results: Iterable[Optional[bool]]) -> Optional[bool]:
    return _not(all_known(map(_not, results)))


def fits(value: Any, schema: Schema, found: Found, alone: bool = False) -> Optional[bool]:
    """Return whether a value is valid for a schema; None if this function does not know. found: whether a pattern is
    found in a text. alone: without the choices of the schema, and without what it must not match."""
    results: List[Optional[bool]] = [] if alone else [
        _any(all_known(fits(value, part, found) for part in parts) for parts in choice) for choice in schema.choices]
    for keyword, part in schema.items():
        kind = KEYWORDS[keyword][0]
        if kind and not is_a(kind, value):
            continue
        if keyword == "type":
            results.append(any(is_a(name, value) for name in part))
        elif keyword in ("enum", EXCEPT):
            results.append((identity(value) in map(identity, part)) == (keyword == "enum"))
        elif keyword == "not":
            results += [] if alone else [_not(fits(value, part, found))]
        elif keyword in LIMITS:
            results.append(LIMITS[keyword](value if kind == "number" else len(value), part))
        elif keyword == "pattern":
            results.append(found(part, value))
        elif keyword == NOT_PATTERN:
            results.append(_not(found(part, value)))
        elif keyword in ("format", "multipleOf"):
            results.append(None)
        elif keyword == "required":
            results += [name in value for name in part]
        elif keyword == "uniqueItems":
            results += [len(different(value)) == len(value)] if part else []
    if isinstance(value, list):
        first, others = schema.get("prefixItems", []), schema.get("items")
        parts = [*first, *[others] * (len(value) - len(first))]
        results += [fits(item, part, found) for part, item in zip(parts, value) if part is not None]  # noqa: B905
    if isinstance(value, dict):
        results += [result for name, member in value.items() for result in _of_member(name, member, schema, found)]
    return all_known(results)


def _of_member(name: str, member: Any, schema: Schema, found: Found) -> List[Optional[bool]]:
    """Return what each keyword of an object says of one member."""
    matching = [(found(text, name), part) for text, part in schema.get("patternProperties", {}).items()]
    results = [_any([_not(match), fits(member, part, found)]) for match, part in matching]
    if name in schema.get("properties", {}):
        results.append(fits(member, schema["properties"][name], found))
    elif "additionalProperties" in schema:
        other = fits(member, schema["additionalProperties"], found)
        results.append(_any([*[match for match, _ in matching], other]))
    if "propertyNames" in schema:
        results.append(fits(name, schema["propertyNames"], found))
    return results
