"""The table of budgets: name and unit of each, its value in a prediction, and the cost terms that a search sums up.

Command-line options, help, refusals, tables, axis labels and the constraints of both solvers follow from this table. A
request is a mapping of budget names to limits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from merino_edge.families.operators import Operator, flops, params
from merino_edge.prediction.limits import WATTS, positive, within
from merino_runtime.errors import MerinoError

if TYPE_CHECKING:  # the command line imports the table at its start, without numpy and pydantic
    from merino_edge.prediction.cost_model import CostModel, Predicted
    from merino_edge.prediction.latency import Regime
    from merino_edge.profiles.profile import DeviceProfile

# `pareto` and `recommend` print this too, and lack some of these options.
OTHERWISE = "or `design` with fewer --blocks, a smaller --vocab or a shorter --context"


@dataclass(frozen=True)
class Term:
    """One amount that a limit bounds: `fixed` + the sum of `cost` over a decoder's operators (+ peak) <= limit.

    Attributes:
        cost: (model, regime, operators) -> amount in the budget's unit; adds up over operators.
        fixed: amount of any decoder, however small.
        depends: names of the regime's attributes that the cost depends on.
        has_peak: whether the activations of the worst block are added.
        applies: (model, regime, largest embedding of the space) -> whether this term can be the larger one.
    """

    cost: Callable[["CostModel", "Regime", Sequence[Operator]], float]
    depends: tuple[str, ...] = ()
    fixed: Callable[["CostModel"], float] = lambda _: 0.0
    has_peak: bool = False
    applies: Callable[["CostModel", "Regime", Operator], bool] = lambda _model, _regime, _table: True


@dataclass(frozen=True)
class Budget:
    """A quantity that can be limited.

    Attributes:
        name: key in files, its unit at the end.
        title: one word for table cells.
        label: the quantity, without the unit.
        of: its value in a prediction, in `unit`; None where it cannot be predicted.
        terms: max(a, b) <= limit is encoded as a <= limit and b <= limit, so a budget may have several.
        phase: the phase whose latency it depends on, and so whose thread counts a search tries.
        default: the board's own limit.
        most: the physical maximum of the board. Such a budget is always applied.
        needs: figure of the profile that its prediction needs, by backend.
    """

    name: str
    title: str
    label: str
    unit: str
    of: "Callable[[Predicted], float | None]"
    terms: tuple[Term, ...]
    phase: Literal["decode", "prefill"] | None = None
    default: "Callable[[DeviceProfile], float] | None" = None
    most: "Callable[[DeviceProfile], float] | None" = None
    needs: Mapping[str, str] | None = None

    @property
    def option(self) -> str:
        """The option's name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def help(self) -> str:
        """The text of the option's help."""
        notes = ["; default: the board's"] if self.most else []
        figures = [path.rpartition(".")[2] for path in (self.needs or {}).values()]
        notes += [f"; the profile must have {' or '.join(figures)}"] if figures else []
        return f"budget in {self.unit}: {self.label}{''.join(notes)}"


def decode_ms(model: "CostModel", regime: "Regime", operators: Sequence[Operator]) -> float:
    """The upper bound of the prediction interval, as for all limited latencies. It is one factor, so it is additive
    over operators too."""
    return model.upper_decode * model.decode_ms(operators, regime.decode_threads, regime.residency)


def resident_decode_ms(model: "CostModel", regime: "Regime", operators: Sequence[Operator]) -> float:
    return model.upper_decode * model.decode_ms(operators, regime.decode_threads, "resident")


def prefill_ms(model: "CostModel", regime: "Regime", operators: Sequence[Operator]) -> float:
    return model.upper_prefill * model.prefill_ms(operators, regime.prefill_threads, regime.residency)


def joules(of_ms: Callable[["CostModel", "Regime", Sequence[Operator]], float]) -> Callable[..., float]:
    """The energy of a latency."""

    def energy(model: "CostModel", regime: "Regime", operators: Sequence[Operator]) -> float:
        energy_j = model.joules(of_ms(model, regime, operators))
        assert energy_j is not None, "require_predictable comes first"
        return energy_j

    return energy


def is_partial(_model: "CostModel", regime: "Regime", _table: Operator) -> bool:
    """In partial residency a step takes the larger of the linear latency and that of a resident step."""
    return regime.residency == "partial"


