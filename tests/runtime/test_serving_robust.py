"""What clients can do to a server: come all at once, read slowly, leave, send nonsense; and what a kill leaves."""
import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("torch")  # of the workstation, whose runtime takes the packaged bundle
pytestmark = pytest.mark.slow

from chat_bundle import make_bundle  # noqa: E402
from served import Server  # noqa: E402

from merino_runtime.serving.scheduler import QUIET_S  # noqa: E402

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
CLIENTS = 100
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MOST_GROWN = 1.02  # of resident memory
WORDS = ("Lily", "Tom", "the dog", "a bird", "went", "to the park", "was happy", "and", "found a ball", "one day")


def body_of(number, **more):
    chance = random.Random(number)
    text = " ".join(chance.choice(WORDS) for _ in range(3 + number % 9))
    return dict({"prompt": text, "temperature": 0.5 * (number % 3), "seed": number, "max_tokens": 12,
                 "ignore_eos": True}, **more)


def whole(server, number):
    return server.post(TEXTS, **body_of(number))["choices"][0]["text"]


def streamed(server, number):
    chunks, _ = server.stream(TEXTS, **body_of(number))
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


def all_at_once(calls):
    """What each call returned, or raised, in its own thread."""
    result = [None] * len(calls)

    def run(place):
        try:
            result[place] = calls[place]()
        except Exception as error:
            result[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return result


@pytest.fixture(scope="module")
def bundle():
    """Of the trained model: what it says depends on what it hears."""
    from merino_edge.embedded import FOLDER

    return FOLDER


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    options = [f"--set=queue={2 * CLIENTS}", "--slots", 4]
    with Server(bundle, options=options, XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache"))) as running:
        yield running


def request_of(body, path=TEXTS):
    data = json.dumps(body).encode("utf-8")
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode("ascii") + data


def connected(server):
    return contextlib.closing(socket.create_connection(("127.0.0.1", server.port), timeout=60))


def mean_batch(server):
    """Requests whose decode steps one run of the graph computed, in the mean of such runs; 0 before the first one."""
    stats = server.call("GET", "/v1/stats")[1]
    return stats["tokens_batched_total"] / max(1, stats["batches_total"])


def test_a_hundred_clients_at_once_hear_what_each_hears_alone(server):
    alone = [whole(server, number) for number in range(CLIENTS)]
    assert len(set(alone)) > CLIENTS // 2 and mean_batch(server) == 0
    calls = [lambda number=number: (streamed if number % 2 else whole)(server, number) for number in range(CLIENTS)]
    together = all_at_once(calls)
    assert [number for number in range(CLIENTS) if together[number] != alone[number]] == []
    assert mean_batch(server) > 2


SCHEMA = {"type": "object", "properties": {"lamp": {"enum": ["on", "off"]}, "level": {"type": "integer"}},
          "required": ["lamp", "level"], "additionalProperties": False}
ANY = {"temperature": 50, "top_k": 0, "min_p": 0, "top_p": 1, "ignore_eos": True}  # a random model repeats itself
REQUESTS = [
    {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}, "temperature": 1.0},
    dict(ANY, top_logprobs=2, seed=1), dict(ANY, presence_penalty=2, repetition_penalty=1.5, seed=1),
    {"logit_bias": {"65": 100, "66": 100}, "temperature": 50, "top_k": 2, "stop": ["bab", "aba"], "max_tokens": 60},
    dict(ANY, priority="background", seed=2),
]


def answer_to(server, body):
    """The bytes of an answer's tokens, why it ended, and its log-probabilities."""
    conversation = [{"role": "user", "content": "The mill"}]
    body = dict({"max_tokens": 40, "seed": 5, "logprobs": True}, messages=conversation, **body)
    (choice,) = server.post(CHAT, **body)["choices"]
    entries = choice["logprobs"]["content"]
    return [each["bytes"] for each in entries], choice["finish_reason"], [each["logprob"] for each in entries]


def test_requests_that_are_decoded_together_keep_sampler_constraint_and_ends(decoder, tmp_path):
    folder = make_bundle(tmp_path / "chat", decoder, dialect="fused", context=512)
    with Server(folder, options=["--slots", 4, "--set=cache_mb=0"]) as server:
        alone = [answer_to(server, body) for body in REQUESTS]
        assert mean_batch(server) == 0 and len({str(each[0]) for each in alone}) == len(REQUESTS)
        together = all_at_once([lambda body=body: answer_to(server, body) for body in REQUESTS * 4])
        assert mean_batch(server) > 1.5
    for result, expected in zip(together, alone * 4, strict=True):
        assert result[:2] == expected[:2]
        assert result[2] == pytest.approx(expected[2], abs=1e-3)


def test_clients_that_read_slowly_or_leave_keep_nobody_waiting(server):
    before = whole(server, 1)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(server)) for _ in range(20)]
        for number, each in enumerate(slow):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            each.sendall(request_of(body_of(number, stream=True, max_tokens=200)))
            if number % 2:
                each.shutdown(socket.SHUT_WR)
        half = stack.enter_context(connected(server))
        half.sendall(request_of(body_of(1))[:-9])
        assert whole(server, 1) == before
        assert slow[0].recv(12) == b"HTTP/1.1 200"
    assert whole(server, 1) == before
    stats = server.call("GET", "/v1/stats")[1]
    while stats["running"] or stats["waiting"]:
        time.sleep(0.05)
        stats = server.call("GET", "/v1/stats")[1]


