"""The ONNX Runtime backend on real bundles of both dialects, against itself: one truth, many ways to it."""
import shutil
import threading

import numpy as np
import pytest

from merino_runtime.api import selftest
from merino_runtime.backends import onnx, open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.errors import MerinoError
from merino_runtime.generation.generate import Generation
from merino_runtime.generation.text import open_tokenizer
from merino_runtime.sampling import GREEDY, GenerateOptions

IDS = [5, 9, 100, 3, 77, 31, 2, 200]


@pytest.fixture
def backend(bundle):
    opened = open_backend(bundle)
    yield opened
    opened.close()


def without_graph(size):
    """A model of so many bytes that has nothing but the name of a producer."""
    length = size - 4
    return bytes([0x12, length & 127 | 128, length >> 7 & 127 | 128, length >> 14]) + b"x" * length


def fresh(bundle, ids):
    """The logits of one prefill of all ids, in a backend of its own."""
    other = open_backend(bundle)
    logits = other.prefill(ids).copy()
    other.close()
    return logits


def assert_close(computed, expected):
    np.testing.assert_allclose(computed, expected, rtol=1e-3, atol=1e-4 * float(np.abs(expected).max()))


def test_old_fused_attention_gets_several_ids_into_an_empty_cache_only(bundle, backend, monkeypatch):
    backend = onnx.OnnxBackend(backend._model._replace(version="1.19.2"))
    monkeypatch.setattr(onnx, "PREFILL_CHUNK_IDS", 3)
    lengths = []
    run = backend._run
    monkeypatch.setattr(backend, "_run", lambda session, binding, new, part, *more: (
        lengths.append(part.shape[1]), run(session, binding, new, part, *more))[1])
    backend.prefill(IDS[:4])
    assert_close(backend.prefill(IDS[4:]), fresh(bundle, IDS))
    assert lengths == ([4, 1, 1, 1, 1] if bundle.dialect == "fused" else [3, 1, 3, 1])


def test_logits_are_a_view_that_the_next_call_overwrites(backend):
    first = backend.prefill(IDS)
    kept = first.copy()
    second = backend.step(3)
    assert np.shares_memory(first, second) and np.abs(kept - second).max() > 0


def test_the_cache_can_be_filled_to_its_last_slot_and_no_further(bundle, backend):
    ids = [token_id % bundle.vocab for token_id in range(bundle.context)]
    backend.prefill(ids[:-1])
    assert_close(backend.step(ids[-1]), fresh(bundle, ids))
    assert backend.length == bundle.context
    with pytest.raises(MerinoError, match=f"all {bundle.context} slots"):
        backend.step(1)
    with pytest.raises(MerinoError, match=f"prefill of 1 ids.*{bundle.context} of the {bundle.context}"):
        backend.prefill([1])
    backend.truncate(bundle.context - 2)
    with pytest.raises(MerinoError, match="prefill of 3 ids.*2 free"):
        backend.prefill([1, 2, 3])
    assert backend.length == bundle.context - 2


@pytest.mark.parametrize("ids, message", [([], "0 ids"), ([-1], "from -1"), ([0, 10 ** 6], "to 1000000")])
def test_ids_that_cannot_be_are_refused(backend, ids, message):
    with pytest.raises(MerinoError, match=message):
        backend.prefill(ids)
    assert backend.length == 0


@pytest.mark.parametrize("token_id", [-1, 300, 10 ** 6])
def test_a_step_with_an_id_that_cannot_be_is_refused(bundle, backend, token_id):
    backend.prefill(IDS)
    with pytest.raises(MerinoError, match=f"token id {token_id} does not exist, the model has 0 to {bundle.vocab - 1}"):
        backend.step(token_id)
    assert backend.ids == IDS


@pytest.mark.parametrize("length", [-1, 9])
def test_a_truncation_to_what_is_not_there_is_refused(backend, length):
    backend.prefill(IDS)
    with pytest.raises(MerinoError, match=f"truncated to {length} ids, it holds 8"):
        backend.truncate(length)


@pytest.mark.parametrize("call", [
    lambda backend: backend.prefill([1, 2]), lambda backend: backend.step(1), lambda backend: backend.truncate(0),
    lambda backend: backend.fork()])
def test_a_closed_backend_says_so(bundle, call):
    backend = open_backend(bundle)
    backend.prefill(IDS)
    backend.close()
    backend.close()
    with pytest.raises(MerinoError, match="^this backend is closed"):
        call(backend)


