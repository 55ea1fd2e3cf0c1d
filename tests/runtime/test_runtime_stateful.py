"""Any order of calls, interrupts among them, leaves what a fresh cache would hold; and memory stays flat."""
import os
import random
import signal
import threading

import numpy as np
import pytest
from few_examples import examples
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from merino_runtime.backends import onnx, open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.generation.generate import Generation
from merino_runtime.sampling import GREEDY, GenerateOptions

CHUNK = 4
EXAMPLES = examples(50, stateful_step_count=25,
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.fixture(params=["fused", "portable"])
def bundle(request, bundle_dirs, monkeypatch):
    if request.param not in bundle_dirs:
        pytest.skip(f"no {request.param} bundle for this Python's onnxruntime")
    monkeypatch.setattr(onnx, "PREFILL_CHUNK_IDS", CHUNK)
    return load_bundle(str(bundle_dirs[request.param]))


@pytest.fixture
def origin(bundle):
    """A backend that no test uses but to fork: its forks have fresh caches."""
    backend = open_backend(bundle, 1)
    yield backend
    backend.close()


def assert_as_fresh(origin, ids, logits):
    other = origin.fork()
    expected = other.prefill(ids)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4 * float(np.abs(expected).max()))
    other.close()


class Interrupting:
    """A session that runs `after` times and then raises ctrl-C, before or after the run itself."""

    def __init__(self, session, after, before_run):
        self.session, self.left, self.before_run = session, after, before_run

    def io_binding(self):
        return self.session.io_binding()

    def run_with_iobinding(self, binding):
        self.left -= 1
        if self.left >= 0 or not self.before_run:
            self.session.run_with_iobinding(binding)
        if self.left < 0:
            raise KeyboardInterrupt


