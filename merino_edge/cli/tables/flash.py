"""What became of each board that a file was flashed to: a table, and its row of JSON."""

from collections.abc import Sequence
from typing import Any

from merino_edge.cli.tables.layout import Column, Table
from merino_edge.delivery.ssh.flash import Flashed
from merino_edge.report.predicted import Prediction, predictions
from merino_edge.report.series import series_of
from merino_runtime.io.visible import visible

LEFT = ("board", "what it is", "installed", "self-test")
SPEEDS = ("prefill", "decode")


def flashed_table(done: Sequence[Flashed]) -> Table:
    """One row per board; a speed is measured / predicted, in ms."""
    columns = [Column(title, left=True) for title in LEFT]
    columns += [Column(f"{what} ms, predicted") for what in SPEEDS]
    good = sum(not one.error for one in done)
    return Table(
        columns=columns, rows=[_row(one) for one in done], title=f"Flashed: {good} of {len(done)} boards",
        below=["predicted: for the shipped profile that names the board's model; of a whole prompt, and per token"],
        dropped=["what it is"],
    )  # fmt: skip


def flashed_json(one: Flashed) -> dict[str, Any]:
    """A row of `flash --json`: docs/formats.md."""
    profile = one.facts.profile if one.facts else None
    measured, predicted = measured_ms(one), predicted_ms(one)
    return {
        "schema": 1, "host": one.host, "error": one.error or None,
        "model": one.facts.machine.model if one.facts else None, "device": profile.id if profile else None,
        "bundle": one.bundle or None, "precision": one.precision or None,
        "was_there": one.was_there, "replaced": one.replaced, "selftest": "ok" if one.tested else None,
        "measured": {f"{what}_ms": measured.get(what) for what in SPEEDS},
        "predicted": {f"{what}_ms": predicted.get(what) for what in SPEEDS}, "notes": one.notes, "plan": one.plan,
    }  # fmt: skip


def measured_ms(one: Flashed) -> dict[str, float]:
    found = {}
    for series in series_of(one.records)[:1]:
        for what, row in (("prefill", series.prefill), ("decode", series.decode)):
            if row is not None and row.ms_p50 is not None:
                found[what] = row.ms_p50
    return found


def predicted_ms(one: Flashed) -> dict[str, float]:
    """For the board's profile; nothing where no profile names it."""
    profile = one.facts.profile if one.facts else None
    found: list[Prediction] = predictions(series_of(one.records)[:1], profile) if profile else []
    return {each.what: each.predicted for each in found if each.what in SPEEDS}


def _row(one: Flashed) -> list[str]:
    measured, predicted = measured_ms(one), predicted_ms(one)
    installed = f"in place of {visible(one.replaced)}" if one.replaced else "was there" if one.was_there else "new"
    installed = "failed" if one.error else installed
    speeds = []
    for what in SPEEDS:
        known = f"{measured[what]:,.1f}" if what in measured else "-"
        speeds.append(f"{known}, {predicted[what]:,.1f}" if what in predicted else f"{known}, -")
    return [one.host, visible(one.facts.model) if one.facts else "-", installed, "ok" if one.tested else "-", *speeds]
