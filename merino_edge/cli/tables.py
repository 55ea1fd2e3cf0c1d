"""Tables for people. Numbers come in ready; what they mean is said in the rows' names."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from merino_edge.calibration.calibrate import Residual
from merino_edge.design.budgets import BUDGETS_BY_NAME, options_line
from merino_edge.design.design_file import Design, Measured
from merino_edge.design.recommend import existing_entropy
from merino_edge.export.quantize import MatrixError
from merino_edge.families.designed import Architecture
from merino_edge.families.zoo import model
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.profile import DeviceProfile, Figure
from merino_runtime.board import MB as BYTES_PER_MB


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


def print_design(design: Design, profile: DeviceProfile) -> None:
    """What was asked, the table, what was found and how."""
    print(budgets_line(design))
    console().print(design_table(design, profile))
    if design.measured:
        print(measured_line(design.measured))
    print(f"{heads_line(design.architecture)}; {solver_line(design)}")


def budgets_line(design: Design) -> str:
    tokens = f"context {design.architecture.context}, prompt {design.prompt} tokens"
    return f"budgets for {design.device}: {options_line(design.budget)}; {tokens}{open_words(design)}"


def open_words(design: Design) -> str:
    """What was left open, if anything, and how it was decided."""
    considered = design.considered
    if len(considered.vocab) * len(considered.precision) == 1:
        return ""
    vocabs, formats = ", ".join(map(str, considered.vocab)), ", ".join(considered.precision)
    return f"\nopen: vocabulary {vocabs}; format {formats}; ranked by entropy x text per token x equivalent parameters"


def design_table(design: Design, profile: DeviceProfile) -> Table:
    """The design beside OPT-350M: by one cost model, each at the thread counts that are fastest for it, those of the
    design within its budgets.
    """
    arch = design.architecture
    costs = cost_model(profile, InferenceShape(design.precision, arch.context, design.prompt))
    reference = model("opt-350m").geometry
    ours, theirs = design.predicted, costs.predict(reference.operators, {})
    caption = f"{arch.shape()}; vocabulary {arch.vocab}, {design.precision}"
    table = Table(title=f"Design for {profile.name}, predicted from {ours.provenance} coefficients", caption=caption)
    table.add_column("")
    for title in ("this design", "OPT-350M", "OPT-350M / design"):
        table.add_column(title, justify="right")
    for budget in BUDGETS_BY_NAME.values():
        mine, other = budget.of(ours), budget.of(theirs)
        if mine is not None and other is not None:
            table.add_row(budget.label, *ratio_cells(mine, other, budget.unit))
    table.add_row("weights", *ratio_cells(ours.weight_bytes / BYTES_PER_MB, theirs.weight_bytes / BYTES_PER_MB, "MB"))
    cache = f"KV cache at {arch.context} tokens"
    table.add_row(cache, *ratio_cells(ours.kv_bytes / BYTES_PER_MB, theirs.kv_bytes / BYTES_PER_MB, "MB"))
    opt = existing_entropy(reference, len(arch.blocks), design.scoring)
    table.add_row("entropy (weighted nats)", f"{design.entropy:,.0f}", f"{opt:,.0f}", f"{opt / design.entropy:.2f}x")
    return table


def measured_line(measured: Measured) -> str:
    tried = f"; {measured.designs} designs tried" if measured.designs > 1 else ""
    flags = f" (the machine was {', '.join(measured.flags)} meanwhile)" if measured.flags else ""
    latencies = f"decode {measured.decode_ms:.2f} ms, prefill {measured.prefill_ms:.1f} ms"
    return f"measured here with random weights: {latencies}, memory {measured.memory_mb:,.0f} MB{flags}{tried}"


def ratio_cells(mine: float, other: float, unit: str) -> list[str]:
    return [f"{number(mine)} {unit}", f"{number(other)} {unit}", f"{other / mine:.2f}x"]


def number(value: float) -> str:
    """One decimal; below 1 three significant digits."""
    return f"{value:,.1f}" if value >= 1 else f"{value:.3g}"


def solver_line(design: Design) -> str:
    solver = design.solver
    if solver.gap < 1e-6:
        most = "comparison score" if open_words(design) else "entropy"
        rescaled = f"the rescaled budgets: {options_line(design.searched)}"
        budgets = "these budgets" if design.searched == design.budget else rescaled
        proof = f"proved: no decoder of the space has more {most} within {budgets}"
    elif solver.name == "exact":
        proof = f"not proved, at most {solver.gap:.2%} below the optimum: HiGHS failed on a part of the space"
    else:
        proof = f"at most {solver.gap:.2%} below the optimum"
    return f"found by {solver.name} in {solver.seconds:.1f} s on this CPU; {proof}"


def heads_line(arch: Architecture) -> str:
    return f"heads of {arch.head_size}, {len(arch.kv_layers)} layers, context {arch.context}"


def console() -> Console:
    """Tables on stdout; as wide as they need where stdout is no terminal."""
    found = Console()
    return found if found.is_terminal else Console(width=200)


@contextmanager
def working(on: str) -> Iterator[None]:
    """A spinner on stderr while a call takes its seconds; nothing where nobody watches."""
    stderr = Console(stderr=True)
    if stderr.is_terminal:
        with stderr.status(on):
            yield
    else:
        yield


def matrix_table(matrices: Sequence[MatrixError]) -> Table:
    table = Table(title="Quantised matrices; errors relative to the matrix's root mean square")
    for title in ("matrix", "bits", "block", "kB", "mean error", "worst error"):
        table.add_column(title, justify="left" if title == "matrix" else "right")
    for row in matrices:
        cells = (f"{row.bits}", f"{row.block}", f"{row.nbytes / 1e3:,.0f}", f"{row.mean:.2%}", f"{row.worst:.2%}")
        table.add_row(joined_name(row.name), *cells)
    return table


def joined_name(name: str) -> str:
    """`a.q.weight+a.k.weight` as `a.q+k.weight`: the parts of a joined matrix differ in their last module."""
    first, *others = (part.split(".") for part in name.split("+"))
    return ".".join([*first[:-2], "+".join(part[-2] for part in (first, *others)), first[-1]])


def residual_table(residuals: Sequence[Residual]) -> Table:
    table = Table(title="What the latency model leaves over: |predicted / measured - 1| over the probe's rows")
    for title in ("measured", "rows", "median", "worst"):
        table.add_column(title, justify="left" if title == "measured" else "right")
    for row in residuals:
        table.add_row(row.kind, f"{row.rows}", f"{row.median:.1%}", f"{row.worst:.1%}")
    return table


def bench_table(records: Sequence[dict[str, Any]]) -> Table:
    """A row per bundle: its prefill and its decode record side by side."""
    names = list(dict.fromkeys(record["bundle"] for record in records))
    table = Table(title="Measured on this machine (batch 1)")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    by_name = {name: [record for record in records if record["bundle"] == name] for name in names}
    for title, kind, field, form in BENCH_ROWS:
        values = [(row(by_name[name], kind) or {}).get(field) for name in names]
        table.add_row(title, *("-" if value is None else form.format(value) for value in values))
    flags = sorted({flag for record in records for flag in record["flags"]})
    if flags:
        table.caption = f"flags: {', '.join(flags)}. A flagged row has no ratio: repeat it on a quiet machine."
    return table


BENCH_ROWS = (
    ("prefill tok/s", "pp", "tok_s", "{:,.0f}"),
    ("  against OPT-350M", "pp", "ratio_to_baseline", "{:.2f}x"),
    ("decode tok/s", "tg", "tok_s", "{:,.1f}"),
    ("  against OPT-350M", "tg", "ratio_to_baseline", "{:.2f}x"),
    ("  share of the read-bandwidth ceiling", "tg", "ceiling_share", "{:.0%}"),
    ("time to first token, ms", "pp", "ttft_ms", "{:,.0f}"),
    ("peak RSS, MB", "pp", "peak_rss_mb", "{:,.0f}"),
    ("size on disk, MB", "tg", "bundle_mb", "{:,.0f}"),
    ("parameters, M", "tg", "params_m", "{:,.1f}"),
    ("threads", "tg", "threads", "{}"),
)


def row(records: Sequence[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    """The first record of a kind of test, with sizes in the units people read."""
    for record in records:
        if record["test"].startswith(kind):
            sizes = {"bundle_mb": record["bundle_bytes"] / BYTES_PER_MB, "params_m": record["params"] / 1e6}
            return {**record, **sizes}
    return None
