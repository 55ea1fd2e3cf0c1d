"""Measure bundles on a board (`bench --ssh`): bundles and baselines are copied there by hash, measured in one run, and
recorded here."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from merino_bench.harness.record import failures
from merino_bench.harness.render import append, appends, check_can_save, render, save, terminal_width
from merino_edge.delivery.ssh.address import Address
from merino_edge.delivery.ssh.connect import connected
from merino_edge.delivery.ssh.programs import Copied, Program, bundle_there, program
from merino_edge.records.reading import parse_records
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import value_of
from merino_runtime.io.streams import write_out
from merino_runtime.io.visible import cleaned, visible

MOST_BYTES = 64 << 20  # of records
MOST_S = 24 * 3600.0  # of all rows; each has its own limit on the board


async def bench_over_ssh(
    address: Address, accept_new: bool, root: str | None, folders: Sequence[str], bases: Sequence[str],
    options: Sequence[str], output: str, save_path: Path | None, say: Callable[[str], None], copied: Copied,
) -> int:  # fmt: skip
    """Measure on the board, and write the records here to stdout in the form `output` and to the file `save_path`.
    Return the exit code, 1 if a row failed.

    root: the folder of releases there; None: its user's. options: of `merino bench`, as words. Raise MerinoError.
    """
    render([], output)
    if save_path is not None:
        check_can_save(str(save_path))
    async with connected(address, accept_new, say) as board:
        there = await program(board, root)
        places = [await bundle_there(there, folder, copied) for folder in folders]
        words = list(options)
        for base in bases:
            words += ["--baseline", await bundle_there(there, base, copied)]
        records = await records_of(there, places, words, say, copied)
    if save_path is not None:
        (append if appends(str(save_path)) else save)(records, str(save_path))
    write_out(render(records, output, terminal_width()))
    failed = failures(records)
    if failed:
        say(f"{len(failed)} of {len(records)} rows failed, the reason is in their flags. First: {failed[0]}")
    return 1 if failed else 0


async def records_of(
    there: Program, places: Sequence[str], words: Sequence[str], say: Callable[[str], None], copied: Copied
) -> list[dict[str, Any]]:
    """Return the records that the board's `bench` writes of bundles there, with these options. Raise MerinoError."""
    copied("measuring", 0, 0)
    arguments = ["bench", *places, *words, "-o", "jsonl"]
    ran = await there.run(arguments, doing="measure", timeout_s=MOST_S, most_bytes=MOST_BYTES, report=say)
    rows, faults, cut = parse_records(ran.out)
    if faults or cut or not rows:
        refusal = faults[0] if faults else ran.last_words or f"it ended with code {ran.code}"
        raise MerinoError(f"{there.board.address.text}: cannot measure: {visible(refusal)}")
    return [cleaned(value_of(line)) for line in ran.out.splitlines() if line.strip()]
