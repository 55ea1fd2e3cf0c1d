"""What `recommend` prints: the budgets, the table, the command that exports the first model, the object of --json."""

from typing import Any

from merino_edge.cli.design_tables import EFFECTIVE, LAW, graph_options, intervals_of
from merino_edge.cli.tables import Column, Table, interval_shown, on_backend, other_backends
from merino_edge.design.budgets import BUDGETS_BY_NAME, amount, options_line
from merino_edge.design.recommend import Candidate, FormatDesign, Recommendation, Verdict
from merino_edge.families.operators import FUSED_HEAD_MULTIPLE
from merino_edge.prediction.cost_model import Predicted
from merino_edge.prediction.shape import lengths_words
from merino_edge.profiles.profile import DeviceProfile

SCHEMA = 7


def recommendation_json(result: Recommendation, profile: DeviceProfile, named: str) -> dict[str, Any]:
    """The object that `recommend --json` prints; see docs/formats.md. `named`: how the user named the profile."""
    return {
        "schema": SCHEMA,
        "device": result.device,
        "backend": result.backend,
        "context": result.context,
        "prompt": result.prompt,
        "budget": result.budget,
        "command": first_command(result, profile, named),
        "models": [candidate_json(candidate) for candidate in result.candidates],
        "designs": [
            {
                "precision": row.precision,
                "design": row.design.model_dump(mode="json", by_alias=True) if row.design else None,
                "reason": row.reason,
            }
            for row in result.designs
        ],
    }


def first_command(result: Recommendation, profile: DeviceProfile, named: str) -> str | None:
    """The command that exports the first model in its format; None if no model fits."""
    first = result.candidates[0]
    return export_command(first, result.context, graph_options(profile, named)) if first.fits else None


def export_command(candidate: Candidate, context: int, graph: str) -> str:
    """The shell command. Heads that fused attention refuses need the portable dialect."""
    name, precision = candidate.model.id, candidate.chosen.precision
    portable = any(size % FUSED_HEAD_MULTIPLE for _, size in candidate.model.geometry.kv_layers)
    if portable and "--dialect" not in graph:
        graph += " --dialect portable"
    return f"merino-edge export {name} --precision {precision}{graph} --context {context} -o {name}-{precision}"


def candidate_json(candidate: Candidate) -> dict[str, Any]:
    model = candidate.model
    return {
        "id": model.id,
        "name": model.name,
        "hub": model.hub,
        "note": model.note,
        "use": model.use,
        "shape": model.geometry.shape(),
        "vocab": model.geometry.vocab,
        "context": model.geometry.context,
        "long_enough": candidate.long_enough,
        "fits": candidate.fits,
        "borderline": candidate.borderline,
        "precision": candidate.chosen.precision,
        "entropy": candidate.entropy,
        "ranking_score": model.ranking_score(),
        "scores": model.scores.model_dump(mode="json") if model.scores else None,
        "source": model.source,
        "params_source": model.params.source,
        "formats": [
            {
                "precision": verdict.precision,
                "kv": verdict.kv,
                "fits": verdict.fits and candidate.long_enough,
                "borderline": verdict.borderline and candidate.long_enough,
                "over": verdict.over,
                "refused": verdict.refused,
                "predicted": verdict.predicted.model_dump(),
            }
            for verdict in candidate.verdicts
        ],
    }


COLUMNS = (
    Column("model", left=True, wraps=True, least=16), Column("use", left=True, wraps=True),
    Column("format", left=True), Column("params M"), Column("decode ms"), Column("interval"),
    Column("prefill ms", wraps=True), Column("memory MB"), Column(EFFECTIVE), Column("score"),
    Column("formats that fit", left=True, wraps=True), Column("verdict", left=True, wraps=True, least=16),
)  # fmt: skip


