"""A JSON schema for llguidance: what the built-in automaton reads, so that both take the same keys and no others."""
from typing import Any, Dict

from merino_runtime.generation.constraints.automaton import Budget
from merino_runtime.generation.constraints.formats import FORMATS, OTHER_FORMATS
from merino_runtime.generation.constraints.keywords import EXCEPT, NOT_PATTERN, TYPES, refused
from merino_runtime.generation.constraints.normal import Flat, Normal, Parts


def closed_schema(schema: Any, path: str = "") -> Any:
    """Return the schema as alternatives with closed objects, each part once under `$defs`; False: nothing is valid."""
    normal = Normal(schema, path, Budget())
    names: Dict[Any, str] = {}
    definitions: Dict[str, Any] = {}

    def reference(parts: Parts) -> Dict[str, Any]:
        key = tuple(sorted({id(part) for part, _ in parts if part is not True}))
        if key not in names:
            name = names[key] = str(len(names))
            flats = [written(flat) for flat in normal.flats(parts)]
            definitions[name] = {"anyOf": flats} if len(flats) != 1 else flats[0]
            if not flats:
                definitions[name] = False
        return {"$ref": "#/$defs/" + names[key]}

    def written(flat: Flat) -> Dict[str, Any]:
        if flat.values is not None:
            return {"enum": flat.values}
        result: Dict[str, Any] = {"type": flat.types} if len(flat.types) < len(TYPES) - 1 else {}
        result.update(flat.bounds)
        result.update(flat.sizes)
        more = [{"multipleOf": multiple} for multiple in flat.multiples]
        for keyword, value, where in flat.texts:
            if keyword in (EXCEPT, NOT_PATTERN):
                more.append({"not": {"enum" if keyword == EXCEPT else "pattern": value}})
            elif keyword == "pattern":
                more.append({"pattern": value})
            elif value in OTHER_FORMATS:
                raise refused(where, f"{value} is not supported")
            elif value in FORMATS:  # llguidance's own take February 30
                more.append({"pattern": FORMATS[value]})
        if len(more) == 1:
            result.update(more[0])
        elif more:
            result["allOf"] = more
        if flat.objects and "object" in flat.types:
            members = normal.members(flat)
            result["properties"] = {name: reference(parts) for name, parts in members.named.items()}
            result["required"] = [name for name in members.named if name in members.required]
            result["patternProperties"] = {text: reference(parts) for text, parts in members.patterns.items()}
            result["additionalProperties"] = False if members.others is None else reference(members.others)
            if members.names:
                result["propertyNames"] = reference(members.names)
        if flat.arrays and "array" in flat.types:
            first, others = normal.items(flat)
            result["prefixItems"], result["items"] = [reference(parts) for parts in first], reference(others)
            for part, _ in flat.arrays:
                result.update({keyword: part[keyword] for keyword in ("uniqueItems", "contains")
                               if part.get(keyword, False) is not False})
        return result

    root = reference(((schema, path + "#"),))
    return definitions["0"] is not False and dict(root, **{"$defs": definitions})
