"""The benchmark's progress on a workstation's terminal: a bar on stderr, nothing where nobody watches."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from merino_bench.harness.progress import Progress


@contextmanager
def bench_progress() -> Iterator[Progress | None]:
    """What `run_bench` takes; None without a terminal. Redrawn only between processes, so that it disturbs none."""
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
