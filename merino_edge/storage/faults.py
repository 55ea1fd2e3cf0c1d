"""Pydantic's validation errors as one plain message that names every fault of a file."""

from pydantic import ValidationError


def fault_list(error: ValidationError) -> str:
    """`key: what is wrong (found: value)` for each fault, joined by semicolons."""
    return "; ".join(fault(detail) for detail in error.errors(include_url=False, include_context=False))


def fault(detail: object) -> str:
    """One fault; `detail` is an entry of `ValidationError.errors()`."""
    assert isinstance(detail, dict)
    key = ".".join(str(part) for part in detail["loc"]) or "the file"
    kind = detail["type"]
    if kind == "missing":
        return f"{key}: missing"
    if kind == "extra_forbidden":
        return f"{key}: unknown key, remove it"
    message = detail["msg"].removeprefix("Value error, ")
    found = detail["input"]
    shown = f" (found: {found!r})" if isinstance(found, str | int | float | bool) else ""
    return f"{key}: {message[0].lower()}{message[1:]}{shown}"
