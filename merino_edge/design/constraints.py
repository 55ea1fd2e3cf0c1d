"""Constraints of a search: an inequality for each term of each limited budget, and one for the cache residency."""

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

    `budget` is None for the residency's ceiling on the MB that a decode step reads, which is no option.
    """

    term: Term
    fixed: float
    limit: float
    budget: Budget | None

    @property
    def room(self) -> float:
        """The part of the limit that is left for the operators."""
        return self.limit - self.fixed


def constraints(
    limits: Mapping[str, float], model: CostModel, regime: Regime, largest_table: Operator
) -> tuple[Constraint, ...]:
    """The constraints of `limits` under `regime`, in a space with this largest embedding."""
    budgets = [BUDGETS_BY_NAME[name] for name in limits]
    rows = [
        Constraint(term, term.fixed(model), limits[budget.name], budget)
        for budget in budgets for term in budget.terms if term.applies(model, regime, largest_table)
    ]  # fmt: skip
    ceiling_mb = model.ceiling_mb(regime)
    if ceiling_mb is not None and any(budget.phase for budget in budgets):
        rows.append(Constraint(READ, 0.0, ceiling_mb, None))
    return tuple(rows)


def regimes(model: CostModel, limits: Mapping[str, float]) -> list[Regime]:
    """The regimes that a search must try. Of regimes that are equal under the limits, the one of least memory is
    enough: one thread count, so one session."""
    phases = {BUDGETS_BY_NAME[name].phase for name in limits} - {None}
    single = [regime for regime in model.regimes() if regime.sessions == 1]
    if not phases:
        return single[-1:]
    return model.regimes() if len(phases) == 2 else single


def needs(rows: Sequence[Constraint], amounts: Sequence[float]) -> dict[str, float]:
    """The limit that each budget needs for these amounts: the largest of its terms."""
    largest: dict[str, float] = {}
    for constraint, amount in zip(rows, amounts, strict=True):
        if constraint.budget:
            name = constraint.budget.name
            largest[name] = max(amount, largest.get(name, amount))
    return largest


def leaves_residency(rows: Sequence[Constraint], amounts: Sequence[float]) -> bool:
    """Whether a decoder of these amounts reads more than its assumed residency allows."""
    return any(
        constraint.budget is None and not within(amount, constraint.limit)
        for constraint, amount in zip(rows, amounts, strict=True)
    )


def kept(rows: Sequence[Constraint], amounts: Sequence[float]) -> bool:
    return all(within(amount, each.limit) for each, amount in zip(rows, amounts, strict=True))
