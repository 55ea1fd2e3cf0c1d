"""Why no decoder fits: the budgets that bind, each with the smallest limit that would do."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from merino_edge.design.budgets import BUDGETS_BY_NAME
from merino_edge.prediction.limits import positive, within
from merino_runtime.errors import MerinoError

if TYPE_CHECKING:
    from merino_edge.profiles.profile import DeviceProfile

# `pareto` and `recommend` are refused in these words too, and have not all of these options.
OTHERWISE = "or `design` with fewer --blocks, a smaller --vocab or a shorter --context"


def broken(limits: Mapping[str, float], need: Mapping[str, float]) -> list[str]:
    """Names of the budgets whose limit is below what is needed."""
    return [name for name, limit in limits.items() if not within(need[name], limit)]


def refusal(
    limits: Mapping[str, float], needs: Sequence[Mapping[str, float]], profile: "DeviceProfile | None" = None
) -> MerinoError:
    """The error for limits that none of `needs` keeps. A limit that is the profile's own is called so: perhaps nobody
    typed it.

    `needs`: what the smallest decoder takes of each budget, one mapping for each combination of vocabulary, weight
    format and regime. Within one combination the same decoder is smallest in every budget.
    """
    failing = [broken(limits, need) for need in needs]
    fewest = min(len(names) for names in failing)
    nearest = [(names, need) for names, need in zip(failing, needs, strict=True) if len(names) == fewest]
    if fewest > 1:  # no single budget is enough: tell the combination that asks for least
        names, need = min(nearest, key=lambda pair: max(excess(limits[name], pair[1][name]) for name in pair[0]))
        said = "; ".join(smallest(name, limits[name], need[name], profile) for name in names)
        return MerinoError(f"no decoder of this space fits: {said}. Raise all of them together, {OTHERWISE}")
    least = {name: min(need[name] for names, need in nearest if names == [name]) for (name,), _ in nearest}
    said = "; or ".join(smallest(name, limits[name], value, profile) for name, value in least.items())
    if len(least) == 1 and not math.isfinite(limits[next(iter(least))]):
        return MerinoError(f"no decoder of this space fits: {said}. Give a number, or leave the option out")
    if len(least) == 1:
        return MerinoError(f"no decoder of this space fits: {said}. Raise that budget, {OTHERWISE}")
    together = " and ".join(BUDGETS_BY_NAME[name].option for name in least)
    return MerinoError(
        f"no decoder of this space fits: {together} bind together, each could be kept alone. With all others as"
        f" they are, {said}. Raise one of them, {OTHERWISE}"
    )


def smallest(name: str, limit: float, need: float, profile: "DeviceProfile | None") -> str:
    """`--decode-ms 1 is below 3.2, the smallest that would do (...)`."""
    budget = BUDGETS_BY_NAME[name]
    own = "the board's own " if profile and budget.default and budget.default(profile) == limit else ""
    fault = "is below" if positive(limit) else "is not a positive, finite number, and may not be below"
    told = f"{ceil_digits(need):g}, the smallest that would do ({budget.label}, in {budget.unit})"
    return f"{own}{budget.option} {limit:g} {fault} {told}"


def excess(limit: float, need: float) -> float:
    return need / limit if positive(limit) else math.inf


def ceil_digits(value: float, digits: int = 4) -> float:
    """`value` rounded up to a few significant digits, so that the limit told is one that does."""
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.ceil(value / unit) * unit
