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

# `recommend` prints this too, and lacks some of these options.
OTHERWISE = "or `design` with a smaller --vocab or a shorter --context"
NOISE = 0.1  # of an estimate without an interval; four of five published decode speeds are within 11 % of theirs


@dataclass(frozen=True)
class Budget:
    """A quantity that can be limited. `of`: its value in a prediction or in `costs.AtThreads`, None if it cannot be
    predicted; it is linear, so that an integer program can add up the parts of a decoder."""

    name: str  # key in files, its unit at the end
    title: str  # one word for table cells
    label: str  # without the unit
    unit: str
    of: Callable[[Any], Any]
    default: "Callable[[DeviceProfile], float] | None" = None  # the board's own limit
    most: "Callable[[DeviceProfile], float] | None" = None  # what the board has; such a budget is always applied
    needs: Mapping[str, str] | None = None  # figure of the profile that its prediction needs, by backend
    phase: Literal["decode", "prefill"] | None = None  # whose latency it depends on; a search tries its thread counts
    exact: bool = False  # counted, not estimated

    @property
    def option(self) -> str:
        """`--decode-ms`; a budget on which boards have no limit of their own is a value of `--budget`."""
        name = self.name.replace("_", "-")
        return f"--{name}" if self.default else f"--budget {name}"

    def given(self, limit: float) -> str:
        """Return the words that give this limit: `--decode-ms 20`, `--budget file-mb=3`."""
        return f"{self.option}{' ' if self.default else '='}{limit:g}"

    @property
    def help(self) -> str:
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
            "flops_g", "FLOPs", "FLOPs at 1024 tokens, without the LM head", "GFLOPs", of=lambda costs: costs.flops_g,
            exact=True,
        ),
        Budget("params_m", "parameters", "stored parameters", "M", of=lambda costs: costs.params / 1e6, exact=True),
        Budget(
            "file_mb", "folder", "size of the bundle's folder: weights, graph, tokenizer, application", "MB",
            of=lambda costs: costs.file_mb, exact=True,
        ),
        Budget(
            "j_per_token", "energy", "energy per decoded token, the cache full, all cores busy", "J",
            of=lambda costs: costs.j_per_token, needs=WATTS, phase="decode",
        ),
    )
}  # fmt: skip


def with_board_defaults(limits: Mapping[str, float], profile: "DeviceProfile") -> dict[str, float]:
    """Return the limits, with the board's own if there are none, and with its memory if there is no limit on memory.

    Raises MerinoError for a limit above the board's maximum, and as `predictable` does.
    """
    own = {
        budget.name: budget.default(profile)
        for budget in BUDGETS_BY_NAME.values()
        if budget.default and (budget.most or not limits)
    }
    filled = predictable({**own, **limits}, profile)
    for name, limit in filled.items():
        budget = BUDGETS_BY_NAME[name]
        if budget.most and positive(limit) and limit > budget.most(profile):
            raise MerinoError(
                f"{budget.given(limit)} is more than a {profile.name} has free, {budget.most(profile):g}:"
                " give at most that"
            )
    return filled


def predictable(limits: Mapping[str, float], profile: "DeviceProfile") -> dict[str, float]:
    """The limits, in the table's order. Raises MerinoError for unknown names, and for a budget whose prediction needs a
    figure that the profile does not have."""
    unknown = [name for name in limits if name not in BUDGETS_BY_NAME]
    if unknown:
        raise MerinoError(f"no budget is called {', '.join(unknown)}: choose from {', '.join(BUDGETS_BY_NAME)}")
    ordered = {name: limits[name] for name in BUDGETS_BY_NAME if name in limits}
    for budget in map(BUDGETS_BY_NAME.__getitem__, ordered):
        needed = budget.needs and budget.needs[profile.backend]
        if needed and profile.figure(needed) is None:
            raise MerinoError(
                f"{budget.option} needs {needed} in the profile, and a {profile.name}'s has none: leave it out,"
                " or copy the profile to a TOML file, add that figure and give its path as --board"
            )
    return ordered


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


def surely_over(limits: Mapping[str, float], predicted: "Predicted") -> bool:
    """Whether the board exceeds a limit even if the prediction is too high by its error: the lower bound of its
    interval is over the limit, or without an interval the estimate is by more than `NOISE`."""
    for name, limit in limits.items():
        budget, interval = BUDGETS_BY_NAME[name], predicted.interval(name)
        low = interval[0] if interval else amount(budget, predicted) / (1 if budget.exact else 1 + NOISE)
        if not within(low, limit):
            return True
    return False


def options_line(limits: Mapping[str, float]) -> str:
    """The limits as options: `--decode-ms 20, --memory-mb 512, --budget file-mb=3`."""
    return ", ".join(BUDGETS_BY_NAME[name].given(limit) for name, limit in limits.items())


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

    def words(row: int, candidate: int, which: str) -> str:
        """`--decode-ms 1 is below 3.2, the smallest that any decoder needs (...)`."""
        budget, limit = BUDGETS_BY_NAME[names[row]], limits[names[row]]
        own = "the board's own " if profile and budget.default and budget.default(profile) == limit else ""
        fault = "is below" if positive(limit) else "is not a positive, finite number, and may not be below"
        need = f"{ceil_digits(float(needs[row, candidate])):g}, {which} ({budget.label}, in {budget.unit})"
        return f"{own}{budget.given(limit)} {fault} {need}"

    rows, only = range(len(names)), over & (over.sum(axis=0) == 1)
    # Of each limit that is the only one in the way, the candidate that needs least of it.
    alone = {row: int(np.where(only[row], needs[row], np.inf).argmin()) for row in rows if only[row].any()}
    listed = [f"{words(row, one, 'the smallest that any decoder needs')}: {name_of(one)}" for row, one in alone.items()]
    if not alone:
        share = needs / np.where(asked > 0, asked, 1e-300)[:, None]
        nearest = int(np.where(over, share, 0).max(axis=0).argmin())
        missed = [words(row, nearest, "that the nearest decoder needs") for row in rows if over[row, nearest]]
        fault, end = f": {'; '.join(missed)}. It is {name_of(nearest)}", f"Raise all of them together, {OTHERWISE}"
    elif len(alone) == 1:
        finite = math.isfinite(limits[names[next(iter(alone))]])
        end = f"Raise that budget, {OTHERWISE}" if finite else "Give a number, or leave the option out"
        fault = f": {listed[0]}"
    else:
        together = " and ".join(BUDGETS_BY_NAME[names[row]].option for row in alone)
        fault = f" {together} together, but each of them alone. With the other limits unchanged, {'; or '.join(listed)}"
        end = f"Raise one of them, {OTHERWISE}"
    return MerinoError(f"no decoder of this space fits{fault}. {end}")


def ceil_digits(value: float, digits: int = 4) -> float:
    """`value` rounded up to a few significant digits, so that the printed limit can be met."""
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.ceil(value / unit) * unit