IN_DECODE = ("decode_threads", "residency")
BUDGETS_BY_NAME: dict[str, Budget] = {
    budget.name: budget
    for budget in (
        Budget(
            "decode_ms", "decode", "decode latency per token, the cache full", "ms",
            of=lambda predicted: predicted.decode_ms,
            terms=(Term(decode_ms, IN_DECODE), Term(resident_decode_ms, IN_DECODE, applies=is_partial)),
            phase="decode",
            default=lambda profile: profile.budget.decode_ms,
        ),
        Budget(
            "prefill_ms", "prefill", "prefill latency of the whole prompt", "ms",
            of=lambda predicted: predicted.prefill_ms,
            terms=(Term(prefill_ms, ("prefill_threads", "residency")),),
            phase="prefill",
        ),
        Budget(
            "memory_mb", "memory", "memory of weights, KV cache, activations, Python and the backend", "MB",
            of=lambda predicted: predicted.memory_mb,
            terms=(
                Term(
                    lambda model, regime, ops: model.in_use_mb(ops, regime.sessions), ("sessions",),
                    fixed=lambda model: model.runtime_mb,
                    has_peak=True,
                ),
                Term(
                    lambda model, regime, ops: model.opening_mb(ops, regime.sessions), ("sessions",),
                    fixed=lambda model: model.runtime_mb,
                    applies=lambda model, _, table: model.opening_can_peak(table),
                ),
            ),
            default=lambda profile: profile.budget.memory_mb,
            most=lambda profile: profile.memory.free_mb.value,
        ),
        Budget(
            "flops_g", "FLOPs", "FLOPs at 1024 tokens, without the LM head", "GFLOPs",
            of=lambda predicted: predicted.flops_g,
            terms=(Term(lambda _model, _regime, ops: flops(ops) / 1e9),),
        ),
        Budget(
            "params_m", "parameters", "stored parameters", "M",
            of=lambda predicted: predicted.params / 1e6,
            terms=(Term(lambda _model, _regime, ops: params(ops) / 1e6),),
        ),
        Budget(
            "file_mb", "folder", "size of the bundle's folder: weights, graph, tokenizer, application", "MB",
            of=lambda predicted: predicted.file_mb,
            terms=(Term(lambda model, _, ops: model.added_file_mb(ops), fixed=lambda model: model.file_mb(())),),
        ),
        Budget(
            "j_per_token", "energy", "energy per decoded token, the cache full, all cores busy", "J",
            of=lambda predicted: predicted.j_per_token,
            terms=(
                Term(joules(decode_ms), IN_DECODE), Term(joules(resident_decode_ms), IN_DECODE, applies=is_partial)
            ),
            phase="decode",
            needs=WATTS,
        ),
    )
}  # fmt: skip


def board_defaults() -> list[Budget]:
    """Budgets for which a profile has a limit of its own."""
    return [budget for budget in BUDGETS_BY_NAME.values() if budget.default]


def requested(limits: Mapping[str, float]) -> dict[str, float]:
    """The limits, in the table's order. Raises MerinoError for unknown names and for limits that are not positive."""
    bad = [f"{BUDGETS_BY_NAME[name].option} {limit:g}" for name, limit in known(limits).items() if not positive(limit)]
    if bad:
        listed = ", ".join(bad)
        raise MerinoError(f"a budget must be a positive number, not {listed}: give a larger value or leave it out")
    return known(limits)


def known(limits: Mapping[str, float]) -> dict[str, float]:
    """The limits, in the table's order. Raises MerinoError for unknown names."""
    unknown = [name for name in limits if name not in BUDGETS_BY_NAME]
    if unknown:
        raise MerinoError(f"no budget is called {', '.join(unknown)}: choose from {', '.join(BUDGETS_BY_NAME)}")
    return {name: limits[name] for name in BUDGETS_BY_NAME if name in limits}


def with_board_defaults(limits: Mapping[str, float], profile: "DeviceProfile") -> dict[str, float]:
    """The board's own limits where the user gave none, and its memory where the user gave no limit on memory.

    Raises MerinoError as `require_possible` does.
    """
    own = {
        budget.name: budget.default(profile)
        for budget in BUDGETS_BY_NAME.values() if budget.default and (budget.most or not limits)
    }  # fmt: skip
    filled = known({**own, **limits})
    require_possible(filled, profile)
    return filled


def require_possible(limits: Mapping[str, float], profile: "DeviceProfile") -> None:
    """Raises MerinoError for a limit above the board's maximum, and for a budget that its profile cannot predict."""
    for budget in map(BUDGETS_BY_NAME.__getitem__, limits):
        limit = limits[budget.name]
        if budget.most and positive(limit) and limit > budget.most(profile):
            raise MerinoError(
                f"{budget.option} {limit:g} is more than a {profile.name} has free, {budget.most(profile):g}:"
                " give at most that"
            )
    require_predictable(limits, profile)


