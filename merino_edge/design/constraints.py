"""Constraints of a search: one inequality for each term of each limited budget, and one that keeps the residency."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merino_edge.design.budgets import BUDGETS_BY_NAME, Budget, Term
from merino_edge.families.operators import Operator
from merino_edge.prediction.cost_model import CostModel
from merino_edge.prediction.latency import Regime
from merino_edge.prediction.limits import within

READ = Term(lambda model, _, operators: model.read_mb(operators))


@dataclass(frozen=True)
class Constraint:
    """`fixed` + the sum of `term.cost` over a decoder's operators (+ peak) <= `limit`, in the budget's unit.

    `budget` is None for the residency's ceiling on what a decode step reads, in MB: no user asked for it.
    """

    term: Term
    fixed: float
    limit: float
    budget: Budget | None

    @property
    def room(self) -> float:
        """What is left for the operators."""
        return self.limit - self.fixed


def constraints(
    limits: Mapping[str, float], model: CostModel, regime: Regime, largest_table: Operator
) -> tuple[Constraint, ...]:
    """All that must hold for a decoder to keep `limits` under `regime`, in a space with this largest table."""
    asked = [BUDGETS_BY_NAME[name] for name in limits]
    found = [
        Constraint(term, term.fixed(model), limits[budget.name], budget)
        for budget in asked for term in budget.terms if term.applies(model, regime, largest_table)
    ]  # fmt: skip
    ceiling_mb = model.ceiling_mb(regime)
    if ceiling_mb is not None and any(budget.phase for budget in asked):
        found.append(Constraint(READ, 0.0, ceiling_mb, None))
    return tuple(found)


def regimes(model: CostModel, limits: Mapping[str, float]) -> list[Regime]:
    """The regimes that a search must try. Of regimes that the limits do not tell apart one is enough, that of least
    memory: a single thread count, so a single session."""
    phases = {BUDGETS_BY_NAME[name].phase for name in limits} - {None}
    single = [regime for regime in model.regimes() if regime.sessions == 1]
    if not phases:
        return single[-1:]
    return model.regimes() if len(phases) == 2 else single


def needs(asked: Sequence[Constraint], amounts: Sequence[float]) -> dict[str, float]:
    """What each budget must allow for these amounts: the largest of its terms."""
    found: dict[str, float] = {}
    for constraint, amount in zip(asked, amounts, strict=True):
        if constraint.budget:
            name = constraint.budget.name
            found[name] = max(amount, found.get(name, amount))
    return found


def leaves_residency(asked: Sequence[Constraint], amounts: Sequence[float]) -> bool:
    """Whether a decoder of these amounts reads more than its assumed residency allows."""
    return any(
        constraint.budget is None and not within(amount, constraint.limit)
        for constraint, amount in zip(asked, amounts, strict=True)
    )


def kept(asked: Sequence[Constraint], amounts: Sequence[float]) -> bool:
    return all(within(amount, each.limit) for each, amount in zip(asked, amounts, strict=True))
