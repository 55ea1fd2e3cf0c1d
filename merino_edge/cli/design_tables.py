"""What `design` prints: budgets, and the design beside OPT-350M. `recommended` uses parts of it."""

import shlex
from collections.abc import Sequence

from merino_edge.cli.tables import (
    ENTROPY,
    SHAPE,
    Column,
    Table,
    interval_line,
    interval_shown,
    on_backend,
    other_backends,
    show,
)
from merino_edge.cli.terminal import put
from merino_edge.design.budgets import BUDGETS_BY_NAME, options_line
from merino_edge.design.design_file import Design, Training
from merino_edge.design.recommend import Recommendation, Verdict
from merino_edge.design.score import MeasuredScoring, existing_score
from merino_edge.families.zoo import model
from merino_edge.prediction.cost_model import CostModel, cost_model
from merino_edge.prediction.formats import dialect_of, refused_words
from merino_edge.prediction.intervals import DEFAULT_CONFIDENCE
from merino_edge.prediction.shape import InferenceShape, lengths_words
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.io.board import MB as BYTES_PER_MB

PROVED = 1e-4  # a gap below which nothing is left to find; the integer solver's tolerance alone is 1e-6 to 1e-5
EFFECTIVE = "eff. weights M"  # a column's title: the measured score in millions
LAW = (
    "effective weights: those of a float32 decoder of the best shape and vocabulary with the same predicted loss; twice"
    " as many mean 2^-alpha of the loss, by a law measured on published decoders: see docs/search.md"
)


def print_design(design: Design, profile: DeviceProfile) -> None:
    """Print the budgets, the table, the design and how it was found."""
    costs = costs_of(design, profile)
    put(design_budgets(design, profile))
    put(interval_line([costs]))
    if refused := refused_words(profile, design.precision):
        put(f"{design.precision} is {refused}; `recommend` refuses it too")
    show(design_table(design, costs))
    if design.loss_ratio:
        ratio = design.loss_ratio
        put(
            f"predicted loss, equal training: {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] of OPT-350M's"
            " geometry in float32; in brackets with the constants of the score at the ends of their intervals"
        )
    put(training_line(design.training))
    arch = design.architecture
    put(f"heads of {arch.head_size}, {len(arch.kv_layers)} layers, context {arch.context}; {solver_line(design)}")


def graph_options(profile: DeviceProfile, named: str) -> str:
    """Options of `export` where the board needs another graph than the default one."""
    if profile.backend == "tensorrt":
        return " --dialect portable"
    return "" if dialect_of(profile) == "fused" else f" --board {shlex.quote(named)}"


def costs_of(design: Design, profile: DeviceProfile) -> CostModel:
    """The cost model that predicted the design."""
    shape = InferenceShape(design.precision, design.architecture.context, design.prompt, design.kv)
    return cost_model(profile, shape, design.predicted.confidence or DEFAULT_CONFIDENCE)


def design_budgets(design: Design, profile: DeviceProfile) -> str:
    """The budgets, and what the search was to choose, if anything."""
    tokens = lengths_words(design.architecture.context, design.prompt, design.kv)
    board = f"{on_backend(profile, design.device)}{other_backends(profile)}"
    line = f"budgets for {board}: {options_line(design.budget)}; {tokens}"
    considered = design.considered
    if len(considered.vocab) * len(considered.precision) * len(considered.kv) == 1:
        return line
    vocabs, formats = ", ".join(map(str, considered.vocab)), ", ".join(considered.precision)
    caches = ", ".join(kv or "float" for kv in considered.kv)
    return f"{line}\nopen: vocabulary {vocabs}; format {formats}; KV cache {caches}"


