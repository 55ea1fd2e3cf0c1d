"""Parts of the server by themselves: whose turn it is among waiting requests, and what heat does."""
from collections import namedtuple

import pytest

from merino_runtime.serving.burden import Burden, Sensors
from merino_runtime.serving.choice import Call, Calls, TextDelta
from merino_runtime.serving.waiting import Waiting

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
    told = burden.thermal(since)
    assert told["ceiling_c"] == 78 and told["hottest_c"] == 75 and told["paused_ms"] >= 200
    burden.cool()  # it was looked at within the second
    assert burden.thermal(since) == told
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
    calls, found = Calls(), []
    for place in range(0, len(text), size):
        found += calls.push(text[place:place + size])
    found += calls.finish()
    assert [(each.name, each.arguments) for each in found if isinstance(each, Call)] == [("lamp", {"on": True})] * 2
    said = "".join(each.text for each in found if isinstance(each, TextDelta))
    assert said.replace(" ", "") == "So:<tool_call>nonsense</tool_call>a<b<tool"
