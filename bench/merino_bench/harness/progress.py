"""Progress on a board: one line on stderr, rewritten in place; nothing where stderr is no terminal."""
import contextlib
import shutil
import sys
from typing import Callable, Optional

from merino_runtime.streams import stderr_is_terminal

Progress = Callable[[int, int, str], None]  # (done, total, what comes next); done == total: the end


def line_progress() -> Optional[Progress]:
    """None where stderr is no terminal."""
    return show_line if stderr_is_terminal() else None


def show_line(done: int, total: int, what: str) -> None:
    line = f"merino: {done}/{total} {what}" if done < total else ""
    width = shutil.get_terminal_size().columns - 1
    with contextlib.suppress(OSError):  # the terminal was closed; the measurements go on
        sys.stderr.write("\r\x1b[K" + line[:width])  # back to the line's beginning, and erase it
        sys.stderr.flush()