def require_predictable(limits: Mapping[str, float], profile: "DeviceProfile") -> None:
    """Raises MerinoError for a budget whose prediction needs a figure that the profile does not have."""
    for budget in map(BUDGETS_BY_NAME.__getitem__, limits):
        needed = budget.needs and budget.needs[profile.backend]
        if needed and profile.figure(needed) is None:
            raise MerinoError(
                f"{budget.option} needs {needed} in the profile, and a {profile.name}'s has none: leave it out,"
                " or copy the profile to a TOML file, add that figure and give its path as --device"
            )


def amount(budget: Budget, predicted: "Predicted") -> float:
    """The predicted value of a budget that can be predicted; with an interval, its upper bound."""
    interval = predicted.interval(budget.name)
    value = interval[1] if interval else budget.of(predicted)
    assert value is not None, budget.name
    return value


def shares_over(limits: Mapping[str, float], predicted: "Predicted") -> dict[str, float]:
    """Predicted value over limit, for each budget that the prediction exceeds."""
    amounts = {name: amount(BUDGETS_BY_NAME[name], predicted) for name in limits}
    return {name: amounts[name] / limit for name, limit in limits.items() if not within(amounts[name], limit)}


def options_line(limits: Mapping[str, float]) -> str:
    """The limits as options: `--decode-ms 20, --memory-mb 512`."""
    return ", ".join(f"{BUDGETS_BY_NAME[name].option} {limit:g}" for name, limit in limits.items())


def broken(limits: Mapping[str, float], need: Mapping[str, float]) -> list[str]:
    """Names of the budgets whose limit is below the need."""
    return [name for name, limit in limits.items() if not within(need[name], limit)]


def refusal(
    limits: Mapping[str, float], needs: Sequence[Mapping[str, float]], profile: "DeviceProfile | None" = None
) -> MerinoError:
    """The error for limits that no decoder meets. A limit that is the board's own is named so, since the user may not
    have given it.

    `needs`: the smallest decoder's value of each budget, one mapping per combination of vocabulary, weight format and
    regime. Within one combination the same decoder is smallest in every budget.
    """
    failing = [broken(limits, need) for need in needs]
    fewest = min(len(names) for names in failing)
    nearest = [(names, need) for names, need in zip(failing, needs, strict=True) if len(names) == fewest]
    if fewest > 1:  # no single budget is enough: report the combination that needs least
        names, need = min(nearest, key=lambda pair: max(excess(limits[name], pair[1][name]) for name in pair[0]))
        needed = "; ".join(smallest(name, limits[name], need[name], profile) for name in names)
        return MerinoError(f"no decoder of this space fits: {needed}. Raise all of them together, {OTHERWISE}")
    least = {name: min(need[name] for names, need in nearest if names == [name]) for (name,), _ in nearest}
    needed = "; or ".join(smallest(name, limits[name], value, profile) for name, value in least.items())
    if len(least) == 1 and not math.isfinite(limits[next(iter(least))]):
        return MerinoError(f"no decoder of this space fits: {needed}. Give a number, or leave the option out")
    if len(least) == 1:
        return MerinoError(f"no decoder of this space fits: {needed}. Raise that budget, {OTHERWISE}")
    together = " and ".join(BUDGETS_BY_NAME[name].option for name in least)
    return MerinoError(
        f"no decoder of this space fits {together} together, but each of them alone. With the other limits unchanged,"
        f" {needed}. Raise one of them, {OTHERWISE}"
    )


def smallest(name: str, limit: float, need: float, profile: "DeviceProfile | None") -> str:
    """`--decode-ms 1 is below 3.2, the smallest that any decoder needs (...)`."""
    budget = BUDGETS_BY_NAME[name]
    own = "the board's own " if profile and budget.default and budget.default(profile) == limit else ""
    fault = "is below" if positive(limit) else "is not a positive, finite number, and may not be below"
    least = f"{ceil_digits(need):g}, the smallest that any decoder needs ({budget.label}, in {budget.unit})"
    return f"{own}{budget.option} {limit:g} {fault} {least}"


def excess(limit: float, need: float) -> float:
    return need / limit if positive(limit) else math.inf


def ceil_digits(value: float, digits: int = 4) -> float:
    """`value` rounded up to a few significant digits, so that the printed limit can be met."""
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.ceil(value / unit) * unit
