"""The workstation's command line, `merino-edge`. Each command: parse, one call, one file written.

The commands are registered here, in the order of the help. Each has a module, or shares one with its group: `records`,
`deliver`, and `board_verbs` for those that the board has too.

Data goes to stdout, messages to stderr. Exit codes: 0 done, 1 the request cannot be met, 2 wrong usage. Modules that
load torch are imported inside the commands, so that the others start at once.
"""

import atexit
import gc
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from merino_edge import __version__
from merino_edge.cli.board_verbs import add_to
from merino_edge.cli.deliver import check, flash, keygen, pack
from merino_edge.cli.deploy import deploy
from merino_edge.cli.design import design
from merino_edge.cli.export import export
from merino_edge.cli.house import house
from merino_edge.cli.job import job
from merino_edge.cli.options import HOST, Board, Json, Ssh
from merino_edge.cli.recommend import recommend
from merino_edge.cli.records import compare, evaluate, report
from merino_edge.cli.terminal import say
from merino_edge.cli.train import train
from merino_edge.storage.extras import not_installed
from merino_runtime.io.streams import CLOSED_PIPE, drop_stdout, exit_code

# At exit Python searches all objects for cycles, which takes 1.4 s of CPU if torch is loaded. The process ends anyway.
atexit.register(gc.freeze)


class Commands(TyperGroup):
    """Ends a command whose pipe was closed, because click would exit with 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            drop_stdout()
            sys.exit(CLOSED_PIPE)


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)


# The groups of commands in the help.
RUN, MAKE, MEASURE, DELIVER = "Run a model", "Make a model", "Measure", "Deliver step by step"


def show_version(requested: bool) -> None:
    if requested:
        print(f"merino-edge {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Design, train, export, run and measure small language models for edge boards."""


@app.command(rich_help_panel=RUN)
def devices(
    device: Annotated[str | None, typer.Argument(metavar="[ID]", help="board id; default: list all boards")] = None,
    as_json: Json = False,
) -> None:
    """List the boards, or print every figure of one board with its source."""
    from merino_edge.calibration.this_machine import facts
    from merino_edge.cli.over_ssh import board
    from merino_edge.cli.tables import device_table, devices_table, show
    from merino_edge.profiles.reading import list_profiles

    profiles = [board(device, say)] if device else list_profiles()
    if as_json:
        figures = [profile.model_dump(mode="json", by_alias=True, exclude_none=True) for profile in profiles]
        print(json.dumps(figures if device else [*figures, facts()]))
    else:
        show(device_table(profiles[0]) if device else devices_table(profiles))


command: Callable[..., None]
for command in (deploy, recommend):
    app.command(rich_help_panel=RUN)(command)
app.command(rich_help_panel=MAKE)(design)


@app.command(rich_help_panel=MEASURE)
def calibrate(
    board_name: Board,
    probe: Annotated[
        list[Path] | None, typer.Option(help="probe.json, made by `merino probe`; repeat to use the per-row median")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", help="output path of the calibrated profile; --board accepts it")
    ] = None,
    ssh: Annotated[str | None, typer.Option(metavar=HOST, help="probe this board over ssh, instead of --probe")] = None,
) -> None:
    """Fit a board's profile to its measurements. `--board host` measures this machine and stores the result."""
    from merino_edge.calibration.command import recalibrate
    from merino_edge.cli.over_ssh import choose_and_measure, probe_there
    from merino_edge.cli.tables import interval_table, residual_table, show
    from merino_runtime.io.outputs import is_stdout

    measure = None if ssh is None else partial(probe_there, ssh)
    measure_designs = partial(choose_and_measure, ssh)
    calibrated = recalibrate(board_name, probe or (), out, say, probe_board=measure, choose=measure_designs)
    if out is not None and is_stdout(str(out)):
        return
    if out:
        say(f"wrote {out}")
    show(residual_table(calibrated.residuals), interval_table(calibrated.errors))


for command in (train, export):
    app.command(rich_help_panel=MAKE)(command)
for name in ("generate", "chat", "serve"):
    add_to(app, name, RUN)
app.command(rich_help_panel=RUN)(house)
app.add_typer(job, name="job", rich_help_panel=MAKE)


