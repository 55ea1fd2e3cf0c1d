"""The workstation's terminal: messages and progress on stderr, tables on stdout.

rich is imported when something is drawn, so that commands which draw nothing start at once.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from merino_edge.storage.atomic import write_text
from merino_runtime.io.outputs import is_stdout
from merino_runtime.io.streams import say_line, visible_text, wrapped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn, TaskID

    from merino_bench.harness.run import Progress


def say(text: str) -> None:
    say_line(text)


def put(text: str) -> None:
    """A result for people on stdout, without control characters: names in it come from files and boards."""
    print(wrapped(visible_text(text), sys.stdout))


def save(out: Path | None, text: str) -> bool:
    """Write a command's output where it is asked for -> whether stdout is free for tables: `-o -` takes it."""
    if out is None:
        return True
    write_text(out, text)
    if is_stdout(str(out)):
        return False
    say(f"wrote {out}")
    return True


def console(stderr: bool = False) -> "Console":
    """Make a console, which prints text unchanged, because names and paths come from files."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            """Left to the command's end, as where anything else is printed; rich would exit with 1."""
            raise BrokenPipeError

    return Plain(stderr=stderr, markup=False, emoji=False, highlight=False)


@contextmanager
def working(on: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr while a call takes its seconds, which shows the step that it is told; nothing if stderr is no
    terminal."""
    from rich.text import Text

    stderr = console(stderr=True)
    if stderr.is_terminal:
        with stderr.status(Text(on)) as status:  # the spinner would take a string for markup
            yield lambda step: status.update(Text(f"{on}: {step}"))
    else:
        yield lambda _: None


@contextmanager
def bench_progress() -> "Iterator[Progress | None]":
    """A bar, as `run_bench` takes it; None without a terminal. Redrawn only between processes, to disturb none."""
    with counting(auto_refresh=False) as report:
        yield report


@contextmanager
def counted_progress(unit: str = "step", *, keep: bool = False) -> "Iterator[Progress]":
    """A bar on stderr; without a terminal a line at each tenth of the units. `keep`: several counts follow."""
    with counting(ends=not keep) as report:
        yield report or partial(tenths, unit)


@contextmanager
def counting(auto_refresh: bool = True, ends: bool = True) -> "Iterator[Progress | None]":
    """A bar on stderr with the count of what is done, which `ends` when all is; None without a terminal."""
    from rich.progress import MofNCompleteColumn

    stderr = console(stderr=True)
    if not stderr.is_terminal:
        yield None
        return
    with bars(stderr, MofNCompleteColumn(), auto_refresh=auto_refresh) as bar:
        task = bar.add_task("")

        def report(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what, refresh=not auto_refresh)
            if ends and done >= total:
                bar.stop()  # results are printed next

        yield report


@contextmanager
def boards_progress() -> Iterator[Callable[[str, str, int, int], None]]:
    """A bar per board, as `flash_all` reports them; without a terminal a line at each step."""
    from rich.progress import TextColumn

    last: dict[str, str] = {}

    def line(host: str, doing: str, done: int, total: int) -> None:  # noqa: ARG001
        if last.get(host) != doing:
            last[host] = doing
            say(f"{host}: {doing}")

    stderr = console(stderr=True)
    if not stderr.is_terminal:
        yield line
        return
    with bars(stderr, TextColumn("{task.fields[host]}", markup=False)) as bar:
        tasks: dict[str, TaskID] = {}

        def report(host: str, doing: str, done: int, total: int) -> None:
            if host not in tasks:
                tasks[host] = bar.add_task(doing, host=host, total=None)
            size = f" {done / 2**20:,.0f} of {total / 2**20:,.0f} MB" if total else ""
            bar.update(tasks[host], description=doing + size, completed=done, total=total or None)

        yield report


def bars(stderr: "Console", first: "ProgressColumn", auto_refresh: bool = True) -> "Bars":
    """Return bars that vanish at their end: the column `first`, the bar, the time, and the description."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (first, BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    return Bars(*columns, console=stderr, transient=True, auto_refresh=auto_refresh, redirect_stdout=False)


@contextmanager
def copy_progress(host: str) -> Iterator[Callable[[str, int, int], None]]:
    """The bar of one board: a file's name, the bytes that are copied, of how many; 0 of 0 for other work."""
    with boards_progress() as report:
        yield lambda name, done, total: report(host, f"copying {name}" if total else name, done, total)


def tenths(unit: str, done: int, total: int, what: str) -> None:
    if done % max(1, total // 10) == 0:
        say(f"{unit} {done:,} of {total:,}: {what}")