def machine_of(origin):
    class Machine(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.rows = origin.rows(3)
            self.all = [[row, []] for row in self.rows]  # [backend, the ids it should hold]

        def teardown(self):
            for backend, _ in self.all:
                backend.close()

        def any(self, data):
            return data.draw(st.sampled_from(range(len(self.all))))

        def ids(self, data, mirror):
            free = origin.context - len(mirror)
            return data.draw(st.lists(st.integers(0, origin.vocab - 1), min_size=1, max_size=min(free, 11)))

        def check(self, place, logits=None):
            backend, mirror = self.all[place]
            assert backend.ids == mirror
            if logits is not None:
                assert_as_fresh(origin, mirror, logits)

        @rule(data=st.data())
        def prefill(self, data):
            place = self.any(data)
            backend, mirror = self.all[place]
            if len(mirror) < backend.context:
                ids = self.ids(data, mirror)
                logits = backend.prefill(ids)
                mirror += ids
                self.check(place, logits)

        @rule(data=st.data())
        def step(self, data):
            place = self.any(data)
            backend, mirror = self.all[place]
            if len(mirror) < backend.context:
                token_id = data.draw(st.integers(0, backend.vocab - 1))
                logits = backend.step(token_id)
                mirror.append(token_id)
                self.check(place, logits)

        @rule(data=st.data())
        def step_together(self, data):
            steps = [(place, data.draw(st.integers(0, origin.vocab - 1))) for place, (backend, mirror)
                     in enumerate(self.all) if backend in self.rows and len(mirror) < origin.context]
            if steps:
                self.all[steps[0][0]][0].step_ahead([(self.all[place][0], token_id) for place, token_id in steps])
            for place, token_id in steps:
                if data.draw(st.booleans()):  # else it was computed for nothing
                    logits = self.all[place][0].step(token_id)
                    self.all[place][1].append(token_id)
                    self.check(place, logits)

        @rule(data=st.data())
        def truncate(self, data):
            place = self.any(data)
            backend, mirror = self.all[place]
            length = data.draw(st.integers(0, len(mirror)))
            backend.truncate(length)
            del mirror[length:]
            self.check(place)

        @rule(data=st.data(), after=st.integers(0, 2), before_run=st.booleans())
        def interrupted(self, data, after, before_run):
            place = self.any(data)
            backend, mirror = self.all[place]
            if len(mirror) == backend.context:
                return
            ids = self.ids(data, mirror)
            sessions = backend._prefill_session, backend._decode_session
            backend._prefill_session = backend._decode_session = Interrupting(sessions[0], after, before_run)
            try:
                backend.prefill(ids)
            except KeyboardInterrupt:
                added = len(backend.ids) - len(mirror)
                assert added <= after * CHUNK
            else:
                added = len(ids)
            backend._prefill_session, backend._decode_session = sessions
            mirror += ids[:added]
            self.check(place)

        @precondition(lambda self: len(self.all) < 6)
        @rule(data=st.data())
        def fork(self, data):
            backend, mirror = self.all[self.any(data)]
            self.all.append([backend.fork(), mirror[:]])
            self.check(len(self.all) - 1)

        @rule(data=st.data())
        def copy_prefix(self, data):
            source, target = self.any(data), self.any(data)
            if source != target:
                length = data.draw(st.integers(0, len(self.all[source][1])))
                self.all[target][0].copy_prefix(self.all[source][0], length)
                self.all[target][1][:] = self.all[source][1][:length]
                self.check(target)

        @rule(data=st.data())
        def save_and_fill(self, data):
            source, target = self.any(data), self.any(data)
            ids, arrays = self.all[source][0].filled()
            self.all[target][0].fill(ids, arrays.values())
            self.all[target][1][:] = ids
            self.check(target)

        @precondition(lambda self: len(self.all) > 1)
        @rule(data=st.data())
        def close(self, data):
            self.all.pop(self.any(data))[0].close()

    return Machine


def test_any_order_of_calls_leaves_what_a_fresh_cache_holds(origin):
    run_state_machine_as_test(machine_of(origin), settings=EXAMPLES)


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name != "posix", reason="signals are POSIX's")
def test_a_real_sigint_at_any_moment_leaves_the_backend_fit(origin):
    backend, draw = origin.fork(), random.Random(1)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    ids = [draw.randrange(origin.vocab) for _ in range(30)]
    try:
        for _ in range(60):
            timer = threading.Timer(draw.uniform(0, 0.01), os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                while True:
                    backend.truncate(0)
                    backend.prefill(ids[:20])
                    for token_id in ids[20:]:
                        backend.step(token_id)
            except KeyboardInterrupt:
                mirror = backend.ids[:]
            timer.join()
            assert mirror == ids[:len(mirror)]
            assert_as_fresh(origin, [*mirror, 7], backend.step(7))
            backend.truncate(len(mirror))
    finally:
        signal.signal(signal.SIGINT, handler)
        backend.close()


def test_a_lock_that_an_interrupt_left_held_stops_nothing(origin):
    """As Python 3.6 leaves it where SIGINT comes between the end of a `with` and its release."""
    backend = origin.fork()
    backend._lock.acquire()
    backend.prefill([1, 2, 3])
    assert_as_fresh(origin, [1, 2, 3, 7], backend.step(7))
    backend.truncate(2)
    assert_as_fresh(origin, [1, 2, 4], backend.step(4))
    twin = backend.fork()
    assert twin.ids == [1, 2, 4]
    for each in (twin, backend):
        each.close()


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="read from /proc")
@pytest.mark.parametrize("bundle, what", [
    ("fused", "forks"), *(pytest.param(*each, marks=pytest.mark.nightly) for each in (
        ("fused", "generations"), ("portable", "forks"), ("portable", "generations")))], indirect=["bundle"])
def test_memory_is_flat_over_thousands_of_generations_and_forks(origin, what):
    """A leak of more than 2 KB each would show."""
    def work(count):
        for _ in range(count):
            backend = origin.fork() if what == "forks" else kept
            for _ in Generation(backend, [1, 2, 3, 4, 5, 6], GenerateOptions(max_new_tokens=3, sampling=GREEDY)):
                pass
            if what == "forks":
                backend.close()

    kept = origin.fork()
    work(500)
    before = resident_bytes()
    work(2000)
    assert resident_bytes() - before < 4 * 2 ** 20
    kept.close()