AgainstOption = partial(typer.Option, rich_help_panel="Baseline and other engines")


@app.command(rich_help_panel=MEASURE)
def bench(
    bundles: Annotated[list[str], typer.Argument(metavar="BUNDLE", help="bundle folders, or `embedded`")],
    baseline: Annotated[
        str | None, AgainstOption(
            help="baseline of the ratios: opt-350m, opt-125m, each in the format of the bundle, or opt-350m:fp32; or a"
            " bundle folder"
        )
    ] = None,
    prompts: Annotated[
        str | None, typer.Option("-p", help="prompt lengths; default: 512, or what fits the context")
    ] = None,
    steps: Annotated[
        str | None, typer.Option("-n", help="decode steps; default: 128, or what fits the context")
    ] = None,
    depths: Annotated[str, typer.Option("-d", help="cached tokens before each test")] = "0",
    repetitions: Annotated[int, typer.Option("-r", help="repetitions, spread over up to 5 interleaved processes")] = 5,
    threads: Annotated[
        str | None, typer.Option("-t", "--threads", help="numbers of threads; default: the bundle's setting")
    ] = None,
    peers: Annotated[
        str | None,
        AgainstOption(
            help="other engines to compare with, a list: transformers, ctranslate2, llama.cpp, llama.cpp-q8_0-cache,"
                 " openvino-genai, onnxruntime-genai; or all; and a GGUF of the bundle's weights, for llama.cpp and"
                 " openvino-genai"
        ),
    ] = None,
    output: Annotated[Literal["md", "json", "jsonl"], typer.Option("--format", help="output format")] = "md",
    save: Annotated[
        Path | None, typer.Option("-o", metavar="FILE", help="save the records as JSON; FILE.jsonl is appended to")
    ] = None,
    ssh: Ssh = None,
) -> None:
    """Benchmark bundles in fresh processes, here or on a board. Lists and ranges: 128,512 or 1-4 or 128-2048*2."""
    from merino_bench.harness.cases import BenchRequest, parse_depths, parse_lengths, parse_threads
    from merino_edge.benchmarking.run import run_benchmark
    from merino_edge.cli.over_ssh import refuse_local
    from merino_edge.cli.terminal import bench_progress

    request = BenchRequest(
        None if prompts is None else parse_lengths(prompts), None if steps is None else parse_lengths(steps),
        repetitions, () if threads is None else parse_threads(threads), parse_depths(depths),
    )  # fmt: skip
    if ssh is not None:
        from merino_edge.cli.over_ssh import bench_there

        refuse_local(peers=peers)
        given = {"-p": prompts, "-n": steps, "-d": depths, "-r": repetitions, "-t": threads}
        options = [f"{option}{value}" for option, value in given.items() if value is not None]
        raise typer.Exit(bench_there(ssh, bundles, options, baseline=baseline, output=output, save=save))
    with bench_progress() as progress:
        code = run_benchmark(
            bundles, request, baseline=baseline, output=output, save=save, peers=peers, progress=progress, say=say,
        )  # fmt: skip
    raise typer.Exit(code)


app.command("eval", rich_help_panel=MEASURE)(evaluate)
for command in (compare, report):
    app.command(rich_help_panel=MEASURE)(command)
for command in (keygen, pack, flash, check):
    app.command(rich_help_panel=DELIVER)(command)
add_to(app, "info", DELIVER)


@app.command(rich_help_panel=RUN)
def demo(
    out: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="output folder")] = Path("out/demo"),
) -> None:
    """The whole path in minutes: design for a board, export, generate, measure against OPT-350M."""
    from merino_edge.cli.demo import run_demo

    run_demo(out)


def main(argv: Any = None) -> None:
    """The entry point. Errors that a user or the machine can cause become one line and an exit code."""
    sys.exit(exit_code(lambda: called(argv), lambda text: say(f"merino-edge: {text}")))


def called(argv: Any) -> Any:
    """Run the command line -> its exit code."""
    try:
        return app(argv)
    except SystemExit as stop:
        return stop.code
    except ImportError as error:
        raise not_installed(error) or error from error