def recommendation_table(recommendation: Recommendation, profile: DeviceProfile) -> Table:
    """The designs first, then every model of the zoo in the preferred format that fits, else the nearest."""
    provenance = recommendation.candidates[0].chosen.predicted.provenance
    fitting = sum(candidate.fits for candidate in recommendation.candidates)  # they come first, then the borderline
    near = fitting + sum(candidate.borderline for candidate in recommendation.candidates)
    return Table(
        columns=COLUMNS,
        rows=[
            *map(design_cells, recommendation.designs),
            *(candidate_cells(candidate, recommendation) for candidate in recommendation.candidates),
        ],
        title=f"Models for {on_backend(profile, profile.name)}, predicted from {provenance} coefficients",
        below=[
            f"{EFFECTIVE}: {LAW}",
            "score: mean of published zero-shot HellaSwag, PIQA and WinoGrande in %, sources with --json; those of two"
            " sources are not quite comparable. Designs are untrained, so they have none.",
        ],
        dropped=["formats that fit", "params M", "prefill ms", EFFECTIVE, "interval", "use"],
        lines_after=[len(recommendation.designs) + rows - 1 for rows in (0, fitting, near)],
    )  # fmt: skip


def design_cells(row: FormatDesign) -> list[str]:
    if row.design is None:
        return ["our design", "train it", row.precision, *["-"] * 7, "none", row.reason]
    cost = row.design.predicted
    score = f"{row.design.entropy / 1e6:,.1f}"
    return ["our design", "train it", row.precision, *cost_columns(cost), score, "", row.precision, "fits"]


def cost_columns(cost: Predicted) -> list[str]:
    return [
        f"{cost.params / 1e6:,.1f}", f"{cost.decode_ms:,.1f}", interval_shown(cost.decode_ms_interval).strip(),
        f"{cost.prefill_ms:,.0f}{interval_shown(cost.prefill_ms_interval)}", f"{cost.memory_mb:,.0f}",
    ]  # fmt: skip


def candidate_cells(candidate: Candidate, recommendation: Recommendation) -> list[str]:
    model, verdict = candidate.model, candidate.chosen
    cost, score = verdict.predicted, model.ranking_score()
    fitting = [each.precision for each in candidate.verdicts if each.fits and candidate.long_enough]
    return [
        f"{model.name}, {model.note}" if model.note else model.name,
        model.use or ("chat" if model.chat else "text"),
        verdict.precision,
        *cost_columns(cost),
        "-" if candidate.entropy is None else f"{candidate.entropy / 1e6:,.1f}",
        "" if score is None else f"{score:.1f}",
        " ".join(fitting) or "none",
        "fits" if candidate.fits else reasons(candidate, verdict, recommendation),
    ]


def reasons(candidate: Candidate, verdict: Verdict, recommendation: Recommendation) -> str:
    """Each thing that fails or may fail and by how much, e.g. `decode 120 of 50 ms (2.4x)`."""
    failing = []
    if not candidate.long_enough:
        failing.append(f"context {candidate.model.geometry.context} of {recommendation.context}")
    for name, share in verdict.over.items():
        budget = BUDGETS_BY_NAME[name]
        used, limit = amount(budget, verdict.predicted), recommendation.budget[name]
        excess = f"{share:.1f}x" if share >= 1.1 else f"+{100 * (share - 1):.1f} %"
        failing.append(f"{budget.title} {used:,.4g} of {limit:,g} {budget.unit} ({excess})")
    if verdict.refused:
        failing.append(verdict.refused)
    return ("borderline: " if candidate.borderline else "") + "; ".join(failing)


def budgets_line(recommendation: Recommendation, profile: DeviceProfile) -> str:
    """The budgets, and what the verdicts hold for."""
    tokens = lengths_words(recommendation.context, recommendation.prompt)
    verdicts = recommendation.candidates[0].verdicts
    board = f"{on_backend(profile, recommendation.device)}{other_backends(profile)}"
    return (
        f"budgets for {board}: {options_line(recommendation.budget)}; {tokens}\n"
        + intervals_of(profile, recommendation, verdicts)
    )
