"""What a user may ask of a design: budgets, any subset of them, each a ceiling."""

import math
from dataclasses import dataclass, fields, replace

from merino_edge.profiles import DeviceProfile
from merino_runtime.errors import MerinoError

LABELS = {
    "decode_ms": "decode time in ms per token, the cache full",
    "prefill_ms": "prefill time in ms for the prompt",
    "memory_mb": "memory in MB: weights, KV cache, activations, Python and the backend",
    "flops_g": "GFLOPs at 1024 tokens, without the LM head",
    "params_m": "million stored parameters",
}


@dataclass(frozen=True)
class Budgets:
    """Ceilings; None where there is none. Units are in the names (MB is 2^20 bytes)."""

    decode_ms: float | None = None
    prefill_ms: float | None = None
    memory_mb: float | None = None
    flops_g: float | None = None
    params_m: float | None = None

    def __post_init__(self) -> None:
        bad = [
            f"{option(name)} {value:g}"
            for name, value in self.given().items()
            if not (math.isfinite(value) and value > 0)
        ]
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


def option(name: str) -> str:
    """The command line's spelling of a budget."""
    return "--" + name.replace("_", "-")
