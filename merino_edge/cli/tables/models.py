"""Tables of what already exists beside what we would design: `recommend` and `pareto` for people."""

from collections.abc import Sequence

from merino_edge.cli.tables.intervals import interval_line, shown
from merino_edge.cli.tables.layout import Column, Table
from merino_edge.cli.tables.terms import ENTROPY, SHAPE, on_backend, other_backends
from merino_edge.design.budgets import BUDGETS_BY_NAME, amount, options_line
from merino_edge.design.pareto import Front
from merino_edge.design.recommend import Candidate, Ours, Recommendation, Verdict
from merino_edge.prediction.cost_model import Predicted, cost_model
from merino_edge.prediction.intervals import DEFAULT_CONFIDENCE
from merino_edge.prediction.shape import InferenceShape, lengths_words
from merino_edge.profiles.profile import DeviceProfile

COLUMNS = (
    Column("model", left=True, wraps=True, least=16), Column("format", left=True), Column("params M"),
    Column("decode ms", wraps=True), Column("prefill ms", wraps=True), Column("memory MB"), Column("entropy"),
    Column("score"), Column("formats that fit", left=True, wraps=True),
    Column("verdict", left=True, wraps=True, least=24),
)  # fmt: skip


def recommendation_table(found: Recommendation, profile: DeviceProfile) -> Table:
    """Our designs first, then every model of the zoo in the preferred format that fits, else the nearest."""
    provenance = found.candidates[0].chosen.predicted.provenance
    fitting = sum(candidate.fits for candidate in found.candidates)  # they come first
    return Table(
        columns=COLUMNS,
        rows=[*map(our_cells, found.ours), *(candidate_cells(candidate, found) for candidate in found.candidates)],
        title=f"Models for {on_backend(profile, profile.name)}, predicted from {provenance} coefficients",
        below=[
            f"{ENTROPY}. None for models with gated FFNs, of whose three matrices it knows two",
            "score: mean of published zero-shot HellaSwag, PIQA and WinoGrande in %, sources with --json; those of two"
            " sources are not quite comparable. Designs are untrained, so they have none.",
        ],
        dropped=["formats that fit", "params M", "prefill ms", "entropy"],
        lines_after=[len(found.ours) - 1, len(found.ours) + fitting - 1],
    )  # fmt: skip


def our_cells(our: Ours) -> list[str]:
    if our.design is None:
        return ["our design", our.precision, *["-"] * 6, "none", our.reason]
    cost = our.design.predicted
    return ["our design", our.precision, *cost_columns(cost), f"{our.design.entropy:,.0f}", "", our.precision, "fits"]


def cost_columns(cost: Predicted) -> list[str]:
    return [
        f"{cost.params / 1e6:,.1f}", f"{cost.decode_ms:,.1f}{shown(cost.decode_ms_interval)}",
        f"{cost.prefill_ms:,.0f}{shown(cost.prefill_ms_interval)}", f"{cost.memory_mb:,.0f}",
    ]  # fmt: skip


def candidate_cells(candidate: Candidate, found: Recommendation) -> list[str]:
    model, verdict = candidate.model, candidate.chosen
    cost, score = verdict.predicted, model.ranking_score()
    fitting = [each.precision for each in candidate.verdicts if each.fits and candidate.long_enough]
    return [
        f"{model.name}, {model.note}" if model.note else model.name,
        verdict.precision,
        *cost_columns(cost),
        "-" if candidate.entropy is None else f"{candidate.entropy:,.0f}",
        "" if score is None else f"{score:.1f}",
        " ".join(fitting) or "none",
        "fits" if candidate.fits else reasons(candidate, verdict, found),
    ]


def reasons(candidate: Candidate, verdict: Verdict, found: Recommendation) -> str:
    """Each thing that fails and by how much, e.g. `decode 120 of 50 ms (2.4x)`."""
    said = []
    if not candidate.long_enough:
        said.append(f"context {candidate.model.geometry.context} of {found.context}")
    for name, share in verdict.over.items():
        budget = BUDGETS_BY_NAME[name]
        used, limit = amount(budget, verdict.predicted), found.budget[name]
        excess = f"{share:.1f}x" if share >= 1.1 else f"+{100 * (share - 1):.1f} %"
        said.append(f"{budget.title} {used:,.4g} of {limit:,g} {budget.unit} ({excess})")
    if verdict.refused:
        said.append(verdict.refused)
    return "; ".join(said)


def budgets_line(found: Recommendation, profile: DeviceProfile) -> str:
    """What was asked, and what the verdicts hold for."""
    tokens = lengths_words(found.context, found.prompt, found.kv)
    verdicts = found.candidates[0].verdicts
    board = f"{on_backend(profile, found.device)}{other_backends(profile)}"
    return (
        f"budgets for {board}: {options_line(found.budget)}; {tokens}\n"
        + intervals_of(profile, found, [(each.precision, each.predicted) for each in verdicts])
    )


def intervals_of(
    profile: DeviceProfile, found: Recommendation | Front, predicted: Sequence[tuple[str, Predicted]]
) -> str:
    """predicted: one prediction in each format."""
    confidence = next((cost.confidence for _, cost in predicted if cost.confidence), DEFAULT_CONFIDENCE)
    shapes = [InferenceShape(precision, found.context, found.prompt, found.kv) for precision, _ in predicted]
    return interval_line([cost_model(profile, shape, confidence) for shape in shapes])


def front_table(found: Front, profile: DeviceProfile) -> Table:
    """A row per point of the front, then the models that exist."""
    axis, provenance = BUDGETS_BY_NAME[found.against], found.points[0].predicted.provenance
    board = on_backend(profile, found.device_name)
    proved = all(point.solver.gap < 1e-6 for point in found.points)
    points = [
        [
            point.architecture.shape(), f"{point.budget[found.against]:,g}", *cost_cells(point.predicted),
            f"{point.entropy:,.0f}",
        ]
        for point in found.points
    ]  # fmt: skip
    models = [[mark.name, "", *cost_cells(mark.predicted), f"{mark.entropy:,.0f}"] for mark in found.models]
    return Table(
        columns=[
            Column("decoder", left=True, wraps=True), Column(f"limit, {axis.title} {axis.unit}"),
            Column("decode ms", wraps=True), Column("memory MB"), Column("params M"), Column("entropy"),
        ],
        rows=[*points, *models],
        title=f"Most entropy for {board} against {axis.option}, predicted from {provenance} coefficients",
        below=[
            f"{found.precision}, vocabulary {found.vocab}, {lengths_words(found.context, found.prompt, found.kv)}",
            *(["each point is proved: no decoder of the space has more entropy within its limit"] if proved else []),
            SHAPE, ENTROPY,
        ],
        lines_after=[len(points) - 1],
    )  # fmt: skip


def cost_cells(cost: Predicted) -> list[str]:
    decode = f"{cost.decode_ms:,.1f}{shown(cost.decode_ms_interval)}"
    return [decode, f"{cost.memory_mb:,.1f}", f"{cost.params / 1e6:,.1f}"]
