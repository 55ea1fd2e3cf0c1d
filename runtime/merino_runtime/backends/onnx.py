"""ONNX Runtime on the CPU: a KV cache, bound to the graph by pointer, over a session that forks share.

Every array that the graph reads or writes while decoding is allocated when the backend opens. The two
dialects (docs/formats.md) differ in who writes the cache: `fused` graphs do, in place; for `portable` ones
the host does.
"""
import os
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from merino_runtime import board
from merino_runtime.backends.backend import Backend
from merino_runtime.bundle import Bundle, Port
from merino_runtime.errors import MerinoError

ONE_THREAD_BELOW_BYTES = 8 * 10 ** 6  # so little work that waking a second thread costs more than it brings
MOST_THREADS = 4  # decode waits for memory, and four cores saturate it on every board we know
SMALL_BOARD_MB = 2000
PREFILL_CHUNK_IDS = 256  # a prefill computes so many at once: activations grow with them, the cache does not
FIRST_CHUNKED_GQA = (1, 20)  # before it, the fused attention takes several tokens into an empty cache only


class Model(NamedTuple):
    """What forks share: the session, which holds the weights and no state of a generation."""
    bundle: Bundle
    threads: int
    session: Any
    ort_version: Tuple[int, ...]


def open_model(bundle: Bundle, threads: Optional[int] = None) -> Model:
    threads = threads or default_threads(bundle)
    onnxruntime = import_onnxruntime(bundle)
    return Model(bundle, threads, open_session(onnxruntime, bundle, threads),
                 version_tuple(onnxruntime.__version__))


