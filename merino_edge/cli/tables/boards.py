"""Tables of boards: all of them, the figures of one, what a calibration leaves over, and its prediction intervals."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from merino_edge.cli.tables.layout import Column, Table
from merino_edge.cli.tables.terms import on_backend, other_backends
from merino_edge.prediction.intervals import DEFAULT_CONFIDENCE, factors, percent
from merino_edge.profiles.coefficients import Facts, LatencyError
from merino_edge.profiles.profile import DeviceProfile, Figure

if TYPE_CHECKING:  # loads scipy, which listing boards does not need
    from merino_edge.calibration.calibrate import Residual


def devices_table(profiles: Sequence[DeviceProfile]) -> Table:
    """`host` is the last row; listing it measures nothing."""
    left = ("id", "name", "CPU", "ISA", "backend")
    titles = (*left[:-1], "RAM MB", "backend", "read GB/s", "decode ms", "memory MB", "context")
    rows = [
        [
            profile.id, profile.name, f"{profile.cpu.cores.value:g}x {profile.cpu.core}", " ".join(profile.isa),
            f"{profile.memory.ram_mb.value:g}", profile.backend, f"{read_gb_s(profile):g}",
            f"{profile.budget.decode_ms:g}", f"{profile.budget.memory_mb:g}", f"{profile.budget.context}",
        ]
        for profile in profiles
    ]  # fmt: skip
    return Table(
        columns=[Column(title, left=title in left) for title in titles],
        rows=[*rows, ["host", "this machine", "this machine", "-", "-", "onnxruntime", *["-"] * 4]],
        title="Boards and their default budgets",
        below=["`devices ID` shows every figure of a board. host is measured when it is first used, for a minute"],
        dropped=["name", "ISA", "CPU"],
    )


def read_gb_s(profile: DeviceProfile) -> float:
    """Of the profile's backend."""
    figure = profile.figure(f"performance.{profile.backend}.read_gb_s")
    assert figure is not None, "a profile's backend has figures"
    return figure.value


def device_table(profile: DeviceProfile) -> Table:
    """Every figure of one board in its backend with its kind and source; of a GPU the [gpu] facts too."""
    on_gpu = ["gpu"] if profile.gpu and profile.backend == "tensorrt" else []
    parts: list[tuple[str, Facts]] = [(name, getattr(profile, name)) for name in ("cpu", *on_gpu, "memory")]
    speed: Facts = getattr(profile.performance, profile.backend)
    parts += [(f"performance.{profile.backend}", speed), ("power", profile.power)]
    figures = [
        [f"{part}.{key}", f"{figure.value:g}", figure.kind, figure.source]
        for part, facts in parts for key, figure in facts if isinstance(figure, Figure)
    ]  # fmt: skip
    mode = getattr(speed, "power_mode", None)
    budget = profile.budget
    limits = (("decode_ms", budget.decode_ms), ("memory_mb", budget.memory_mb), ("context", budget.context))
    return Table(
        columns=[
            Column("figure", left=True), Column("value"), Column("kind", left=True),
            Column("source", left=True, wraps=True),
        ],
        rows=[*figures, *([f"budget.{key}", f"{value:g}", "", "default budget"] for key, value in limits)],
        title=f"{on_backend(profile, f'{profile.name} ({profile.id})')}{other_backends(profile)}",
        below=[f"the GPU's figures are of its power mode {mode}"] if mode else [],
        lines_after=[len(figures) - 1],
    )  # fmt: skip


def residual_table(residuals: Sequence["Residual"]) -> Table:
    return Table(
        columns=[Column("measured", left=True, wraps=True), Column("rows"), Column("median"), Column("worst")],
        rows=[[row.kind, f"{row.rows}", f"{row.median:.1%}", f"{row.worst:.1%}"] for row in residuals],
        title="What the latency model leaves over: |predicted / measured - 1| over the probe's rows",
    )


def interval_table(errors: Mapping[str, LatencyError]) -> Table:
    """errors: by weight format and phase, as `Fit.errors`."""
    rows = []
    for name, error in errors.items():
        within = factors(error, DEFAULT_CONFIDENCE)
        assert within is not None
        rows.append([name, f"{within.low:.2f} to {within.high:.2f}"])
    return Table(
        columns=[Column("latency", left=True), Column("measured / predicted")],
        rows=rows,
        title=f"{percent(DEFAULT_CONFIDENCE)} prediction intervals, from decoders left out of the fit",
        below=[] if rows else ["none: the probe timed too few whole decoders"],
    )
