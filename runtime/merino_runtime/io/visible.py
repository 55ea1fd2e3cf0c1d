"""Escapes foreign text for a terminal or a page: no escape sequence, no change of direction, no endless line.

Names come from records, bundles, profiles and boards, messages from programs there, prose from models.
"""
import unicodedata
from typing import Any, Optional

LONGEST = 400  # characters of a board's words in one message
KEPT = "\n\t"
# Embeddings, overrides and isolates: what follows would be shown in another order.
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def visible(text: str, longest: Optional[int] = LONGEST) -> str:
    """Return one line: what cannot be printed is escaped, such as \\x1b, and what is beyond `longest` is cut."""
    shown = _all_shown(text.strip())
    return shown if longest is None or len(shown) <= longest else shown[:longest] + "..."


def visible_text(text: str) -> str:
    """Return text of several lines with everything but line ends and tabs that cannot be printed escaped."""
    return text if text.isprintable() else "".join(char if char in KEPT else _shown(char) for char in text)


def cleaned(value: Any) -> Any:
    """Return a value of JSON with all its texts escaped for a terminal."""
    if isinstance(value, dict):
        return {_all_shown(key): cleaned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [cleaned(inner) for inner in value]
    return _all_shown(value) if isinstance(value, str) else value


def harmless(text: str) -> str:
    """Return prose in which only what would control a terminal, or change the direction, is escaped. What joins
    characters, and the spaces of all scripts, stay."""
    return "".join(
        _escaped(char) if char in DIRECTIONS or char not in KEPT and unicodedata.category(char) == "Cc" else char
        for char in text.replace("\r\n", "\n"))


def _all_shown(text: str) -> str:
    return "".join(map(_shown, text))


def _shown(char: str) -> str:
    return char if char.isprintable() else _escaped(char)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
