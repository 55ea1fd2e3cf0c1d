"""Opens ONNX Runtime's sessions for a bundle: checks version and graph, chooses the options.

A session has one thread pool. This project's kernels take a part of it in a decode step. Without them, prefill and
decode have sessions of their own if their thread counts differ. Each session packs the weights for its kernels, so
they are then in memory twice (docs/decisions/kernels.md). `onnx` runs the sessions.
"""
import contextlib
import ctypes
import os
import platform
import re
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence

from merino_runtime.backends.threads import ThreadCounts, thread_counts
from merino_runtime.bundle import Bundle, Port, need_of, older_graph, quantized_cache, without_kernels
from merino_runtime.bundle.fit import library_path, reporting_memory
from merino_runtime.bundle.requirements import install_commands, require, version_tuple
from merino_runtime.bundle.verified import check_external_data
from merino_runtime.errors import MerinoError
from merino_runtime.io import board

SMALL_BOARD_MB = 2000
FIRST_LENDING_THREADS = (1, 17)  # to a library's operators; before, the library has its own threads
SWITCH = "ORT_GQA_DISABLE_FLASH_ATTENTION"
CORTEX_A53 = "0xd03"  # "CPU part" in /proc/cpuinfo


class Model(NamedTuple):
    """The sessions that forks share. They hold the weights and no state of a generation."""
    bundle: Bundle
    threads: ThreadCounts
    prefill_session: Any
    decode_session: Any  # the same object if the thread counts are equal
    version: str  # of onnxruntime


def open_model(bundle: Bundle, threads: Optional[int] = None, prefill_threads: Optional[int] = None) -> Model:
    counts = thread_counts(bundle, threads, prefill_threads)
    with reporting_memory(bundle, "opening the graph", counts.sessions), faster_attention(bundle):
        onnxruntime = import_onnxruntime(bundle)
        check_external_data(bundle)
        prefill_session = decode_session = open_session(onnxruntime, bundle, counts.prefill, counts.decode)
        if counts.sessions > 1:
            decode_session = open_session(onnxruntime, bundle, counts.decode, counts.decode)
    return Model(bundle, counts, prefill_session, decode_session, onnxruntime.__version__)


def import_onnxruntime(bundle: Bundle) -> Any:
    """Return the module. Raise MerinoError if it is absent or the bundle rejects its version."""
    need = need_of(bundle, "onnxruntime")
    assert need is not None, bundle.backends
    refused = "".join(f",!={version}" for version in need.refused_versions)
    requirements = ["numpy", "tokenizers", f"onnxruntime>={need.min_version}{refused}"]
    remedy = install_commands(requirements)
    onnxruntime = require("onnxruntime", requirements)
    version = getattr(onnxruntime, "__version__", None)
    if version is None:  # the empty folder that an interrupted uninstall leaves
        raise MerinoError(f"onnxruntime is installed incompletely: it has no version. {remedy}")
    installed = version_tuple(version)
    if installed < version_tuple(need.min_version):
        raise MerinoError(
            f"onnxruntime is {version}, bundle {bundle.name!r} (dialect {bundle.dialect}) needs "
            f"{need.min_version} or later. {remedy}. Where this Python has no newer wheel, export with "
            f"{older_graph(bundle)}.")
    if installed in [version_tuple(refused_version) for refused_version in need.refused_versions]:
        raise MerinoError(f"onnxruntime is {version}, a version that bundle {bundle.name!r} refuses "
                          f"({', '.join(need.refused_versions)}): it fails on boards. {remedy}")
    return onnxruntime


def session_options(onnxruntime: Any, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # nothing: errors are exceptions too, without colors
    options.enable_mem_pattern = False  # a memory plan fits one sequence length, and prefill has many
    total_mb = board.this_board().memory_total_mb
    options.enable_cpu_mem_arena = total_mb is None or total_mb >= SMALL_BOARD_MB  # an arena never shrinks
    return options


def open_session(onnxruntime: Any, bundle: Bundle, threads: int, step_threads: int) -> Any:
    """Open the bundle's graph with a pool of `threads`, of which this project's kernels take `step_threads` in a decode
    step."""
    options = session_options(onnxruntime, threads)
    if bundle.kernels:
        try:
            register_kernels(onnxruntime, options, threads, step_threads)
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise MerinoError(f"the library of kernels for {platform.machine()} cannot be loaded: {first_line(error)}. "
                              f"Export {bundle.name!r} again with {without_kernels(bundle)}, which needs none."
                              ) from error
    path = os.path.join(bundle.folder, "model.onnx")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise MerinoError(f"onnxruntime {onnxruntime.__version__} cannot open {path}: {first_line(error)}. "
                          "Check the bundle with `info --check`, or export it again.") from error
    _check_ports(bundle.inputs, session.get_inputs(), "inputs")
    _check_ports(bundle.outputs, session.get_outputs(), "outputs")
    return session


def register_kernels(onnxruntime: Any, options: Any, threads: int, step_threads: int) -> None:
    """Add the operators of this release's library to the session that is opened next. The library gets its own threads
    if onnxruntime lends it none; those of onnxruntime then do not spin, which would occupy the cores. Raise if the
    library cannot be loaded."""
    path = library_path(platform.machine())
    options.register_custom_ops_library(path)
    library = ctypes.CDLL(path)
    library.merino_step_threads(step_threads if step_threads < threads else 0)
    if version_tuple(onnxruntime.__version__) < FIRST_LENDING_THREADS:
        library.merino_threads(threads)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")


def _check_ports(ports: Sequence[Port], nodes: List[Any], what: str) -> None:
    described, present = {port.name for port in ports}, {node.name for node in nodes}
    if described != present:
        raise MerinoError(f"model.onnx and bundle.json disagree about {what}: "
                          f"{', '.join(sorted(described ^ present))}: in one of them only. "
                          "Export the bundle again.")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def faster_attention(bundle: Bundle) -> Iterator[None]:
    """Set the variable while sessions are opened, if the earlier kernel is faster. A value that the user set is
    kept."""
    if SWITCH in os.environ or not is_faster_untiled(bundle):
        yield
        return
    os.environ[SWITCH] = "1"
    try:
        yield
    finally:
        del os.environ[SWITCH]


def is_faster_untiled(bundle: Bundle) -> bool:
    """Return whether the earlier kernel is faster: on x86 over a quantized cache, by measurement; on Cortex-A53 over a
    float cache, by a model of the core."""
    quantized = quantized_cache(bundle) is not None
    here = platform.machine()
    if here in board.X86_MACHINES:
        return quantized
    parts = re.findall(r"^CPU part\s*:\s*(\S+)", board.read_text("/proc/cpuinfo"), re.MULTILINE)
    return here == "aarch64" and CORTEX_A53 in parts and not quantized