def test_onnxruntime_itself_writes_nothing_to_stderr(bundle, backend, capfd, tmp_path):
    backend.vocab = 10 ** 9
    with pytest.raises(MerinoError, match="onnxruntime failed on 1 ids"):
        backend.step(10 ** 6)
    with pytest.raises(MerinoError, match="onnxruntime failed on 2 ids"):
        backend.prefill([1, 10 ** 6])
    (tmp_path / "model.onnx").write_bytes(without_graph(99))
    with pytest.raises(MerinoError, match="cannot open"):
        open_backend(bundle._replace(folder=str(tmp_path)))
    assert capfd.readouterr() == ("", "")


def test_the_golden_ids_come_out_and_a_wrong_one_is_placed(bundle, backend):
    assert selftest(bundle, backend) is None
    wrong = list(bundle.golden.greedy_ids)
    wrong[2] = (wrong[2] + 1) % bundle.vocab
    mismatch = selftest(bundle._replace(golden=bundle.golden._replace(greedy_ids=tuple(wrong))), backend)
    assert mismatch == (2, wrong[2], bundle.golden.greedy_ids[2])
    with pytest.raises(MerinoError, match="no golden ids"):
        selftest(bundle._replace(golden=bundle.golden._replace(greedy_ids=())), backend)


def greedy_ids(backend, prompt_ids, count=12):
    *tokens, last = Generation(backend, prompt_ids, GenerateOptions(max_new_tokens=count, sampling=GREEDY))
    return [token.id for token in tokens], last.prefill_tokens


def fresh_greedy_ids(bundle, prompt_ids):
    other = open_backend(bundle)
    ids, prefilled = greedy_ids(other, prompt_ids)
    other.close()
    assert prefilled == len(prompt_ids)
    return ids


