"""Where a talk is shown: a person's terminal, or a pipe.

Both have read, begin, show, end, tell, refuse, goes_on and code, with which the talk ends.
"""
import contextlib
import sys
from typing import Iterator, Optional

from merino_runtime.commands import as_text
from merino_runtime.errors import MerinoError
from merino_runtime.screen import Thinking, Wrapped, takes_styles, width
from merino_runtime.streams import say, write_out
from merino_runtime.text import LONGEST_TEXT_BYTES


class Terminal:
    """A person's. ctrl-C at the prompt leaves where it comes twice."""
    goes_on = True  # after ctrl-C
    code = 0

    def __init__(self) -> None:
        with contextlib.suppress(ImportError):  # a Python without it has no keys to edit a line with
            import readline  # noqa: F401
        self._interrupts = 0

    def read(self) -> Optional[str]:
        while True:
            try:
                typed = as_text(input("> "))
                self._interrupts = 0
                return typed
            except EOFError:
                write_out("\n")
                return None
            except KeyboardInterrupt:
                self._interrupts += 1
                if self._interrupts > 1:
                    raise
                write_out("\n")
                self.tell("ctrl-C once more, or ctrl-D, leaves")

    def begin(self, thinks: bool) -> None:
        self._thinking = Thinking(thinks)
        self._lines = Wrapped(write_out, width(), takes_styles())

    def show(self, text: str) -> None:
        for piece, thinking in self._thinking.push(text):
            self._lines.push(piece, thinking)

    def end(self) -> None:
        for piece, thinking in self._thinking.finish():
            self._lines.push(piece, thinking)
        self._lines.finish()

    def tell(self, text: str, greeting: bool = False) -> None:  # noqa: ARG002
        lines = Wrapped(write_out, width(), takes_styles())
        lines.push(text, dim=True)
        lines.finish()

    def refuse(self, error: MerinoError) -> None:
        self.tell(str(error))


class Pipe:
    """Each line of stdin is a turn; stdout gets the answers and nothing else."""
    goes_on = False

    def __init__(self) -> None:
        self._lines = stdin_lines()
        self.code = 0

    def read(self) -> Optional[str]:
        return next(self._lines, None)

    def begin(self, thinks: bool) -> None:
        pass

    def show(self, text: str) -> None:
        write_out(text)

    def end(self) -> None:
        write_out("\n")

    def tell(self, text: str, greeting: bool = False) -> None:
        if not greeting:
            for line in text.split("\n"):
                say(line)

    def refuse(self, error: MerinoError) -> None:
        self.tell(str(error))
        self.code = 1


def stdin_lines() -> Iterator[str]:
    """Without their ends. Raises MerinoError for one that is not UTF-8 or too long."""
    number = 0
    while sys.stdin is not None:
        data = sys.stdin.buffer.readline(LONGEST_TEXT_BYTES + 1)
        if not data:
            return
        number += 1
        if len(data) > LONGEST_TEXT_BYTES:
            raise MerinoError(f"line {number} of stdin is longer than {LONGEST_TEXT_BYTES:,} bytes, the most that are "
                              "allowed. Shorten it.")
        try:
            yield data.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise MerinoError(f"line {number} of stdin is not UTF-8 text (byte {error.start}): convert it "
                              "first.") from error
