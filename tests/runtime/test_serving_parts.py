"""Parts of the server alone: whose turn it is among waiting requests, what heat does, who pays for a run."""
import time
from collections import namedtuple
from functools import partial

import pytest

from merino_runtime.api import open_model
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError
from merino_runtime.io import board
from merino_runtime.sampling import GREEDY
from merino_runtime.serving import scheduler as scheduling
from merino_runtime.serving.access import WrongKeys
from merino_runtime.serving.choice import Call, Calls, TextDelta
from merino_runtime.serving.metrics import Burden, Sensors
from merino_runtime.serving.models import slots_of
from merino_runtime.serving.requests import Finished, GenerationRequest, Progress, TextChunk
from merino_runtime.serving.scheduler import Job as RunningJob
from merino_runtime.serving.scheduler import LoadedModel, Scheduler, Waiting
from merino_runtime.serving.slots import Slots

Job = namedtuple("Job", "name request")
Request = namedtuple("Request", "client background")


def job(name, client, background=False):
    return Job(name, Request(client, background))


def test_clients_take_turns_and_people_come_before_background_requests():
    waiting = Waiting()
    jobs = [job("title", "ui", True), *(job(f"many {each}", "greedy") for each in range(3)), job("one", "polite")]
    for each in jobs:
        waiting.add(each)
    assert waiting.remove(jobs[2]) and not waiting.remove(jobs[2])
    assert waiting.next(lambda each: each.name == "one").name == "one"  # the others' model is busy
    waiting.add(job("again", "polite"))
    order = [waiting.next(lambda _: True).name for _ in range(len(waiting))]
    assert order == ["many 0", "again", "many 2", "title"]
    assert waiting.next(lambda _: True) is None


def test_a_ceiling_pauses_between_tokens_and_the_answer_says_so():
    degrees = iter([80.0, 79.0, 75.0])  # of the sensor: too hot, still too hot to go on, cool
    burden = Burden(Sensors(lambda: {"cpu": next(degrees), "gpu": 40.0}), 78.0)
    since = burden.moment()
    burden.cool()
    message = burden.thermal(since)
    assert message["ceiling_c"] == 78 and message["hottest_c"] == 75 and message["paused_ms"] >= 200
    burden.cool()  # it was looked at within the second
    assert burden.thermal(since) == message
    assert Burden(Sensors(), None).thermal(since) is None


def test_energy_is_shared_out_by_what_each_request_computed():
    class Meter:
        name = "sensor rail"

        def joules(self, start_s, end_s):
            return 10.0 if end_s > start_s else None

    burden = Burden(Sensors(meter=Meter()), None)
    since = burden.moment()
    burden.busy_s += 4.0
    assert burden.energy(since, 1.0) == {"joules": 2.5, "sensor": "sensor rail"}
    assert Burden(Sensors(), None).energy(since, 1.0) is None


CALL = '<tool_call>\n{"name": "lamp", "arguments": {"on": true}}\n</tool_call>'


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_told_from_the_text_wherever_it_is_cut(size):
    text = "So: " + CALL + "\n" + CALL + " <tool_call>nonsense</tool_call> a < b <tool"
    calls, result = Calls(), []
    for place in range(0, len(text), size):
        result += calls.push(text[place:place + size])
    result += calls.finish()
    assert [(each.name, each.arguments) for each in result if isinstance(each, Call)] == [("lamp", {"on": True})] * 2
    output = "".join(each.text for each in result if isinstance(each, TextDelta))
    assert output.replace(" ", "") == "So:<tool_call>nonsense</tool_call>a<b<tool"


