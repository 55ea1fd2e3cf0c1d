"""Run `bench` on the workstation: the harness of the board, with baselines by name and other engines beside it. With
--ssh, bundles and baselines are copied to a board by hash, measured there in one run, and recorded here."""

import asyncio
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merino_bench.harness.cases import BenchRequest, check_request
from merino_bench.harness.render import append, appends, check_can_save
from merino_bench.harness.run import Progress, bench_command, deliver
from merino_bench.harness.turns import check_baselines
from merino_edge.benchmarking.engine_rows import peers_beside
from merino_edge.benchmarking.engines import parse_engines, peers_of
from merino_edge.export.request import PRECISIONS, ExportRequest, graph_format
from merino_edge.families.names import bundle_path, resolve
from merino_edge.families.zoo import Model, exportable_models
from merino_edge.storage.atomic import cache_folder
from merino_edge.storage.digest import DIGEST_DIGITS, exporter_digest
from merino_runtime.bundle import load_bundle, quantized_cache
from merino_runtime.delivery.releases import INSTALLED
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import value_of
from merino_runtime.io.streams import cleaned, visible

if TYPE_CHECKING:  # imports asyncssh
    from merino_edge.delivery.ssh.board import Copied, Program

MOST_BYTES = 64 << 20  # of a board's records
MOST_S = 24 * 3600.0  # of all rows on a board; each has its own limit there
FLOAT32 = ExportRequest("fp32", dialect="fused", kv="fp32")


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
    here = [folder for folder in folders if folder != INSTALLED]
    return folders, baseline_bundles(name, here, precision or None, say)


def baseline_bundles(
    what: str, measured: Sequence[str], precision: str | None, say: Callable[[str], None]
) -> list[str]:
    """Return the folders of the bundles to compare the measured ones with.

    A name such as `opt-350m` gives one per (precision, dialect, cache) among the measured bundles, so that each ratio
    is at equal format. With `precision` it gives one of that precision with a cache of floats, in the dialect of the
    first measured bundle. Any other `what` is a bundle's folder, and has its own precision. Raise MerinoError if it is
    neither, or has no such precision.
    """
    resolved = resolve(what)
    if not isinstance(resolved, Model):
        try:
            check_baselines([resolved])
        except MerinoError as refusal:
            raise MerinoError(f"{refusal} Or name one: {', '.join(exportable_models())}") from refusal
        return [resolved]
    if precision is not None and precision not in PRECISIONS:
        raise MerinoError(f"--baseline {what}:{precision} is not known: choose one of {', '.join(PRECISIONS)}")
    if precision is None and not measured:
        raise MerinoError(
            f"--baseline {what} is made in the format of the measured bundles, and that of `{INSTALLED}` is not known"
            f" here: give --baseline {what}:FORMAT"
        )
    requests: dict[ExportRequest, None] = {}  # each once
    for folder in measured:
        with suppress(MerinoError):  # it gets a failed row
            bundle = load_bundle(folder, verify=False)
            kv = quantized_cache(bundle) or "fp32"
            requests[ExportRequest(bundle.precision, dialect=bundle.dialect, kv=kv)] = None
    chosen = list(requests) or [FLOAT32]
    if precision is not None:
        chosen = [chosen[0]._replace(precision=precision, kv="fp32")]
    return [baseline_bundle(resolved, say, request) for request in chosen]


def baseline_bundle(model: Model, say: Callable[[str], None], request: ExportRequest = FLOAT32) -> str:
    """Return the folder of a baseline with random weights in the user's cache, which is exported now unless this
    exporter has done so before.

    The folder's name ends in a digest of the exporter's sources, so both sides of a ratio come from the same exporter.
    Bundles of the same format that another exporter left in the cache are removed. Raise MerinoError for a format that
    is not possible.
    """
    precision, dialect, _, kv, *_ = graph_format(request, None, model.geometry.context)
    form = f"{precision} {dialect}{f' {kv} cache' if kv else ''}"
    stem = f"{model.id}-{form.replace(' ', '-')}"
    folder = cache_folder() / f"{stem}-{exporter_digest()}"
    with suppress(MerinoError):  # none is there, or an incomplete one; its hashes are checked when it is measured
        load_bundle(str(folder), verify=False)
        return str(folder)
    from merino_edge.export.export import export  # loads torch
    from merino_edge.export.source import random_source

    say(f"exporting {model.id} as {form}, with random weights of its true geometry (once, minutes;"
        f" kept in {folder})")  # fmt: skip
    export(random_source(model.geometry, model.id), folder, request, last_use=True)
    same_format = re.compile(rf"{re.escape(stem)}-[0-9a-f]{{{DIGEST_DIGITS}}}")
    for path in sorted(folder.parent.iterdir()):
        if same_format.fullmatch(path.name) and path != folder:
            say(f"removing {path}, which another version of the exporter wrote")
            shutil.rmtree(path)
    return str(folder)


def run_benchmark(
    bundles: Sequence[str], request: BenchRequest, baseline: str | None, output: str, save: Path | None,
    peers: str | None, progress: Progress | None, say: Callable[[str], None],
) -> int:  # fmt: skip
    """Measure, and write the records to stdout in the form `output` and to the file `save`. Return the exit code, 1 if
    a row failed.

    `baseline`: see `bundles_of`. `say` gets a line for each model that must be made first: a baseline, or
    another engine's. Raise MerinoError for a request that is not possible, and KeyboardInterrupt after the complete
    rows were written.
    """
    check_request(request)
    others = [] if peers is None else peers_of(*parse_engines(peers))
    if save is not None:
        check_can_save(str(save))
    folders, bases = bundles_of(bundles, baseline, say)
    with peers_beside(others, [*folders, *bases], say) as more:
        return bench_command(
            folders, request, bases, output=output, save_path=None if save is None else str(save),
            progress=progress, more=more,
        )  # fmt: skip


def run_there(
    host: str, bundles: Sequence[str], options: Sequence[str], *, baseline: str | None, output: str, save: Path | None,
    say: Callable[[str], None], copied: "Copied",
) -> int:  # fmt: skip
    """Measure on a board, and write the records here as `run_benchmark` does. Return the exit code, 1 if a row failed.

    options: of `merino bench`, as words. Raise MerinoError.
    """
    from merino_edge.delivery.ssh.board import bundle_there, program
    from merino_edge.delivery.ssh.connect import connected, parse_address

    address = parse_address(host)
    if save is not None:
        check_can_save(str(save))
    folders, bases = bundles_of(bundles, baseline, say)

    async def work() -> list[dict[str, Any]]:
        async with connected(address) as board:
            there = await program(board)
            places = [await bundle_there(there, folder, copied) for folder in folders]
            words = [word for base in bases for word in ("--baseline", await bundle_there(there, base, copied))]
            return await records_of(there, places, [*options, *words], say, copied)

    records = asyncio.run(work())
    if save is not None and appends(str(save)):
        append(records, str(save))
    return deliver(records, output, None if save is None else str(save))


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
