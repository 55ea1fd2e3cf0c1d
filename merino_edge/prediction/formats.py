"""Choose graphs for a board: the dialect of its runtime, and its backend's fast weight formats."""

from merino_edge.families.operators import CPU_FORMATS, runs_on_kernels
from merino_edge.profiles.coefficients import Dialect
from merino_edge.profiles.profile import Backend, DeviceProfile
from merino_runtime.bundle import FIRST_QUANTIZED_CACHE, QUANTIZED_CACHES
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import KERNELS_NEED, X86_MACHINES

FIRST_FUSED = (1, 18)  # of ONNX Runtime
EMPTY = "''"  # an empty word in a shell
KV_FORMATS = ("fp32", *QUANTIZED_CACHES)  # values of --kv
# In order of preference: on a CPU most bits, on a GPU the format of its arithmetic.
BACKEND_FORMATS: dict[Backend, tuple[str, ...]] = {"onnxruntime": CPU_FORMATS, "tensorrt": ("fp16", "fp32")}


def formats_of(profile: DeviceProfile) -> tuple[str, ...]:
    """Return the formats that the profile's backend runs and whose latency is predicted, the preferred one first."""
    return BACKEND_FORMATS[profile.backend]


def fast_formats(profile: DeviceProfile) -> list[str]:
    """Return the formats that the board's version supports and does not refuse as slow."""
    return [precision for precision in formats_of(profile) if not refused_words(profile, precision)]


def has_cache(profile: DeviceProfile, kv: str | None) -> bool:
    """Return whether the profile's backend takes a cache of this format (None: that of the activations)."""
    if kv not in QUANTIZED_CACHES:
        return True
    has = version_tuple(profile.software.onnxruntime)
    return profile.backend == "onnxruntime" and has >= version_tuple(FIRST_QUANTIZED_CACHE)


def quantized_kv(kv: str | None) -> str | None:
    """Return the quantized format of --kv; None for the format of the activations. Raise MerinoError for a format that
    no cache has."""
    if kv is not None and kv not in KV_FORMATS:
        raise MerinoError(f"--kv {kv or EMPTY} is not known: choose one of {', '.join(KV_FORMATS)}")
    return kv if kv in QUANTIZED_CACHES else None


def cache_needs() -> str:
    """Return the requirement of a quantized cache, for messages."""
    return f"onnxruntime {FIRST_QUANTIZED_CACHE} or later"


def dialect_of(profile: DeviceProfile) -> Dialect:
    """Return `fused` if the board's ONNX Runtime has its operators, else `portable`."""
    return "fused" if version_tuple(profile.software.onnxruntime) >= FIRST_FUSED else "portable"


def uses_kernels(profile: DeviceProfile, precision: str) -> bool:
    """Return whether graphs of this format for the board use this project's kernels."""
    return runs_on_kernels(dialect_of(profile), precision) or precision == "int4"


def refused_words(profile: DeviceProfile, precision: str) -> str:
    """Return why the board's runtime does not run the format; empty if it does."""
    if profile.backend != "onnxruntime":
        return ""
    missing = missing_isa(profile, precision)
    return f"not there: the CPU has no {', '.join(missing)}" if missing else ""


def missing_isa(profile: DeviceProfile, precision: str) -> tuple[str, ...]:
    """Return the x86 instructions that this project's kernels need for `precision` and the board lacks; if there are
    any, the runtime refuses the format. Every 64-bit Arm core has theirs."""
    if profile.backend != "onnxruntime" or profile.arch not in X86_MACHINES or not uses_kernels(profile, precision):
        return ()
    return tuple(sorted(KERNELS_NEED - set(profile.isa)))


def check_format(profile: DeviceProfile, precision: str) -> None:
    """Raise MerinoError for a format whose latency is not predicted."""
    if precision not in formats_of(profile):
        where = "" if len(profile.backends) == 1 else f" on {profile.backend}"
        others = [name for name in profile.backends if precision in formats_of(profile.with_backend(name))]
        raise MerinoError(
            f"--precision {precision} cannot be designed for{where}: choose one of {', '.join(formats_of(profile))}"
            + "".join(f", or --backend {name}" for name in others)
        )


def check_cache(profile: DeviceProfile, kv: str | None) -> None:
    """Raise MerinoError for a cache that the profile's backend does not take."""
    if not has_cache(profile, kv):
        raise MerinoError(
            f"--kv {kv} cannot be designed for on this board: it needs {cache_needs()}, and a {profile.name} has"
            f" {profile.backend} {getattr(profile.software, profile.backend)}. Leave --kv out"
        )
