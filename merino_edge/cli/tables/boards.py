"""Tables of boards: all of them, the figures of one, what a calibration leaves over, and its prediction intervals."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from merino_edge.prediction.confidence import DEFAULT_CONFIDENCE, percent
from merino_edge.prediction.intervals import factors
from merino_edge.profiles.coefficients import LatencyError
from merino_edge.profiles.profile import DeviceProfile, Figure

if TYPE_CHECKING:  # loads scipy, which listing boards does not need
    from merino_edge.calibration.calibrate import Residual


def devices_table(profiles: Sequence[DeviceProfile]) -> Table:
    table = Table(title="Boards and their default budgets")
    for title in ("id", "name", "CPU", "ISA", "RAM MB", "read GB/s", "decode ms", "memory MB", "context"):
        table.add_column(title, justify="left" if title in ("id", "name", "CPU", "ISA") else "right")
    for profile in profiles:
        table.add_row(
            profile.id, profile.name, f"{profile.cpu.cores.value:g}x {profile.cpu.core}", " ".join(profile.isa),
            f"{profile.memory.ram_mb.value:g}", f"{profile.performance.read_gb_s.value:g}",
            f"{profile.budget.decode_ms:g}", f"{profile.budget.memory_mb:g}", f"{profile.budget.context}",
        )
    return table


def device_table(profile: DeviceProfile) -> Table:
    """Every figure of one board with its kind and source."""
    table = Table(title=f"{profile.name} ({profile.id})")
    for title in ("figure", "value", "kind", "source"):
        table.add_column(title, justify="right" if title == "value" else "left")
    for part in ("cpu", "memory", "performance", "power"):
        for key, figure in getattr(profile, part):
            if isinstance(figure, Figure):
                table.add_row(f"{part}.{key}", f"{figure.value:g}", figure.kind, figure.source)
    budget = profile.budget
    table.add_section()
    for key, value in (("decode_ms", budget.decode_ms), ("memory_mb", budget.memory_mb), ("context", budget.context)):
        table.add_row(f"budget.{key}", f"{value:g}", "", "default budget")
    return table


def residual_table(residuals: Sequence["Residual"]) -> Table:
    table = Table(title="What the latency model leaves over: |predicted / measured - 1| over the probe's rows")
    for title in ("measured", "rows", "median", "worst"):
        table.add_column(title, justify="left" if title == "measured" else "right")
    for row in residuals:
        table.add_row(row.kind, f"{row.rows}", f"{row.median:.1%}", f"{row.worst:.1%}")
    return table


def interval_table(errors: Mapping[str, LatencyError]) -> Table:
    """errors: by weight format and phase, as `Fit.errors`."""
    table = Table(title=f"{percent(DEFAULT_CONFIDENCE)} prediction intervals, from decoders left out of the fit")
    for title in ("latency", "measured / predicted"):
        table.add_column(title, justify="left" if title == "latency" else "right")
    for name, error in errors.items():
        within = factors(error, DEFAULT_CONFIDENCE)
        assert within is not None
        table.add_row(name, f"{within.low:.2f} to {within.high:.2f}")
    if not errors:
        table.caption = "none: the probe timed too few whole decoders"
    return table
