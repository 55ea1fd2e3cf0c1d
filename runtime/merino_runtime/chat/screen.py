"""Writes an answer to a terminal: lines broken between words, thinking dimmed, no control characters."""
import os
import shutil
import sys
import unicodedata
from typing import Callable, List, Tuple

from merino_runtime.chat.template import THINK, THINK_END
from merino_runtime.generation.text import tail_to_hold
from merino_runtime.io.visible import harmless

DIM, NORMAL = "\x1b[2m", "\x1b[22m"


def is_terminal() -> bool:
    """Return whether stdin and stdout are a terminal."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def takes_styles() -> bool:
    return "NO_COLOR" not in os.environ and os.environ.get("TERM") not in (None, "dumb")


def width() -> int:
    return max(8, shutil.get_terminal_size().columns)


class Thinking:
    """Separates an answer's thinking from the rest, as the text arrives. thinks: whether it begins inside thinking."""

    def __init__(self, thinks: bool = False) -> None:
        self._thinks, self._withheld = thinks, ""

    def push(self, text: str) -> List[Tuple[str, bool]]:
        """Return parts of the text, each with whether it is thinking. The marks belong to the thinking."""
        text, parts = self._withheld + text, []
        while True:
            mark = THINK_END if self._thinks else THINK
            start = text.find(mark)
            if start < 0:
                break
            end = start + (len(mark) if self._thinks else 0)
            parts.append((text[:end], self._thinks))
            text = text[end:]
            self._thinks = not self._thinks
        sure = len(text) - tail_to_hold(text, [THINK_END if self._thinks else THINK])
        parts.append((text[:sure], self._thinks))
        self._withheld = text[sure:]
        return [part for part in parts if part[0]]

    def finish(self) -> List[Tuple[str, bool]]:
        text, self._withheld = self._withheld, ""
        return [(text, self._thinks)] if text else []


class Wrapped:
    """Writes text in lines of at most `columns`, broken between words; longer words are cut. A word is written once it
    is complete."""

    def __init__(self, write: Callable[[str], None], columns: int, styles: bool = False) -> None:
        self._write, self._columns, self._styles = write, columns, styles
        self._word, self._gap = "", ""
        self._word_columns = self._column = 0
        self._dim = False

    def push(self, text: str, dim: bool = False) -> None:
        out: List[str] = []
        if dim != self._dim:
            self._take_word(out)
            self._dim = dim
            out += [DIM if dim else NORMAL] * self._styles
        for char in harmless(text):
            if char == "\n":
                self._take_word(out)
                out.append("\n")
                self._gap, self._column = "", 0
            elif char in " \t":
                self._take_word(out)
                self._gap += " " if char == " " else "    "
            else:
                self._add(char, out)
        self._write("".join(out))

    def finish(self) -> None:
        """End the line, in the normal style."""
        out: List[str] = []
        self._take_word(out)
        out += [NORMAL] * (self._styles and self._dim) + ["\n"] * (self._column > 0)
        self._gap, self._column, self._dim = "", 0, False
        self._write("".join(out))

    def _add(self, char: str, out: List[str]) -> None:
        columns = columns_of(char)
        if columns == 2 or self._word_columns + columns > self._columns:  # a line may be broken before such a character
            self._take_word(out)
        self._word += char
        self._word_columns += columns
        if columns == 2:
            self._take_word(out)

    def _take_word(self, out: List[str]) -> None:
        if not self._word:
            return
        if self._column and self._column + len(self._gap) + self._word_columns > self._columns:
            out.append("\n")
            self._column, self._gap = 0, ""
        indent = self._gap[:max(0, self._columns - self._word_columns)]
        out += [indent, self._word]
        self._column += len(indent) + self._word_columns
        self._word, self._gap, self._word_columns = "", "", 0


def columns_of(char: str) -> int:
    """Return a character's width: 2 for East Asian wide characters and emoji, 0 for combining ones."""
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
