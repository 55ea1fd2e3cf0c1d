"""Tables of `score`: scores of decoders, and what they cost on a board."""

from collections.abc import Mapping, Sequence
from typing import Any

from merino_edge.cli.design_tables import number
from merino_edge.cli.tables import Column, Table, on_backend
from merino_edge.design.budgets import BUDGETS_BY_NAME
from merino_edge.prediction.cost_model import Predicted
from merino_edge.profiles.profile import DeviceProfile


def score_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table:
    def cell(name: str, value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value / 1e6:,.2f} M" if name == "measured" else f"{value:,.0f}"

    reasons = {
        f"- ({row['name']}): {scored['reason']}"
        for row in rows for scored in row["scores"].values() if scored["reason"]
    }
    meaning = {
        "measured": "measured: effective weights, with float32 weights; twice as many mean 2^-alpha of the loss",
        "merino": "merino: the paper's entropy times effectiveness, in weighted nats",
    }
    return Table(
        columns=[Column("source", left=True, wraps=True), Column("shape", left=True, wraps=True),
                 Column("weights of layers"), *(Column(name) for name in names)],
        rows=[
            [row["name"], row["shape"], f"{row['weights'] / 1e6:,.2f} M",
             *(cell(name, row["scores"][name]["value"]) for name in names)]
            for row in rows
        ],
        title="Scores, higher is better: what they are stands in docs/search.md",
        below=[
            *(text for key, text in meaning.items() if any(name.startswith(key) for name in names)), *sorted(reasons),
        ],
    )  # fmt: skip


def cost_table(names: Sequence[str], costs: Sequence[Mapping[str, Predicted]], profile: DeviceProfile) -> Table:
    predicted = [each for cost in costs for each in cost.values()]
    budgets = [budget for budget in BUDGETS_BY_NAME.values() if all(budget.of(each) is not None for each in predicted)]

    return Table(
        columns=[Column("source", left=True, wraps=True), Column("format", left=True),
                 *(Column(f"{budget.option.removeprefix('--')}", wraps=True) for budget in budgets)],
        rows=[
            [name, precision, *(number(value) for budget in budgets if (value := budget.of(each)) is not None)]
            for name, cost in zip(names, costs, strict=True) for precision, each in cost.items()
        ],
        title=f"Costs on {on_backend(profile, profile.name)}, predicted from {predicted[0].provenance} coefficients",
    )  # fmt: skip
