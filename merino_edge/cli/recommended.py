"""What `recommend` prints beside its table: the object of --json, and the command that exports a model."""

import shlex
from typing import Any

from merino_edge.design.recommend import Candidate, Recommendation
from merino_edge.families.operators import FUSED_HEAD_MULTIPLE
from merino_edge.prediction.formats import graph_dialect
from merino_edge.profiles.profile import DeviceProfile

SCHEMA = 5


def recommendation_json(result: Recommendation, profile: DeviceProfile, named: str) -> dict[str, Any]:
    """The object that `recommend --json` prints; see docs/formats.md. `named`: how the user named the profile."""
    return {
        "schema": SCHEMA,
        "device": result.device,
        "backend": result.backend,
        "context": result.context,
        "prompt": result.prompt,
        "kv": result.kv,
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
    return export_command(first, result.context, graph_options(profile, named), result.kv) if first.fits else None


def graph_options(profile: DeviceProfile, named: str) -> str:
    """Options of `export` where the board needs another graph than the default one."""
    if profile.backend == "tensorrt":
        return " --dialect portable"
    return "" if graph_dialect(profile) == "fused" else f" --for {shlex.quote(named)}"


def export_command(candidate: Candidate, context: int, graph: str, kv: str | None = None) -> str:
    """The shell command. Heads that fused attention refuses need the portable dialect, which has only a float cache."""
    name, precision = candidate.model.id, candidate.chosen.precision
    portable = any(size % FUSED_HEAD_MULTIPLE for _, size in candidate.model.geometry.kv_layers)
    if portable and "--dialect" not in graph:
        graph += " --dialect portable"
    if kv and "portable" not in graph:
        graph += f" --kv {kv}"
    return f"merino-edge export {name} --precision {precision}{graph} --context {context} -o {name}-{precision}"


def candidate_json(candidate: Candidate) -> dict[str, Any]:
    model = candidate.model
    return {
        "id": model.id,
        "name": model.name,
        "hub": model.hub,
        "note": model.note,
        "shape": model.geometry.shape(),
        "vocab": model.geometry.vocab,
        "context": model.geometry.context,
        "long_enough": candidate.long_enough,
        "fits": candidate.fits,
        "precision": candidate.chosen.precision,
        "entropy": candidate.entropy,
        "ranking_score": model.ranking_score(),
        "scores": model.scores.model_dump(mode="json") if model.scores else None,
        "source": model.source,
        "params_source": model.params.source,
        "formats": [
            {
                "precision": verdict.precision,
                "fits": verdict.fits and candidate.long_enough,
                "over": verdict.over,
                "refused": verdict.refused,
                "predicted": verdict.predicted.model_dump(),
            }
            for verdict in candidate.verdicts
        ],
    }
