"""Which weight formats a board computes fast: the runtime's rule, asked of a profile."""

from merino_edge.families.operators import FAST_ISA
from merino_edge.profiles.profile import DeviceProfile
from merino_runtime.board import ARM_FEATURES, X86_FEATURES

FEATURES = {"aarch64": frozenset(ARM_FEATURES.values()), "x86_64": frozenset(X86_FEATURES.values())}


def missing_isa(profile: DeviceProfile, precision: str) -> tuple[str, ...]:
    """Instructions that `precision` needs and the board lacks, of the board's own architecture; the runtime refuses the
    format where there are any."""
    own = FEATURES.get(profile.arch, frozenset())
    return tuple(name for name in FAST_ISA[precision] if name in own and name not in profile.isa)


def slow_words(profile: DeviceProfile, precision: str) -> str:
    """What a user must know of a format that the board's runtime refuses as slow; empty for any other."""
    missing = missing_isa(profile, precision)
    return f"slow here: the CPU has no {', '.join(missing)}" if missing else ""