@pytest.mark.skipif(not HUGE.exists() or "[madvise]" not in HUGE.read_text(), reason="no huge pages on request here")
def test_a_cache_takes_memory_as_far_as_it_is_filled(decoder, tmp_path):
    folder = make_bundle(tmp_path / "chat", decoder, dialect="fused", context=16384)  # 8 MB for a slot
    with Server(folder, options=["--set=cache_mb=0"]) as server:
        whole(server, 1)
        with open(f"/proc/{server.process.pid}/smaps_rollup") as file:
            huge = re.search(r"AnonHugePages:\s*(\d+) kB", file.read())
        assert huge and int(huge.group(1)) == 0


def nonsense(chance):
    """Bytes of a client that speaks no HTTP, some of it, or a body that nobody asked for."""
    body = body_of(chance.randrange(CLIENTS), max_tokens=2)
    kind = chance.randrange(7)
    if kind == 0:
        return chance.getrandbits(8 * 600).to_bytes(600, "little")
    if kind == 1:
        return request_of(body)[:chance.randrange(300)]
    if kind == 2:
        wrong = chance.choice([None, -1, "x", [], {}, [[1]], 1e99])
        return request_of(dict(body, **{chance.choice(list(body)): wrong}))
    if kind == 3:
        return request_of(chance.choice([[], "x", 1, None, [[[]]] * 9]))
    if kind == 4:
        data = bytearray(request_of(body))
        data[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(data)
    if kind == 5:
        return request_of({"messages": [{"role": "user", "content": "x" * chance.randrange(300)}]}, CHAT)
    return b"GET /%s HTTP/1.1\r\nHost: localhost\r\nX: %s\r\n\r\n" % (
        chance.choice([b"", b"v1/models", b"metrics", b"../etc", b"\xff"]), b"y" * chance.randrange(10 ** 5))


def send_nonsense(server, seconds, seed=1):
    chance, end, sent = random.Random(seed), time.time() + seconds, 0
    while time.time() < end:
        with connected(server) as client, contextlib.suppress(OSError):
            client.sendall(nonsense(chance))
            client.settimeout(0.02)
            client.recv(4096)
        sent += 1
    return sent


def quiet_rss_kb(server):
    time.sleep(QUIET_S + 0.5)
    return server.rss_kb()


@pytest.mark.parametrize("seconds", [3, pytest.param(600, marks=pytest.mark.nightly)])
def test_nonsense_ends_nothing_and_memory_stays_as_it_is(server, seconds):
    """Memory rises in steps to what the most connections at one time take, on a busy machine for minutes: so half as
    much nonsense comes before what is judged. A server that is quiet gives back what is free."""
    before = whole(server, 2)
    full = {"prompt": "Lily and Tom " * 100, "ignore_eos": True, "max_tokens": 10 ** 6}
    all_at_once([lambda: server.post(TEXTS, **full)] * 4)  # each slot is filled once
    send_nonsense(server, max(2, seconds / 2))
    all_at_once([lambda number=number: whole(server, number) for number in range(20)])
    held = quiet_rss_kb(server)
    assert send_nonsense(server, seconds, seed=2) > 10 * seconds
    all_at_once([lambda number=number: whole(server, number) for number in range(20)])
    assert whole(server, 2) == before and server.process.poll() is None
    assert quiet_rss_kb(server) <= MOST_GROWN * held
    assert "Traceback" not in server.printed()


def test_a_kill_leaves_errors_or_whole_answers_and_nothing_in_the_way(bundle, tmp_path):
    options = [f"--set=queue={CLIENTS}", f"--set=cache_dir={tmp_path}"]
    with Server(bundle, options=options) as server:
        expected = [whole(server, number) for number in range(20)]
        killer = threading.Timer(0.05, lambda: os.kill(server.process.pid, signal.SIGKILL))
        killer.start()
        calls = [lambda number=number: (streamed if number % 2 else whole)(server, number % 20) for number in range(60)]
        result = all_at_once(calls)
        killer.join()
        assert server.process.wait(60) == -signal.SIGKILL
    whole_answers = [number for number, text in enumerate(result) if isinstance(text, str)]
    assert all(result[number] == expected[number % 20] for number in whole_answers) and len(whole_answers) < 60
    errors = [each for each in result if not isinstance(each, str)]
    assert all(isinstance(each, (OSError, http.client.HTTPException, AssertionError)) for each in errors), errors
    with Server(bundle, options=[*options, "--port", server.port]) as server:  # as the unit starts it again
        assert whole(server, 3) == expected[3]
