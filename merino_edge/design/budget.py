"""What a user may ask of a design: budgets, any subset of them, each a ceiling."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from merino_edge.prediction.limits import positive, within
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.errors import MerinoError

LABELS = {
    "decode_ms": "decode time in ms per token, the cache full",
    "prefill_ms": "prefill time in ms for the prompt",
    "memory_mb": "memory in MB: weights, KV cache, activations, Python and the backend",
    "flops_g": "GFLOPs at 1024 tokens, without the LM head",
    "params_m": "million stored parameters",
    "file_mb": "MB of the bundle's folder: weights, graph, tokenizer, the board's application",
    "j_per_token": "joules per decoded token, the cache full",
}


@dataclass(frozen=True)
class Budgets:
    """Ceilings; None where there is none. Units are in the names (MB is 2^20 bytes)."""

    decode_ms: float | None = None
    prefill_ms: float | None = None
    memory_mb: float | None = None
    flops_g: float | None = None
    params_m: float | None = None
    file_mb: float | None = None
    j_per_token: float | None = None

    def __post_init__(self) -> None:
        bad = [f"{option(name)} {value:g}" for name, value in self.given().items() if not positive(value)]
        if bad:
            found = ", ".join(bad)
            raise MerinoError(f"a budget must be a positive number, found {found}: give a larger value or leave it out")

    def given(self) -> dict[str, float]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def with_board_defaults(self, profile: DeviceProfile) -> "Budgets":
        """The board's own decode time and memory stand where the user named none of them.

        A user who names any budget but memory still gets the board's memory: a design that does not fit is no design.
        Raises MerinoError where more memory is asked for than the board has free.
        """
        filled = self
        if self.j_per_token is not None:
            require_watts(profile)
        if not self.given():
            filled = replace(filled, decode_ms=profile.budget.decode_ms)
        if self.memory_mb is None:
            return replace(filled, memory_mb=profile.budget.memory_mb)
        free = profile.memory.free_mb.value
        if self.memory_mb > free:
            raise MerinoError(
                f"--memory-mb {self.memory_mb:g} is more than a {profile.name} has free, {free:g}: give at most that"
            )
        return filled


def require_watts(profile: DeviceProfile) -> None:
    """Raises MerinoError where energy cannot be predicted."""
    if profile.power.stress_w is None:
        raise MerinoError(
            f"--j-per-token needs power.stress_w in the profile, and a {profile.name}'s has none: leave it out, or copy"
            " the profile to a TOML file, add the watts and give its path as --device"
        )


def option(name: str) -> str:
    """The command line's spelling of a budget."""
    return "--" + name.replace("_", "-")


def broken(given: Mapping[str, float], need: Mapping[str, float]) -> list[str]:
    """The budgets that a decoder of these needs does not keep."""
    return [name for name, limit in given.items() if not within(need[name], limit)]


def refusal(given: Mapping[str, float], needs: Sequence[Mapping[str, float]]) -> MerinoError:
    """Why no decoder fits: the budgets that bind, each with the smallest value that would do.

    `needs`: what the smallest decoder takes of each budget, for each combination of what was left open (vocabulary,
    weight format); within one combination the same decoder is smallest in every budget. None keeps all of `given`.
    """
    failing = [broken(given, need) for need in needs]
    fewest = min(len(names) for names in failing)
    nearest = [(names, need) for names, need in zip(failing, needs, strict=True) if len(names) == fewest]
    if fewest > 1:  # no single budget is enough: the combination that asks for the least
        names, need = min(nearest, key=lambda pair: max(excess(given[name], pair[1][name]) for name in pair[0]))
        said = "; ".join(smallest(name, given[name], need[name]) for name in names)
        return MerinoError(f"no decoder of this space fits: {said}. Raise all of them together, {OTHERWISE}")
    least = {name: min(need[name] for names, need in nearest if names == [name]) for (name,), _ in nearest}
    said = "; or ".join(smallest(name, given[name], value) for name, value in least.items())
    if len(least) == 1:
        return MerinoError(f"no decoder of this space fits: {said}. Raise that budget, {OTHERWISE}")
    together = " and ".join(option(name) for name in least)
    return MerinoError(
        f"no decoder of this space fits: {together} bind together, each could be kept alone. With all others as"
        f" they are, {said}. Raise one of them, {OTHERWISE}"
    )


OTHERWISE = "or take fewer --blocks, a smaller --vocab or a shorter --context"


def smallest(name: str, limit: float, need: float) -> str:
    """`--decode-ms 1 is below 3.2, the smallest that would do (...)`."""
    fault = "is below" if positive(limit) else "is not a positive, finite number, and may not be below"
    return f"{option(name)} {limit:g} {fault} {ceil_digits(need):g}, the smallest that would do ({LABELS[name]})"


def excess(limit: float, need: float) -> float:
    return need / limit if positive(limit) else math.inf


def ceil_digits(value: float, digits: int = 4) -> float:
    """Round up to a few significant digits, so that the number told is one that does."""
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.ceil(value / unit) * unit