class OnnxBackend(Backend):
    def __init__(self, model: Model) -> None:
        bundle = model.bundle
        self.context, self.vocab, self.threads = bundle.context, bundle.vocab, model.threads
        self._model: Optional[Model] = model
        self._session, self._ort_version = model.session, model.ort_version
        self._fused = bundle.dialect == "fused"
        self._ports = {port.name: port for port in (*bundle.inputs, *bundle.outputs)}
        self._ids: List[int] = []  # the one record of what the cache holds
        # [1, heads, context, head_size] each, by the name of the input that reads it
        self.cache = {port.name: _array_for(port) for port in bundle.inputs
                      if port.name.startswith("past_key_values.")}
        self._logits = np.zeros((1, 1, bundle.vocab), dtype=self._ports["logits"].dtype)
        # fused: all ones, and the graph is shown the first `total`. portable: 1 where a slot is filled.
        self._mask = np.ones((1, bundle.context), dtype=self._ports["attention_mask"].dtype)
        self._slots = np.arange(bundle.context)
        self._decode_id = np.zeros((1, 1), dtype=self._ports["input_ids"].dtype)
        self._decode_position = np.zeros((1, 1), dtype=np.int64)
        self._decode_binding, self._decode_new = self._bind(self._decode_id, self._decode_position)

    @property
    def ids(self) -> List[int]:
        return self._ids

    @property
    def extends_fast(self) -> bool:  # type: ignore[override]
        return not self._fused or self._ort_version >= FIRST_CHUNKED_GQA

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        self._check_prefill(ids)
        chunk = PREFILL_CHUNK_IDS
        if not self.extends_fast:
            chunk = 1 if self._ids else len(ids)
        for start in range(0, len(ids), chunk):
            logits = self._prefill_chunk(ids[start:start + chunk])
        return logits

    def _check_prefill(self, ids: Sequence[int]) -> None:
        count, free = len(ids), self.context - self.length
        if not 0 < count <= free:
            raise MerinoError(
                f"a prefill of {count} ids does not fit: {self.length} of the {self.context} cache slots "
                f"are filled, {free} free, and it takes at least 1 id. Shorten the "
                "prompt, or export with a longer --context.")
        if not 0 <= min(ids) <= max(ids) < self.vocab:
            raise MerinoError(f"prompt ids run from {min(ids)} to {max(ids)}, the model knows 0 to "
                              f"{self.vocab - 1}. Use the tokenizer that belongs to the model.")

    def _prefill_chunk(self, ids: Sequence[int]) -> np.ndarray:
        if len(ids) == 1:
            return self.step(ids[0])
        start = self.length
        id_array = np.array(ids, dtype=self._decode_id.dtype)[None]  # [1, count]
        positions = np.arange(start, start + len(ids), dtype=np.int64)[None]  # [1, count]
        binding, new = self._bind(id_array, positions)
        return self._run(binding, new, id_array)

    def step(self, token_id: int) -> np.ndarray:
        if self.length >= self.context:
            raise MerinoError(f"the KV cache is full: all {self.context} slots are filled. Ask for fewer "
                              "tokens, or export with a longer --context.")
        self._decode_id[0, 0] = token_id
        self._decode_position[0, 0] = self.length
        if self._fused:
            self._bind_input(self._decode_binding, "attention_mask", self._mask, (1, self.length + 1))
        return self._run(self._decode_binding, self._decode_new, self._decode_id)

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.length, (length, self.length)
        del self._ids[length:]

    def fork(self) -> "OnnxBackend":
        assert self._model is not None, "a closed backend cannot be forked"
        twin = OnnxBackend(self._model)
        for name, cache in self.cache.items():  # [1, heads, context, head_size]
            twin.cache[name][:, :, :self.length] = cache[:, :, :self.length]
        twin._ids.extend(self._ids)
        return twin

    def close(self) -> None:
        self._model = self._session = self._decode_binding = None
        self.cache, self._decode_new = {}, {}

    def _run(self, binding: Any, new: Dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
        """Runs the graph over ids [1, count] -> logits [vocab]. `_ids` changes last, and all else follows
        from it, so an interrupt at any line leaves a cache that holds what `_ids` says."""
        start, end = self.length, self.length + ids.shape[1]
        if not self._fused:
            self._mask[0] = self._slots < start
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise MerinoError(
                f"onnxruntime failed on {ids.shape[1]} ids with {start} cached: {_first_line(error)}. "
                "If memory is short, export with a shorter --context.") from error
        for name, entries in new.items():  # entries [1, heads, count, head_size]
            self.cache[name][:, :, start:end] = entries
        self._ids.extend(ids[0].tolist())
        return self._logits[0, 0]

    def _bind(self, ids: np.ndarray, positions: np.ndarray) -> Tuple[Any, Dict[str, np.ndarray]]:
        """ids, positions [1, count] -> a binding of the whole graph, and the arrays of new entries by the
        name of the cache they belong to (none where the graph writes the cache). The caller keeps ids and
        positions."""
        count = ids.shape[1]
        binding, new = self._session.io_binding(), {}
        self._bind_input(binding, "input_ids", ids)
        mask_length = self.length + count if self._fused else self.context
        self._bind_input(binding, "attention_mask", self._mask, (1, mask_length))
        if "position_ids" in self._ports:
            self._bind_input(binding, "position_ids", positions)
        self._bind_output(binding, "logits", self._logits)
        for name, cache in self.cache.items():
            self._bind_input(binding, name, cache)
            present = name.replace("past_key_values", "present")
            if self._fused:
                self._bind_output(binding, present, cache)
            else:
                new[name] = np.zeros((1, cache.shape[1], count, cache.shape[3]), dtype=cache.dtype)
                self._bind_output(binding, present, new[name])
        return binding, new

    def _bind_input(self, binding: Any, name: str, array: np.ndarray, shape: Sequence[int] = ()) -> None:
        shape = list(shape or array.shape)
        binding.bind_input(name, "cpu", 0, _element_type(array), shape, array.ctypes.data)

    def _bind_output(self, binding: Any, name: str, array: np.ndarray) -> None:
        binding.bind_output(name, "cpu", 0, _element_type(array), list(array.shape), array.ctypes.data)


def default_threads(bundle: Bundle) -> int:
    """One session serves prefill and decode, and decode is where the time goes, so decode's count rules."""
    if bundle.threads.decode:
        return bundle.threads.decode
    if bundle.decode_weight_bytes < ONE_THREAD_BELOW_BYTES:
        return 1
    return min(MOST_THREADS, board.physical_core_count())


def import_onnxruntime(bundle: Bundle) -> Any:
    """The module, if it is there and of a version that the bundle takes."""
    need = bundle.backend
    refused = "".join(f",!={version}" for version in need.refused_versions)
    remedy = f"Run: python3 -m pip install --only-binary=:all: 'onnxruntime>={need.min_version}{refused}'"
    try:
        import onnxruntime
    except ImportError as error:
        raise MerinoError(f"onnxruntime cannot be imported ({_first_line(error)}). {remedy}") from error
    version = getattr(onnxruntime, "__version__", None)
    if version is None:  # what an interrupted uninstall leaves behind
        raise MerinoError(f"onnxruntime is installed incompletely: it has no version. {remedy}")
    found = version_tuple(version)
    if found < version_tuple(need.min_version):
        raise MerinoError(
            f"onnxruntime is {version}, bundle {bundle.name!r} (dialect {bundle.dialect}) needs "
            f"{need.min_version} or later. {remedy}. Where this Python has no newer wheel, export with "
            "--dialect portable.")
    if found in [version_tuple(refused_version) for refused_version in need.refused_versions]:
        raise MerinoError(f"onnxruntime is {version}, a version that bundle {bundle.name!r} refuses "
                          f"({', '.join(need.refused_versions)}): it fails on boards. {remedy}")
    return onnxruntime


def open_session(onnxruntime: Any, bundle: Bundle, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors only
    options.enable_mem_pattern = False  # a plan for one sequence length is waste at the next
    total_mb = board.this_board().memory_total_mb
    options.enable_cpu_mem_arena = total_mb is None or total_mb >= SMALL_BOARD_MB  # an arena never shrinks
    path = os.path.join(bundle.folder, "model.onnx")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise MerinoError(f"onnxruntime {onnxruntime.__version__} cannot open {path}: {_first_line(error)}. "
                          "Check the bundle with `verify`, or export it again.") from error
    _check_ports(bundle.inputs, session.get_inputs(), "inputs")
    _check_ports(bundle.outputs, session.get_outputs(), "outputs")
    return session


def version_tuple(version: str) -> Tuple[int, ...]:
    """"1.18" and "1.18.0" -> (1, 18, 0); what follows the third number is a build's name."""
    numbers = [int(number) for number in re.findall(r"\d+", version)[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))


def _check_ports(ports: Sequence[Port], nodes: List[Any], what: str) -> None:
    described, found = {port.name for port in ports}, {node.name for node in nodes}
    if described != found:
        raise MerinoError(f"model.onnx and bundle.json disagree about {what}: "
                          f"{', '.join(sorted(described ^ found))} stands in one of them only. "
                          "Export the bundle again.")


def _array_for(port: Port) -> np.ndarray:
    shape = [axis for axis in port.shape if isinstance(axis, int)]
    if len(shape) != len(port.shape):
        raise MerinoError(f"bundle.json gives {port.name} the shape {list(port.shape)}, expected lengths "
                          "only. Export the bundle again.")
    return np.zeros(shape, dtype=port.dtype)


def _element_type(array: np.ndarray) -> Any:
    """onnxruntime 1.10 knows int64 by C's name for it alone (`long long`); later versions take both."""
    return np.longlong if array.dtype == np.int64 else array.dtype.type


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
