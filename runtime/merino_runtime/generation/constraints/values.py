"""Whether one JSON value is valid for a schema, as far as a constraint needs to know it before it is built."""
from typing import Any, Callable, Iterable, List, Optional

from merino_runtime.generation.constraints.keywords import (
    EXCEPT,
    IN_PLACE,
    NOT_PATTERN,
    REFUSED,
    bounds_of,
    different,
    holds,
    identity,
    is_a,
    items_of,
    types_of,
)

Found = Callable[[str, str], Optional[bool]]


def all_known(results: Iterable[Optional[bool]]) -> Optional[bool]:
    """Return the conjunction of results, where None is unknown."""
    known = list(results)
    return False if False in known else None if None in known else True


def fits(value: Any, schema: Any, target: Callable[[str], Any], found: Found) -> Optional[bool]:
    """Return whether a value is valid for a schema; None if this function does not know. target: of a $ref. found:
    whether a pattern is found in a text."""
    if not isinstance(schema, dict):
        return schema if isinstance(schema, bool) else None

    def inner(part: Any, of: Any = value) -> Optional[bool]:
        return fits(of, part, target, found)

    def not_(result: Optional[bool]) -> Optional[bool]:
        return None if result is None else not result

    def any_(results: Iterable[Optional[bool]]) -> Optional[bool]:
        return not_(all_known(map(not_, results)))

    results: List[Optional[bool]] = []
    for keyword, part in schema.items():
        if keyword == "type":
            results.append(any(is_a(kind, value) for kind in types_of(schema, "#")))
        elif keyword in ("const", "enum"):
            allowed = [part] if keyword == "const" else part
            results.append(identity(value) in {identity(constant) for constant in allowed})
        elif keyword == EXCEPT:
            results.append(identity(value) not in {identity(constant) for constant in part})
        elif keyword == "$ref":
            results.append(inner(target(part)))
        elif keyword == "allOf":
            results += [inner(branch) for branch in part]
        elif keyword == "anyOf":
            results.append(any_([inner(branch) for branch in part]))
        elif keyword == "oneOf":
            known = [inner(branch) for branch in part]
            results.append(False if known.count(True) > 1 else None if None in known else known.count(True) == 1)
        elif keyword == "not":
            results.append(not_(inner(part)))
        elif keyword in IN_PLACE or keyword in REFUSED:
            results.append(None)
    if is_a("number", value):
        results += [holds(name, bound, value) for name, bound in bounds_of(schema, "#")]
        results += [None] * ("multipleOf" in schema)
    if isinstance(value, str):
        results.append(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)))
        results += [None] * ("format" in schema)
        if "pattern" in schema:
            results.append(found(schema["pattern"], value))
        if NOT_PATTERN in schema:
            results.append(not_(found(schema[NOT_PATTERN], value)))
    if isinstance(value, list):
        first, (others, _) = items_of(schema, "#")
        parts = [part for part, _ in first] + [others] * (len(value) - len(first))
        results += [inner(part, item) for part, item in zip(parts, value)]  # noqa: B905, not in 3.6
        results.append(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)))
        results += [len(different(value)) == len(value)] if schema.get("uniqueItems") is True else []
        results += [None] * ("contains" in schema)
    if isinstance(value, dict):
        properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        results += [name in value for name in schema.get("required", []) if isinstance(schema["required"], list)]
        results.append(schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)))
        for name, member in value.items():
            matching = [(found(text, name), part) for text, part in patterns.items()]
            results += [any_([not_(match), inner(part, member)]) for match, part in matching]
            if name in properties:
                results.append(inner(properties[name], member))
            elif "additionalProperties" in schema:
                results.append(any_([*[match for match, _ in matching], inner(schema["additionalProperties"], member)]))
            if "propertyNames" in schema:
                results.append(inner(schema["propertyNames"], name))
    return all_known(results)
