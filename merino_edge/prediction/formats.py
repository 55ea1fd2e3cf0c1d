"""Choose graphs for a board: the dialect of its runtime, and its backend's fast weight formats."""

from merino_edge.families.geometry import Geometry
from merino_edge.families.operators import CPU_FORMATS, caches_inputs, has_states, runs_on_kernels
from merino_edge.profiles.coefficients import Dialect
from merino_edge.profiles.profile import Backend, DeviceProfile
from merino_runtime.bundle import FIRST_QUANTIZED_CACHE, QUANTIZED_CACHES
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import KERNELS_NEED, X86_MACHINES

FIRST_FUSED = "1.18"  # of ONNX Runtime
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


def has_cache(profile: DeviceProfile, kv: str | None, precision: str) -> bool:
    """Return whether the profile's backend takes a cache of this format (None: that of the activations) in a graph of
    this weight format."""
    if kv not in QUANTIZED_CACHES:
        return True
    has = version_tuple(profile.software.onnxruntime)
    return profile.backend == "onnxruntime" and has >= version_tuple(first_with_cache(kv, precision))


def first_with_cache(kv: str, precision: str) -> str:
    """Return the first ONNX Runtime that runs a fused graph over a cache in `kv`. This project's kernels need no newer
    one than other fused graphs."""
    return FIRST_FUSED if kv == "int8" and runs_on_kernels("fused", precision) else FIRST_QUANTIZED_CACHE


def default_cache(arch: Geometry, precision: str, dialect: str) -> str | None:
    """Return the default format of the KV cache: int8 if this project's kernels compute the attention, else None, the
    format of the activations."""
    if not runs_on_kernels(dialect, precision) or caches_inputs(arch.operators) or has_states(arch.operators):
        return None
    attention_of = getattr(arch, "attention_of", None)  # designs have one kind of attention
    in_kernels = attention_of is None or all(attention_of(layer).in_kernels for layer in range(len(arch.layer_shapes)))
    return "int8" if in_kernels else None


def cache_on(profile: DeviceProfile, arch: Geometry, precision: str) -> str | None:
    """Return the quantized format of the cache that `export` writes for the board without --kv."""
    return default_cache(arch, precision, dialect_of(profile))


def quantized_kv(kv: str | None) -> str | None:
    """Return the quantized format of --kv; None for the format of the activations. Raise MerinoError for a format that
    no cache has."""
    if kv is not None and kv not in KV_FORMATS:
        raise MerinoError(f"--kv {kv or EMPTY} is not known: choose one of {', '.join(KV_FORMATS)}")
    return kv if kv in QUANTIZED_CACHES else None


def cache_needs(kv: str, precision: str) -> str:
    """Return the requirement of a quantized cache, for messages."""
    return f"onnxruntime {first_with_cache(kv, precision)} or later"


def dialect_of(profile: DeviceProfile) -> Dialect:
    """Return `fused` if the board's ONNX Runtime has its operators, else `portable`."""
    return "fused" if version_tuple(profile.software.onnxruntime) >= version_tuple(FIRST_FUSED) else "portable"


def dialect_on(profile: DeviceProfile) -> Dialect:
    """Return the dialect for the profile's backend. TensorRT builds engines from portable graphs only."""
    return "portable" if profile.backend == "tensorrt" else dialect_of(profile)


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
            + "".join(f", or --board {profile.id}:{name}" for name in others)
        )


def check_cache(profile: DeviceProfile, kv: str | None, precision: str) -> None:
    """Raise MerinoError for a cache that the profile's backend does not take."""
    if kv is not None and not has_cache(profile, kv, precision):
        raise MerinoError(
            f"--kv {kv} cannot be designed for in {precision} on this board: it needs {cache_needs(kv, precision)},"
            f" and a {profile.name} has {profile.backend} {getattr(profile.software, profile.backend)}. Leave --kv out"
        )
