"""The table of budgets: name and unit of each, and its value in a prediction.

Command-line options, help, refusals, tables, axis labels and the limits of both searches follow from this table. A
request is a mapping of budget names to limits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from merino_edge.prediction.limits import WATTS, most_within, positive, within
from merino_runtime.errors import MerinoError

if TYPE_CHECKING:  # the command line imports the table at its start, without numpy and pydantic
    import numpy as np

    from merino_edge.prediction.cost_model import Predicted
    from merino_edge.profiles.profile import DeviceProfile

# `pareto` and `recommend` print this too, and lack some of these options.
OTHERWISE = "or `design` with a smaller --vocab or a shorter --context"


@dataclass(frozen=True)
class Budget:
    """A quantity that can be limited.

    Attributes:
        name: key in files, its unit at the end.
        title: one word for table cells.
        label: the quantity, without the unit.
        of: its value, in `unit`, in a prediction or in arrays of the same names (`costs.Totals`); None if it cannot be
            predicted. It is linear, so that an integer program can add up the parts of a decoder.
        default: the board's own limit.
        most: the physical maximum of the board. Such a budget is always applied.
        needs: figure of the profile that its prediction needs, by backend.
        phase: the phase whose latency it depends on, and so whose thread counts a search tries.
    """

    name: str
    title: str
    label: str
    unit: str
    of: Callable[[Any], Any]
    default: "Callable[[DeviceProfile], float] | None" = None
    most: "Callable[[DeviceProfile], float] | None" = None
    needs: Mapping[str, str] | None = None
    phase: Literal["decode", "prefill"] | None = None

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


BUDGETS_BY_NAME: dict[str, Budget] = {
    budget.name: budget
    for budget in (
        Budget(
            "decode_ms", "decode", "decode latency per token, the cache full", "ms", of=lambda costs: costs.decode_ms,
            default=lambda profile: profile.budget.decode_ms, phase="decode",
        ),
        Budget(
            "prefill_ms", "prefill", "prefill latency of the whole prompt", "ms", of=lambda costs: costs.prefill_ms,
            phase="prefill",
        ),
        Budget(
            "memory_mb", "memory", "memory of weights, KV cache, activations, Python and the backend", "MB",
            of=lambda costs: costs.memory_mb,
            default=lambda profile: profile.budget.memory_mb,
            most=lambda profile: profile.memory.free_mb.value,
        ),
        Budget(
            "flops_g", "FLOPs", "FLOPs at 1024 tokens, without the LM head", "GFLOPs", of=lambda costs: costs.flops_g
        ),
        Budget("params_m", "parameters", "stored parameters", "M", of=lambda costs: costs.params / 1e6),
        Budget(
            "file_mb", "folder", "size of the bundle's folder: weights, graph, tokenizer, application", "MB",
            of=lambda costs: costs.file_mb,
        ),
        Budget(
            "j_per_token", "energy", "energy per decoded token, the cache full, all cores busy", "J",
            of=lambda costs: costs.j_per_token, needs=WATTS, phase="decode",
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


def refusal(
    limits: Mapping[str, float], needs: "np.ndarray", name_of: Callable[[int], str],
    profile: "DeviceProfile | None" = None,
) -> MerinoError:  # fmt: skip
    """The error for limits that no decoder keeps. A limit that is the board's own is named so, since the user may not
    have given it.

    `needs`: what each candidate needs of each limit; whatever a decoder needs, a candidate needs no more of any.
    [limits, candidates]. `name_of`: a candidate's decoder in words.
    """
    import numpy as np

    names, asked = list(limits), np.array([limit if positive(limit) else 0.0 for limit in limits.values()])
    over = needs > most_within(asked[:, None])

    def words(name: str, candidate: int, which: str) -> str:
        return smallest(name, limits[name], float(needs[names.index(name), candidate]), which, profile)

    alone: dict[str, int] = {}  # of each limit that is the only one in the way, the candidate that needs least of it
    for row, name in enumerate(names):
        only = np.flatnonzero(over[row] & (over.sum(axis=0) == 1))
        if len(only):
            alone[name] = int(only[needs[row][only].argmin()])
    if not alone:
        share = needs / np.where(asked > 0, asked, 1e-300)[:, None]
        nearest = int(np.where(over, share, 0).max(axis=0).argmin())
        missed = [name for row, name in enumerate(names) if over[row, nearest]]
        needed = "; ".join(words(name, nearest, "that the nearest decoder needs") for name in missed)
        end = f"Raise all of them together, {OTHERWISE}"
        return MerinoError(f"no decoder of this space fits: {needed}. It is {name_of(nearest)}. {end}")
    any_needs = "the smallest that any decoder needs"
    listed = [f"{words(name, least, any_needs)}: {name_of(least)}" for name, least in alone.items()]
    if len(alone) == 1:
        finite = math.isfinite(limits[next(iter(alone))])
        end = f"Raise that budget, {OTHERWISE}" if finite else "Give a number, or leave the option out"
        return MerinoError(f"no decoder of this space fits: {listed[0]}. {end}")
    together = " and ".join(BUDGETS_BY_NAME[name].option for name in alone)
    return MerinoError(
        f"no decoder of this space fits {together} together, but each of them alone. With the other limits unchanged,"
        f" {'; or '.join(listed)}. Raise one of them, {OTHERWISE}"
    )


def smallest(name: str, limit: float, need: float, which: str, profile: "DeviceProfile | None") -> str:
    """`--decode-ms 1 is below 3.2, the smallest that any decoder needs (...)`."""
    budget = BUDGETS_BY_NAME[name]
    own = "the board's own " if profile and budget.default and budget.default(profile) == limit else ""
    fault = "is below" if positive(limit) else "is not a positive, finite number, and may not be below"
    return f"{own}{budget.option} {limit:g} {fault} {ceil_digits(need):g}, {which} ({budget.label}, in {budget.unit})"


def ceil_digits(value: float, digits: int = 4) -> float:
    """`value` rounded up to a few significant digits, so that the printed limit can be met."""
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.ceil(value / unit) * unit
