"""The command line's ends: a verb, results on stdout, messages on stderr, and errors as an exit code.

Outputs are written to files before anything is printed, so a stdout that fails loses only what is nowhere else. A
message that stderr rejects is dropped: no command may fail because of it.
"""
import argparse
import contextlib
import io
import os
import sys
import unicodedata
from typing import Any, Callable, NamedTuple, Optional, TextIO

from merino_runtime.errors import MerinoError, machine_fault
from merino_runtime.io.memory import lack_of_memory, ran_out
from merino_runtime.io.start import INTERRUPTED

CLOSED_PIPE = 141  # 128 + SIGPIPE
LONGEST = 400  # characters of a board's words in one message
KEPT = "\n\t"
# Embeddings, overrides and isolates: what follows would be shown in another order.
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class ClosedStdout(io.TextIOBase):
    """Replaces a stdout that was closed at the start. `print` would otherwise drop the text silently."""

    def write(self, text: str) -> int:  # noqa: ARG002
        raise MerinoError("cannot write to stdout: it is closed. Name a file, or leave it open.")


def write_out(text: str) -> None:
    """Write to stdout in UTF-8 and flush. `print` would raise under the C locale, which is common on boards. Half a
    character of a file's name is escaped. Raise BrokenPipeError if the reader ended, MerinoError if stdout is closed or
    fails."""
    write_stream(sys.stdout, "stdout", text.encode("utf-8", "backslashreplace"))


def write_lines(text: str) -> None:
    """Write text for people: names in it come from files, and must not control a terminal."""
    write_out(wrapped(visible_text(text), sys.stdout))


def wrapped(text: str, stream: Optional[TextIO]) -> str:
    """Return the text with line ends between words if the stream is a terminal, which would break words. A word that is
    longer than a line, such as a path, stays whole."""
    if stream is None or not stream.isatty():
        return text
    import shutil
    import textwrap

    columns = max(20, shutil.get_terminal_size().columns)
    return "\n".join(line if len(line) <= columns else
                     textwrap.fill(line, columns, break_long_words=False, break_on_hyphens=False,
                                   expand_tabs=False, replace_whitespace=False) for line in text.split("\n"))


def write_stream(stream: Optional[TextIO], name: str, data: bytes) -> None:
    """Write bytes to sys.stdout or sys.stderr; None if the process started without it. Raise as `write_out` does."""
    if stream is None:
        raise MerinoError(f"cannot write to {name}: it is closed. Name a file, or leave it open.")
    try:
        binary = getattr(stream, "buffer", None)
        if binary is None:  # it was replaced by a text stream, as in tests
            stream.write(data.decode("utf-8"))
        else:
            stream.flush()
            binary.write(data)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise machine_fault(f"write to {name}", error) from error


def say_note(text: str) -> None:
    say(f"note: {text}")


def say(text: str) -> None:
    say_line(f"merino: {text}")


def say_line(line: str) -> None:
    """Print a line to stderr, after what was printed so far. What would control a terminal is escaped."""
    with contextlib.suppress(OSError, AttributeError):  # None if the process started without a stdout
        sys.stdout.flush()
    if sys.stderr is not None:  # `print` would take None for stdout
        with contextlib.suppress(OSError):
            print(wrapped(visible_text(line), sys.stderr), file=sys.stderr, flush=True)


def as_text(argument: str) -> str:
    """Return a command-line argument decoded as UTF-8. Python 3.6 under the C locale decodes it as ASCII and turns
    other bytes into lone surrogates."""
    try:
        argument.encode("utf-8")
        return argument
    except UnicodeEncodeError:
        return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def stdout_is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def stderr_is_terminal() -> bool:
    """Return whether stderr is a terminal; False if the process started without a stderr."""
    return sys.stderr is not None and sys.stderr.isatty()


def show_line(line: str) -> None:
    """Print a line on stderr, a terminal, that replaces the previous one; an empty one clears it."""
    import shutil

    with contextlib.suppress(OSError):  # the terminal was closed; the work goes on
        sys.stderr.write("\r\x1b[K" + line[:shutil.get_terminal_size().columns - 1])  # to the line's beginning, erased
        sys.stderr.flush()


def exit_code(run: Callable[[], int], report: Callable[[str], None] = say) -> int:
    """Run a command. What a user or the machine can cause becomes one line of `report` and an exit code. A closed pipe
    on stdout ends the command silently, like other Unix tools."""
    if sys.stdout is None:
        sys.stdout = ClosedStdout()
    # A character that the terminal's encoding lacks, or half of one in a file's name, is escaped. Python 3.6 cannot
    # change a stream; there the board prints bytes of UTF-8, and ASCII.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            with contextlib.suppress(OSError, ValueError):  # it is closed, or cannot be changed
                reconfigure(errors="backslashreplace")
    code = _code_of(run, report)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        code = code or CLOSED_PIPE
        drop_stdout()
    except OSError as error:
        if not code:
            report(str(machine_fault("write to stdout", error)))
        code = code or 1
        drop_stdout()
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:  # `say_line` has left there what was not taken
        _drop(sys.stderr)
    return code


def _code_of(run: Callable[[], int], report: Callable[[str], None]) -> int:
    try:
        return run()
    except MerinoError as error:
        lack = None if str(error).startswith("out of memory") else lack_of_memory(error)
        _report_lack(lack, report) if lack is not None else report(str(error))
        return 1
    except KeyboardInterrupt:
        say_line("")
        return INTERRUPTED
    except BrokenPipeError:
        drop_stdout()
        return CLOSED_PIPE
    except Exception as error:
        lack = lack_of_memory(error)
        if lack is not None:
            _report_lack(lack, report)
        elif isinstance(error, OSError):
            report(str(machine_fault(f"use {error.filename}" if error.filename else "write to stdout", error)))
        else:
            raise
        return 1


def _report_lack(error: BaseException, report: Callable[[str], None]) -> None:
    """Report that memory ran out. It may not even suffice for the message with the figures."""
    error.__traceback__ = None  # it holds what the failed call had allocated
    try:
        report(ran_out(error))
    except MemoryError:
        with contextlib.suppress(OSError):
            os.write(2, b"out of memory\n")


def drop_stdout() -> None:
    """Discard what is left in stdout: Python flushes it at exit and would fail a second time."""
    _drop(sys.stdout)


def _drop(stream: Optional[TextIO]) -> None:
    with contextlib.suppress(OSError, AttributeError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)


class Verb(NamedTuple):
    """A subcommand. `merino_bench` adds its own through `__main__.main(extra_verbs=...)`."""
    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


# Foreign text (names in records, bundles and profiles, messages of programs, prose of models), escaped for a terminal
# or a page: no escape sequence, no change of direction, no endless line.


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