def test_a_prompt_that_shares_a_beginning_pays_for_the_rest_and_gives_a_fresh_caches_ids(bundle, backend):
    first, prefilled = greedy_ids(backend, IDS)
    assert prefilled == len(IDS) and backend.ids == IDS + first[:-1]
    turn = IDS + first + [40, 41, 42]
    for prompt_ids, expected in [
            (turn, 4),  # the last id given out was never fed back
            (turn, 1), (IDS[:5] + [99, 98], 2), (IDS[:3], 1), ([1] + IDS, 1 + len(IDS))]:
        assert greedy_ids(backend, prompt_ids) == (fresh_greedy_ids(bundle, prompt_ids), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_an_error_and_gone_after_a_truncation(bundle, backend, value):
    backend.prefill(IDS)
    backend.cache["past_key_values.0.value"][:, :, 5] = value  # as an overflow leaves it
    with pytest.raises(MerinoError, match="at position 8 are not finite"):
        backend.step(3)
    last = 9 if backend.extends_fast else 8  # else the ids go in one by one
    with pytest.raises(MerinoError, match=f"at position {last} are not finite"):
        backend.prefill([3, 4])
    assert backend.ids == IDS
    twin = backend.fork()
    for opened in (backend, twin):
        opened.truncate(5)
        assert_close(opened.step(3), fresh(bundle, IDS[:5] + [3]))
        assert_close(opened.prefill(IDS), fresh(bundle, IDS[:5] + [3] + IDS))
    twin.close()


class WorkedOnWhileRead(dict):
    """A cache that another thread works on after its first array was read."""

    def __init__(self, arrays, work):
        super().__init__(arrays)
        self.thread = threading.Thread(target=work)

    def items(self):
        for place, pair in enumerate(super().items()):
            if place == 1 and not self.thread.ident:
                self.thread.start()
                self.thread.join(1)  # it may wait for the fork
            yield pair


@pytest.mark.slow
@pytest.mark.parametrize("work", ["step", "go back and prefill"])
def test_a_fork_beside_a_running_generation_has_the_entries_of_its_ids(bundle, backend, work):
    def other_thread():
        if work == "step":
            backend.step(17)
        else:
            backend.truncate(2)
            backend.prefill([250, 251, 252, 253, 254, 255, 256])

    backend.prefill(IDS)
    backend.cache = WorkedOnWhileRead(backend.cache, other_thread)
    twin = backend.fork()
    backend.cache.thread.join()
    ids = twin.ids[:]
    assert_close(twin.step(9), fresh(bundle, ids + [9]))
    ids = backend.ids[:]
    assert_close(backend.step(9), fresh(bundle, ids + [9]))
    twin.close()


def test_forks_share_the_weights_and_nothing_that_a_run_writes(backend):
    twin = backend.fork()
    assert twin._decode_session is backend._decode_session and twin._prefill_session is backend._prefill_session
    for name, array in backend.cache.items():
        assert not np.shares_memory(array, twin.cache[name])
    kept = backend.prefill(IDS)
    before = kept.copy()
    twin.prefill(IDS[::-1])
    np.testing.assert_array_equal(kept, before)
    twin.close()


def test_threads_do_not_change_the_ids(bundle):
    ids = []
    for threads, prefill_threads, expected in [(1, None, (1, 1)), (2, None, (2, 2)), (1, 2, (2, 1)), (2, 1, (1, 2))]:
        backend = open_backend(bundle, threads, prefill_threads)
        assert (backend.prefill_threads, backend.decode_threads) == expected
        assert (backend._prefill_session is backend._decode_session) == (expected[0] == expected[1])
        ids.append(greedy_ids(backend, IDS, 10)[0])
        ids.append(greedy_ids(backend.fork(), IDS[:3] + IDS, 10)[0])
        backend.close()
    assert ids == ids[:2] * 4 and ids[0] != ids[1]


def test_a_decode_step_allocates_and_moves_no_array(backend):
    """Of what the graph reads and writes; what numpy and ONNX Runtime's binding need for one call is below 4 KB. The
    list of ids grows by a word a step."""
    import tracemalloc

    backend.prefill(IDS)
    addresses = [array.ctypes.data for array in (*backend.cache.values(), *backend._decode_new.values())]
    logits = backend.step(1)
    start = logits.ctypes.data
    backend.step(2)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for token_id in range(20):
            assert backend.step(token_id).ctypes.data == start
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    smallest_array = min(logits.nbytes, min(array.nbytes for array in backend.cache.values()))
    assert held - before < 4096 and peak - before < 4096 + smallest_array // 4
    assert addresses == [array.ctypes.data for array in (*backend.cache.values(), *backend._decode_new.values())]


def test_a_version_that_does_not_fit_is_refused_with_the_command_to_run(bundle):
    import onnxruntime

    need, = bundle.backends[:1]
    with pytest.raises(MerinoError, match="needs 99.0 or later.*pip install.*onnxruntime>=99.0"):
        open_backend(bundle._replace(backends=(need._replace(min_version="99.0"),)))
    refused = (onnxruntime.__version__,)
    with pytest.raises(MerinoError, match="refuses.*pip install.*!=" + refused[0]):
        open_backend(bundle._replace(backends=(need._replace(refused_versions=refused),)))


def test_a_model_that_onnxruntime_cannot_open_is_refused(bundle, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(bundle.folder, str(folder))
    size = (folder / "model.onnx").stat().st_size
    for content, reason in ((without_graph(size), "cannot open.*model.onnx"), (b"\xff" * size, "cannot be read as")):
        (folder / "model.onnx").write_bytes(content)
        with pytest.raises(MerinoError, match=reason):
            open_backend(load_bundle(str(folder), verify=False))


def test_a_graph_that_is_not_the_described_one_is_refused(bundle):
    with pytest.raises(MerinoError, match="disagree about inputs: input_ids"):
        open_backend(bundle._replace(inputs=bundle.inputs[1:]))


def test_an_unknown_backend_is_refused(bundle):
    with pytest.raises(MerinoError, match="'abacus'.*onnxruntime"):
        open_backend(bundle._replace(backends=(bundle.backends[0]._replace(name="abacus"),)))


def test_a_bundle_without_a_tokenizer_says_so(bundle):
    files = tuple(file for file in bundle.files if file.path != "tokenizer.json")
    with pytest.raises(MerinoError, match="no tokenizer.json"):
        open_tokenizer(bundle._replace(files=files))


@pytest.mark.parametrize("text, numbers", [
    ("1.18", (1, 18, 0)), ("1.21.0", (1, 21, 0)), ("1.32.0.dev20260101", (1, 32, 0)),
    ("1.9.1+cpu", (1, 9, 1))])
def test_versions_are_compared_as_numbers(text, numbers):
    assert version_tuple(text) == numbers
