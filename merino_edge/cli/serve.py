"""The command `serve`: the board's server, on this machine."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from merino_edge.cli.options import PrefillThreads, Threads, with_options
from merino_runtime.serving.command import OPTIONS, ServeRequest


def with_serving(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the server's options in place of its parameter `serving`, a dict of them."""
    options = {
        name: (Annotated[kind | None if default is None else kind, typer.Option(help=text)], default)
        for name, kind, text in OPTIONS
        for default in [ServeRequest._field_defaults[name]]
    }
    return with_options(command, "serving", options, dict)


@with_serving
def serve(
    bundles: Annotated[list[str], typer.Argument(metavar="BUNDLE", help="bundle folders, or `embedded`")],
    serving: dict[str, Any] = {},  # noqa: B006, by the decorator
    threads: Threads = None,
    prefill_threads: PrefillThreads = None,
    allow_slow: Annotated[bool, typer.Option("--allow-slow", help="run a format that is slow on this CPU")] = False,
) -> None:
    """Serve bundles to clients of OpenAI's and Ollama's interfaces."""
    from merino_bench.sensors.meter import open_sensors
    from merino_edge.families.names import bundle_path
    from merino_runtime.serving.command import run_serve

    run_serve(
        ServeRequest(
            bundles=tuple(bundle_path(each) for each in bundles), threads=threads, prefill_threads=prefill_threads,
            allow_slow=allow_slow, **serving,
        ),
        open_sensors(),
    )  # fmt: skip
