"""A JSON schema for llguidance: what the built-in automaton reads, so that both take the same keys and no others."""
from typing import Any, Dict, FrozenSet, List

from merino_runtime.generation.constraints.automaton import Budget
from merino_runtime.generation.constraints.formats import FORMATS, OTHER_FORMATS
from merino_runtime.generation.constraints.keywords import EXCEPT, NOT_PATTERN, TYPES, Parts, Schema, refused
from merino_runtime.generation.constraints.normal import Flat, Normal, items, stated


def closed_schema(schema: Any, path: str = "") -> Dict[str, Any]:
    """Return the schema as alternatives with closed objects, each part once under `$defs`. Raise MerinoError if nothing
    is valid."""
    normal = Normal(schema, path, Budget())
    names: Dict[FrozenSet[Schema], str] = {}
    definitions: Dict[str, Any] = {}

    def reference(parts: Parts) -> Dict[str, Any]:
        key = stated(parts)
        if key not in names:
            name = names[key] = str(len(names))
            flats = [written(flat) for flat in normal.flats(parts)]
            definitions[name] = {"anyOf": flats} if flats else False
        return {"$ref": "#/$defs/" + names[key]}

    def written(flat: Flat) -> Dict[str, Any]:
        if flat.values is not None:
            return {"enum": flat.values}
        result: Dict[str, Any] = {"type": flat.types} if len(flat.types) < len(TYPES) - 1 else {}
        result.update(flat.limits)
        rules: List[Dict[str, Any]] = []
        for keyword, value, where in flat.rules:
            if keyword in (EXCEPT, NOT_PATTERN):
                rules.append({"not": {"enum" if keyword == EXCEPT else "pattern": value}})
            elif keyword != "format":
                rules.append({keyword: value})
            elif value in OTHER_FORMATS:
                raise refused(where, f"{value} is not supported")
            elif value in FORMATS:  # llguidance's own take February 30
                rules.append({"pattern": FORMATS[value]})
        result.update(rules[0] if len(rules) == 1 else {"allOf": rules} if rules else {})
        members = normal.members(flat)
        if "object" in flat.types and (members.named or members.patterns or members.names or members.others != ()):
            result["properties"] = {name: reference(parts) for name, parts in members.named.items()}
            result["required"] = [name for name in members.named if name in members.required]
            result["patternProperties"] = {text: reference(parts) for text, parts in members.patterns.items()}
            result["additionalProperties"] = False if members.others is None else reference(members.others)
            if members.names:
                result["propertyNames"] = reference(members.names)
        first, others = items(flat)
        if "array" in flat.types and (first or others):
            result["prefixItems"], result["items"] = [reference(parts) for parts in first], reference(others)
        if "array" in flat.types and any(part.get("uniqueItems") for part in flat.schemas):
            result["uniqueItems"] = True
        return result

    root = reference((normal.schema,))
    if definitions["0"] is False:
        raise refused(path + "#", "nothing satisfies it")
    return dict(root, **{"$defs": definitions})
