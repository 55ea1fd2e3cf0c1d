"""What `design` prints: the budgets, the design beside OPT-350M, how it was found."""

from merino_edge.cli.tables.intervals import interval_line, shown
from merino_edge.cli.tables.layout import Column, Table, show
from merino_edge.cli.tables.terms import SHAPE, on_backend, other_backends, score_terms
from merino_edge.cli.terminal import put
from merino_edge.design.budgets import BUDGETS_BY_NAME, options_line
from merino_edge.design.design_file import Design, LossRatio, Measured, Ratio
from merino_edge.design.existing import existing_score
from merino_edge.design.recommend import graph_options
from merino_edge.families.designed import Architecture
from merino_edge.families.operators import FORMATS
from merino_edge.families.zoo import model
from merino_edge.prediction.cost_model import CostModel, cost_model
from merino_edge.prediction.formats import graph_dialect, refused_words
from merino_edge.prediction.intervals import DEFAULT_CONFIDENCE
from merino_edge.prediction.shape import InferenceShape, lengths_words
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.io.board import MB as BYTES_PER_MB


def print_design(design: Design, profile: DeviceProfile, named: str | None = None) -> None:
    """What was asked, the table, what was found and how. `named`: what the profile was read by, if not by its id."""
    costs = costs_of(design, profile)
    put(budgets_line(design, profile))
    put(interval_line([costs]))
    if refused := refused_words(profile, design.precision):
        put(f"{design.precision} is {refused}; `recommend` refuses it too")
    show(design_table(design, costs))
    if design.measured:
        put(measured_line(design.measured))
    if design.loss_ratio:
        put(loss_line(design.loss_ratio))
    put(f"{heads_line(design.architecture)}; {solver_line(design)}")
    if told := export_line(design, profile, named or profile.id):
        put(told)


def export_line(design: Design, profile: DeviceProfile, named: str) -> str:
    """Where `export` would write another graph than the costs are of: what it must be told. Else empty."""
    own = graph_dialect(profile) == "portable" or FORMATS[design.precision].blocked
    options = graph_options(profile, named)
    if profile.backend != "onnxruntime" or not own or not options:
        return ""
    return f"export it, or the checkpoint trained from it, with{options}: other graphs are slower there, or do not run"


def costs_of(design: Design, profile: DeviceProfile) -> CostModel:
    """The cost model that predicted the design."""
    shape = InferenceShape(design.precision, design.architecture.context, design.prompt, design.kv)
    return cost_model(profile, shape, design.predicted.confidence or DEFAULT_CONFIDENCE)


def budgets_line(design: Design, profile: DeviceProfile) -> str:
    tokens = lengths_words(design.architecture.context, design.prompt, design.kv)
    board = f"{on_backend(profile, design.device)}{other_backends(profile)}"
    return f"budgets for {board}: {options_line(design.budget)}; {tokens}{open_words(design)}"


def open_words(design: Design) -> str:
    """What was left open, if anything, and how it was decided."""
    considered = design.considered
    if len(considered.vocab) * len(considered.precision) == 1:
        return ""
    vocabs, formats = ", ".join(map(str, considered.vocab)), ", ".join(considered.precision)
    name = score_terms(design.scoring).name
    return f"\nopen: vocabulary {vocabs}; format {formats}; ranked by {name} x text per token x equivalent parameters"


def design_table(design: Design, costs: CostModel) -> Table:
    """The design beside OPT-350M, by one cost model. The design has its own thread counts, OPT-350M the single one that
    the runtime would choose, as in `recommend`. Of the design's latencies and energy the interval too.
    """
    arch, profile = design.architecture, costs.profile
    reference = model("opt-350m").geometry
    ours, theirs = design.predicted, costs.predict(reference.operators)
    rows = []
    for budget in BUDGETS_BY_NAME.values():
        mine, other = budget.of(ours), budget.of(theirs)
        if mine is not None and other is not None:
            interval = shown(ours.interval(budget.name), ours.confidence)
            rows.append([budget.label, *ratio_cells(mine, other, budget.unit, interval)])
    opt = existing_score(reference, len(arch.blocks), design.scoring)
    assert opt is not None
    terms = score_terms(design.scoring)
    rows += [
        ["weights", *ratio_cells(ours.weight_bytes / BYTES_PER_MB, theirs.weight_bytes / BYTES_PER_MB, "MB")],
        [
            f"KV cache at {arch.context} tokens",
            *ratio_cells(ours.kv_bytes / BYTES_PER_MB, theirs.kv_bytes / BYTES_PER_MB, "MB"),
        ],
        [terms.row, terms.amount(design.entropy), terms.amount(opt), f"{opt / design.entropy:.2f}x"],
    ]
    return Table(
        columns=[Column("", left=True, wraps=True), Column("this design", wraps=True), Column("OPT-350M"),
                 Column("OPT-350M / design")],
        rows=rows,
        title=f"Design for {on_backend(profile, profile.name)}, predicted from {ours.provenance} coefficients",
        below=[f"{arch.shape()}; vocabulary {arch.vocab}, {design.precision}", SHAPE, terms.meaning],
    )  # fmt: skip


def loss_line(found: LossRatio) -> str:
    """What the score means for the loss."""
    def words(ratio: Ratio) -> str:
        return f"{ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]"

    uniform = "no plain uniform decoder keeps these budgets" if found.uniform is None else (
        f"{words(found.uniform)} of the best plain uniform decoder's within the same budgets")  # fmt: skip
    return (
        f"predicted loss, equal training: {words(found.opt_350m)} of OPT-350M's geometry, {uniform}; 95 % interval"
        " of the law's exponent"
    )


def measured_line(measured: Measured) -> str:
    tried = f"; {measured.designs} designs tried" if measured.designs > 1 else ""
    flags = f" (the machine was {', '.join(measured.flags)} meanwhile)" if measured.flags else ""
    latencies = f"decode {measured.decode_ms:.2f} ms, prefill {measured.prefill_ms:.1f} ms"
    return f"measured here with random weights: {latencies}, memory {measured.memory_mb:,.0f} MB{flags}{tried}"


def ratio_cells(mine: float, other: float, unit: str, interval: str = "") -> list[str]:
    return [f"{number(mine)} {unit}{interval}", f"{number(other)} {unit}", f"{other / mine:.2f}x"]


def number(value: float) -> str:
    """One decimal; below 1 three significant digits."""
    return f"{value:,.1f}" if value >= 1 else f"{value:.3g}"


def solver_line(design: Design) -> str:
    solver = design.solver
    below = solver.gap / (1 + solver.gap)  # the gap is a share of what was found, and may be above 1
    if solver.gap < 1e-6:
        most = "comparison score" if open_words(design) else score_terms(design.scoring).name
        rescaled = f"the rescaled budgets: {options_line(design.searched)}"
        budgets = "these budgets" if design.searched == design.budget else rescaled
        proof = f"proved: no decoder of the space has more {most} within {budgets}"
    elif solver.name == "exact":
        proof = f"not proved, at most {below:.2%} below the optimum: HiGHS failed on a part of the space"
    else:
        proof = f"not proved, at most {below:.2%} below the optimum"
    return f"found by {solver.name} in {solver.seconds:.1f} s on this CPU; {proof}"


def heads_line(arch: Architecture) -> str:
    return f"heads of {arch.head_size}, {len(arch.kv_layers)} layers, context {arch.context}"