def design_table(design: Design, costs: CostModel) -> Table:
    """The design beside OPT-350M, by one cost model. The design has its own thread counts, OPT-350M the single one that
    the runtime would choose, as in `recommend`. The design's latencies and energy have intervals.
    """
    arch, profile = design.architecture, costs.profile
    reference = model("opt-350m").geometry
    predicted, opt = design.predicted, costs.predict(reference.operators)
    rows = []
    for budget in BUDGETS_BY_NAME.values():
        value, opt_value = budget.of(predicted), budget.of(opt)
        if value is not None and opt_value is not None:
            interval = interval_shown(predicted.interval(budget.name), predicted.confidence)
            rows.append([budget.label, *ratio_cells(value, opt_value, budget.unit, interval)])
    opt_score = existing_score(reference, design.scoring, design.precision)
    assert opt_score is not None
    if isinstance(design.scoring, MeasuredScoring):
        title, meaning = "effective weights", LAW
        scores = [f"{value / 1e6:,.1f} M" for value in (design.entropy, opt_score)]
    else:
        title, meaning = "entropy (weighted nats)", ENTROPY
        scores = [f"{value:,.0f}" for value in (design.entropy, opt_score)]
    rows += [
        ["weights", *ratio_cells(predicted.weight_bytes / BYTES_PER_MB, opt.weight_bytes / BYTES_PER_MB, "MB")],
        [f"KV cache at {arch.context} tokens",
         *ratio_cells(predicted.kv_bytes / BYTES_PER_MB, opt.kv_bytes / BYTES_PER_MB, "MB")],
        [title, *scores, f"{opt_score / design.entropy:.2f}x"],
    ]
    return Table(
        columns=[Column("", left=True, wraps=True), Column("this design", wraps=True), Column("OPT-350M"),
                 Column("OPT-350M / design")],
        rows=rows,
        title=f"Design for {on_backend(profile, profile.name)}, predicted from {predicted.provenance} coefficients",
        below=[f"{arch.shape()}; vocabulary {arch.vocab}, {formats_line(design)}", SHAPE, meaning],
    )  # fmt: skip


def formats_line(design: Design) -> str:
    return f"{design.precision}, a KV cache of {design.kv}" if design.kv else design.precision


def training_line(text: Training) -> str:
    """The text that the design is right for."""
    size = number_of(text.right_tokens * text.bytes_per_token)
    right = f"{number_of(text.right_tokens)} tokens, {size}B of English text"
    if text.tokens is None or text.most_weights is None or text.most_weights_interval is None:
        return f"right for about {right}; less text wants a smaller decoder: give --budget tokens=N or --data FILE"
    low, high = map(number_of, text.most_weights_interval)
    return (
        f"{number_of(text.tokens)} tokens train at most {number_of(text.most_weights)} parameters well [{low}, {high}],"
        f" {f'in {text.hours:g} h here' if text.hours else 'in four passes'}; this design is right for about {right}"
    )


def number_of(value: float) -> str:
    """Three digits with k, M, G: `3.6 G`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} "


def ratio_cells(value: float, reference: float, unit: str, interval: str = "") -> list[str]:
    return [f"{number(value)} {unit}{interval}", f"{number(reference)} {unit}", f"{reference / value:.2f}x"]


def number(value: float) -> str:
    """One decimal; below 1 three significant digits."""
    return f"{value:,.1f}" if value >= 1 else f"{value:.3g}"


def solver_line(design: Design) -> str:
    solver = design.solver
    taken = f"in {solver.seconds:.1f} s on this CPU"
    if solver.members is not None:
        return f"the best of all {solver.members:,} decoders of the space, {taken}"
    found = f"found by {solver.name} {taken}; "
    if solver.gap is None:
        return f"{found}not proved"
    if solver.gap < PROVED:
        return f"{found}proved: no decoder of the paper's space has 0.01 % more entropy"
    below = solver.gap / (1 + solver.gap)  # the gap is relative to the design's score, and may be above 1
    return f"{found}not proved, at most {below:.2%} below the optimum"


def intervals_of(profile: DeviceProfile, result: Recommendation, verdicts: Sequence[Verdict]) -> str:
    """`verdicts`: one in each format."""
    confidence = next(
        (verdict.predicted.confidence for verdict in verdicts if verdict.predicted.confidence), DEFAULT_CONFIDENCE
    )
    shapes = [InferenceShape(verdict.precision, result.context, result.prompt, verdict.kv) for verdict in verdicts]
    return interval_line([cost_model(profile, shape, confidence) for shape in shapes])
