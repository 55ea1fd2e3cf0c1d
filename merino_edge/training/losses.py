"""The losses of a run as files: losses.csv, and losses.svg if matplotlib is installed."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merino_edge.storage.atomic import write_text

COLUMNS = {
    "loss": "loss", "eval_loss": "held_out_loss", "learning_rate": "learning_rate", "grad_norm": "gradient_norm",
}  # fmt: skip
History = Sequence[Mapping[str, Any]]  # of transformers' TrainerState


def write_csv(folder: Path, history: History) -> None:
    """Write a row per step at which anything was logged; a field that was not logged is empty."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in history:
        values = {column: entry[key] for key, column in COLUMNS.items() if key in entry}
        if values:
            rows.setdefault(entry["step"], {"step": entry["step"]}).update(values)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["step", *COLUMNS.values()], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[step] for step in sorted(rows))
    write_text(folder / "losses.csv", text.getvalue())


def write_picture(folder: Path, history: History, name: str) -> None:
    """Draw loss and held-out loss by step."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "held-out", "o-")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.2) if points else None
    axes.set(xlabel="step", ylabel="loss, nats per token", title=name)
    axes.grid(alpha=0.3)
    axes.legend()
    text = io.StringIO()
    figure.savefig(text, format="svg")
    write_text(folder / "losses.svg", text.getvalue())
