"""Which weight formats a board's backend computes, and which of them fast: the runtime's rules, asked of a profile."""

from merino_edge.families.operators import CPU_FORMATS, FAST_ISA
from merino_edge.profiles.profile import Backend, DeviceProfile
from merino_runtime.board import ARM_FEATURES, X86_FEATURES

FEATURES = {"aarch64": frozenset(ARM_FEATURES.values()), "x86_64": frozenset(X86_FEATURES.values())}
# In order of preference: on a CPU most bits, on a GPU the format of its arithmetic.
BACKEND_FORMATS: dict[Backend, tuple[str, ...]] = {"onnxruntime": CPU_FORMATS, "tensorrt": ("fp16", "fp32")}


def formats_of(profile: DeviceProfile) -> tuple[str, ...]:
    """The formats that the profile's backend computes and whose latency is predicted, the preferred one first."""
    return BACKEND_FORMATS[profile.backend]


def fast_formats(profile: DeviceProfile) -> list[str]:
    """Those that the board's runtime does not refuse as slow."""
    return [precision for precision in formats_of(profile) if not missing_isa(profile, precision)]


def is_predicted(profile: DeviceProfile, precision: str) -> bool:
    """Whether the latency of this format can be predicted."""
    return precision in formats_of(profile)


def missing_isa(profile: DeviceProfile, precision: str) -> tuple[str, ...]:
    """Instructions of the CPU that `precision` needs and the board lacks, of the board's own architecture; the runtime
    refuses the format where there are any. A GPU's products need none of them."""
    if profile.backend != "onnxruntime":
        return ()
    own = FEATURES.get(profile.arch, frozenset())
    return tuple(name for name in FAST_ISA[precision] if name in own and name not in profile.isa)


def slow_words(profile: DeviceProfile, precision: str) -> str:
    """What a user must know of a format that the board's runtime refuses as slow; empty for any other."""
    missing = missing_isa(profile, precision)
    return f"slow here: the CPU has no {', '.join(missing)}" if missing else ""
