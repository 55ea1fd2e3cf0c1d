"""Text that came from a board, made fit for a terminal: no escape sequence, no change of direction, no endless line."""

LONGEST = 400  # characters of a board's words in one message
KEPT = "\n\t"


def visible(text: str, longest: int | None = LONGEST) -> str:
    """One line of it: what cannot be printed becomes its escape, such as \\x1b, and what is beyond `longest` is cut."""
    shown = "".join(map(_shown, text.strip()))
    return shown if longest is None or len(shown) <= longest else shown[:longest] + "..."


def visible_text(text: str) -> str:
    """Text of several lines, whole: line ends and tabs stay."""
    return "".join(character if character in KEPT else _shown(character) for character in text)


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