def test_a_run_for_several_requests_is_shared_out_and_one_that_fails_is_made_up_for(bundle_dirs, capsys, monkeypatch):
    if "fused" not in bundle_dirs:
        pytest.skip("no fused bundle for this Python's onnxruntime")
    slots = Slots(open_model(str(bundle_dirs["fused"]), threads=1), 3)
    served, row, batched, runs_s, message = LoadedModel(slots), slots.persons[0].backend, [], [], []
    request, computed = GenerationRequest((1, 2, 3), 20, GREEDY, ignore_eos=True), type(row).step_ahead

    def timed(backend, steps):
        start = time.perf_counter()
        try:
            return computed(backend, steps)
        finally:
            runs_s.append(time.perf_counter() - start)

    def answers():
        scheduler, ended = Scheduler(9, Burden(Sensors(), None), batched=batched.append), []
        del message[:], runs_s[:]

        def take(event):
            message.append(event.id if isinstance(event, TextChunk) else None)
            if isinstance(event, Finished):
                ended.append(event.usage)
                if len(ended) == 3:
                    scheduler.close()

        jobs = [RunningJob(request._replace(ids=(1, 2, 3 + each)), served, take) for each in range(3)]
        scheduler.submit(jobs)
        scheduler.run()
        assert sum(each.busy_s for each in jobs) == pytest.approx(scheduler.burden.busy_s)
        assert [each.tokens for each in ended] == [20] * 3
        return ended

    monkeypatch.setattr(type(row), "step_ahead", timed)
    for used in answers():
        assert used.decode_ms >= 1000 * sum(runs_s)  # each waits for the whole of a run
    assert batched == [3] * 19 and not capsys.readouterr().err
    first, row._rows._session = message[:], None
    answers()
    assert message == first and len(batched) == 19 and "one by one from now on" in capsys.readouterr().err
    slots.close()


def test_any_number_of_prefills_shares_the_budget_of_one(folder, monkeypatch):
    """Between two tokens of a stream, prompts of others get as many ids as one prompt alone does."""
    monkeypatch.setattr(scheduling, "PREFILL_S", 1e-9)  # no chunk fits, so each round has one, the smallest
    with open_model(folder, threads=1) as model:
        slots = Slots(model, 5)
        served, log = LoadedModel(slots), []
        scheduler = Scheduler(9, Burden(Sensors(), None))

        def take(name, event):
            if isinstance(event, Progress):
                log.append((name, event.ids))
            elif isinstance(event, TextChunk):
                log.append((name, "token"))
            elif isinstance(event, Finished):
                log.append((name, "end"))
                if name == "stream":
                    scheduler.close()

        usual = GenerationRequest((1, 2, 3), 40, GREEDY, ignore_eos=True)
        jobs = [RunningJob(usual, served, partial(take, "stream"))] + [
            RunningJob(usual._replace(ids=tuple(range(start, start + 40)), max_new_tokens=2), served,
                       partial(take, start)) for start in range(4, 8)]
        scheduler.submit(jobs)
        scheduler.run()
        slots.close()
    tokens = [place for place, (name, what) in enumerate(log) if (name, what) == ("stream", "token")]
    gaps = [log[first + 1:last] for first, last in zip(tokens, tokens[1:])]  # noqa: B905, not in 3.6
    for gap in gaps:
        assert len({name for name, what in gap if isinstance(what, int) and what}) <= 1, gap
    order = [name for name, what in log if isinstance(what, int) and what]
    assert order == [4, 5, 6, 7] * 2  # they take turns
    assert sum(what == "end" for _, what in log) == 5


def test_slots_are_what_memory_allows(folder):
    bundle = load_bundle(folder)
    kv_mb = bundle.kv_bytes / board.MB
    usual = 16 if bundle.dialect == "fused" else 4
    assert slots_of([bundle], None, 100 * kv_mb) == usual and slots_of([bundle], 30, 100 * kv_mb) == 30
    assert slots_of([bundle], None, 3.5 * kv_mb) == 2
    assert slots_of([bundle, bundle], None, 7 * kv_mb) == 2
    with pytest.raises(MerinoError, match="3 slots and one for background"):
        slots_of([bundle], 3, 3.5 * kv_mb)


def test_wrong_keys_are_forgotten_after_the_pause_and_their_addresses_are_bounded(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("merino_runtime.serving.access.time.monotonic", lambda: now[0])
    wrong = WrongKeys()
    for number in range(5000):
        wrong.add(str(number))
    assert len(wrong._counts) == 1024
    for number in range(10):
        assert wrong.wait_s("here") == 0, number
        wrong.add("here")
    assert wrong.wait_s("here") == 60
    now[0] = 60.0
    assert wrong.wait_s("here") == 0
    wrong.add("here")
    assert wrong.wait_s("here") == 0
