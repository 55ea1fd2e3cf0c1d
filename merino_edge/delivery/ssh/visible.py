"""Text that came from a board, made fit for a terminal: no escape sequence, no change of direction, no endless line."""

from typing import Any

LONGEST = 400  # characters of a board's words in one message
KEPT = "\n\t"


def visible(text: str, longest: int | None = LONGEST) -> str:
    """One line of it: what cannot be printed becomes its escape, such as \\x1b, and what is beyond `longest` is cut."""
    shown = _all_shown(text.strip())
    return shown if longest is None or len(shown) <= longest else shown[:longest] + "..."


def visible_text(text: str) -> str:
    """Text of several lines, whole: line ends and tabs stay."""
    return "".join(character if character in KEPT else _shown(character) for character in text)


def cleaned(value: Any) -> Any:
    """A value of JSON with all its texts fit for a terminal."""
    if isinstance(value, dict):
        return {_all_shown(key): cleaned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [cleaned(inner) for inner in value]
    return _all_shown(value) if isinstance(value, str) else value


def _all_shown(text: str) -> str:
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
