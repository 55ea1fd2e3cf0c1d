"""Progress on a board: one line on stderr, rewritten in place; nothing where stderr is no terminal."""
from typing import Callable, Optional

from merino_runtime.io.streams import show_line, stderr_is_terminal

Progress = Callable[[int, int, str], None]  # (done, total, what comes next); done == total: the end


def line_progress() -> Optional[Progress]:
    """None where stderr is no terminal."""
    return show_progress if stderr_is_terminal() else None


def show_progress(done: int, total: int, what: str) -> None:
    show_line(f"merino: {done}/{total} {what}" if done < total else "")
