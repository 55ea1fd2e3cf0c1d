"""Talk and progress on a workstation's terminal, on stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from merino_bench.harness.progress import Progress


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def bench_progress() -> Iterator[Progress | None]:
    """A bar, as `run_bench` takes it; None without a terminal. Redrawn only between processes, to disturb none."""
    stderr = Console(stderr=True)
    if not stderr.is_terminal:
        yield None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=stderr, transient=True, auto_refresh=False, redirect_stdout=False) as bar:
        task = bar.add_task("")

        def tell(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what, refresh=True)
            if done >= total:
                bar.stop()  # results are printed next

        yield tell
