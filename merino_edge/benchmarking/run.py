"""Run `bench` on the workstation: the harness of the board, with baselines by name and other engines beside it. With
--ssh, bundles and baselines are copied to a board by hash, measured there in one run, and recorded here."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merino_bench.harness.cases import BenchRequest, check_repetitions
from merino_bench.harness.record import failures
from merino_bench.harness.render import append, appends, check_can_save, render, terminal_width
from merino_bench.harness.render import save as save_records
from merino_bench.harness.run import Progress, bench_command
from merino_bench.harness.turns import check_baselines
from merino_edge.benchmarking.engine_rows import check_peers, peers_beside
from merino_edge.export.request import PRECISIONS
from merino_edge.families.names import bundle_path, resolve
from merino_edge.families.zoo import Model, exportable_models
from merino_runtime.delivery.releases import INSTALLED
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import value_of
from merino_runtime.io.streams import write_out
from merino_runtime.io.visible import cleaned, visible

if TYPE_CHECKING:  # imports asyncssh
    from merino_edge.delivery.ssh.board import Copied, Program

MOST_BYTES = 64 << 20  # of a board's records
MOST_S = 24 * 3600.0  # of all rows on a board; each has its own limit there


def bundles_of(names: Sequence[str], baseline: str | None, say: Callable[[str], None]) -> tuple[list[str], list[str]]:
    """Return the folders of the bundles and of the baselines; `installed` is on the board.

    baseline: a bundle, or a model of the catalog, made here in the format of each bundle or, as `opt-350m:fp32`, in
    that format. Raise MerinoError as `bench` does.
    """
    folders = [name if name == INSTALLED else bundle_path(name) for name in names]
    if baseline is None or baseline == INSTALLED:
        return folders, [baseline] if baseline else []
    name, mark, precision = baseline.rpartition(":")
    if not (mark and isinstance(resolve(name), Model)):
        name, precision = baseline, ""
    check_baseline(name, precision)
    here = [folder for folder in folders if folder != INSTALLED]
    if isinstance(resolve(name), Model) and not precision and not here:
        raise MerinoError(
            f"--baseline {name} is made in the format of the measured bundles, and that of `{INSTALLED}` is not known"
            f" here: give --baseline {name}:FORMAT"
        )
    from merino_edge.benchmarking.baselines import baseline_bundles  # loads torch

    return folders, baseline_bundles(name, here, precision or None, say)


def run_benchmark(
    bundles: Sequence[str], request: BenchRequest, baseline: str | None, output: str, save: Path | None,
    peers: str | None, progress: Progress | None, say: Callable[[str], None], peers_file: Path | None = None,
) -> int:  # fmt: skip
    """Measure, and write the records to stdout in the form `output` and to the file `save`. Return the exit code, 1 if
    a row failed.

    `baseline`: see `bundles_of`. `say` gets a line for each model that must be made first: a baseline, or
    another engine's. `peers_file`: a GGUF with the bundles' weights for llama.cpp. Raise MerinoError for a request that
    is not possible, and KeyboardInterrupt after the complete rows were written.
    """
    check_repetitions(request)
    check_peers(peers, peers_file)
    if save is not None:
        check_can_save(str(save))
    folders, bases = bundles_of(bundles, baseline, say)
    with peers_beside(peers, [*folders, *bases], request.seed, say, peers_file) as others:
        return bench_command(
            folders, request, bases, output=output, save_path=None if save is None else str(save),
            progress=progress, more=others,
        )  # fmt: skip


def check_baseline(name: str, precision: str) -> None:
    """Raise MerinoError if `name` is neither a model of the catalog nor a bundle, or there is no such precision, before
    torch is loaded or a model is made."""
    if precision and precision not in PRECISIONS:
        raise MerinoError(f"--baseline {name}:{precision} is not known: choose one of {', '.join(PRECISIONS)}")
    resolved = resolve(name)
    if not isinstance(resolved, Model):
        try:
            check_baselines([resolved])
        except MerinoError as refusal:
            raise MerinoError(f"{refusal} Or name one: {', '.join(exportable_models())}") from refusal


def run_there(
    host: str, bundles: Sequence[str], options: Sequence[str], *, root: str | None,
    baseline: str | None, output: str, save: Path | None, say: Callable[[str], None], copied: "Copied",
) -> int:  # fmt: skip
    """Measure on a board, and write the records here as `run_benchmark` does. Return the exit code, 1 if a row failed.

    root: the folder of releases there; None: its user's. options: of `merino bench`, as words. Raise MerinoError.
    """
    from merino_edge.delivery.ssh.board import bundle_there, program
    from merino_edge.delivery.ssh.connect import connected, parse_address

    address = parse_address(host)
    if save is not None:
        check_can_save(str(save))
    folders, bases = bundles_of(bundles, baseline, say)

    async def work() -> list[dict[str, Any]]:
        async with connected(address) as board:
            there = await program(board, root)
            places = [await bundle_there(there, folder, copied) for folder in folders]
            words = [word for base in bases for word in ("--baseline", await bundle_there(there, base, copied))]
            return await records_of(there, places, [*options, *words], say, copied)

    records = asyncio.run(work())
    if save is not None:
        (append if appends(str(save)) else save_records)(records, str(save))
    write_out(render(records, output, terminal_width()))
    failed = failures(records)
    if failed:
        say(f"{len(failed)} of {len(records)} rows failed, the reason is in their flags. First: {failed[0]}")
    return 1 if failed else 0


async def records_of(
    there: "Program", places: Sequence[str], words: Sequence[str], say: Callable[[str], None], copied: "Copied"
) -> list[dict[str, Any]]:
    """Return the records that the board's `bench` writes of bundles there, with these options. Raise MerinoError."""
    from merino_edge.records.reading import parse_records

    copied("measuring", 0, 0)
    arguments = ["bench", *places, *words, "--format", "jsonl"]
    ran = await there.run(arguments, doing="measure", timeout_s=MOST_S, most_bytes=MOST_BYTES, report=say)
    rows, faults, cut = parse_records(ran.out)
    if faults or cut or not rows:
        refusal = faults[0] if faults else ran.last_words or f"it ended with code {ran.code}"
        raise MerinoError(f"{there.board.address.text}: cannot measure: {visible(refusal)}")
    return [cleaned(value_of(line)) for line in ran.out.splitlines() if line.strip()]
