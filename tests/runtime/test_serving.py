"""The server, as a process on loopback, by requests of the standard library: what it answers, refuses and shares."""
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

pytest.importorskip("uvicorn")

from served import ROOT, SLOW, Server  # noqa: E402

from merino_runtime.generation.text import byte_table  # noqa: E402

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
GREEDY = {"temperature": 0, "max_tokens": 12}


def turn(text, role="user"):
    return [{"role": role, "content": text}]


def bytes_of(answer):
    """Of the tokens: a random model's text is hardly UTF-8. Asked for with `logprobs`."""
    return [entry["bytes"] for entry in answer["choices"][0]["logprobs"]["content"]]


@pytest.fixture(scope="module")
def server(chat_dir, tmp_path_factory):
    with Server(chat_dir, XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache"))) as running:
        yield running


@pytest.fixture(scope="module")
def long_server(request, tmp_path_factory):
    """Of a context that holds a list of tools."""
    pytest.importorskip("torch")
    from chat_bundle import make_bundle

    folder = make_bundle(tmp_path_factory.mktemp("bundle") / "chat", request.getfixturevalue("decoder"), context=1024)
    with Server(folder, options=["--set=cache_mb=0"]) as running:
        yield running


@pytest.fixture(scope="module")
def name(server):
    return server.call("GET", "/v1/models")[1]["data"][0]["id"]


def test_a_stream_says_the_same_as_a_whole_answer(server, name):
    whole = server.post(CHAT, messages=turn("The miller counts"), model=name, **GREEDY)
    choice = whole["choices"][0]
    usage = {"include_usage": True}
    chunks, _ = server.stream(CHAT, messages=turn("The miller counts"), stream_options=usage, timings_per_token=True,
                              **GREEDY)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]
    assert "".join(texts) == choice["message"]["content"] != ""
    assert [each["choices"][0]["finish_reason"] for each in chunks[:-1]][-2:] == [None, choice["finish_reason"]]
    assert chunks[-1]["choices"] == [] and {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    for usage, cached in ((whole["usage"], 0), (chunks[-1]["usage"], whole["usage"]["prompt_tokens"] - 1)):
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= cached
    counts = [chunk["timings"]["predicted_n"] for chunk in chunks[:-1]]  # some tokens go into one chunk
    assert counts == sorted(counts) and counts[0] >= 1
    assert chunks[-2]["timings"]["predicted_n"] == whole["timings"]["predicted_n"] == 12


def test_no_character_of_an_answer_ends_a_line_for_python(server, chat_dir):
    """httpx, and so the client of Ollama, ends lines where `splitlines` does: at U+0085 too."""
    with open(os.path.join(str(chat_dir), "tokenizer.json"), encoding="utf-8") as file:
        vocab = json.load(file)["model"]["vocab"]
    halves = [vocab[spelled] for spelled, byte in byte_table().items() if byte in "\x85".encode()]
    sampled = {"logit_bias": {str(each): 100 for each in halves}, "seed": 3, "temperature": 50, "top_k": 2}
    for path, body in (("/api/chat", {"options": dict(sampled, num_predict=40)}), (CHAT, dict(sampled, max_tokens=40))):
        connection, response = server.open("POST", path, dict(body, messages=turn("x"), stream=True))
        with contextlib.closing(connection):
            lines = response.read().decode("utf-8").splitlines()
        values = [json.loads(line.replace("data: ", "", 1)) for line in lines if "{" in line]
        texts = [value["message"]["content"] if "message" in value else
                 value["choices"][0]["delta"].get("content", "") for value in values]
        assert "\x85" in "".join(texts) and len(values) >= 2


def test_a_turn_computes_what_it_adds_and_the_answer_before_is_not_read_again(server):
    conversation = turn("What is flour?")
    first = server.post(CHAT, messages=conversation, **GREEDY)
    conversation += [{"role": "assistant", "content": first["choices"][0]["message"]["content"]}, *turn("And bread?")]
    second = server.post(CHAT, messages=conversation, **GREEDY)["usage"]
    used = first["usage"]
    assert second["prompt_tokens_details"]["cached_tokens"] >= used["prompt_tokens"]
    assert second["prompt_tokens"] > used["total_tokens"]


def test_completions_take_texts_and_ids_and_echo_what_the_model_thinks_of_them(server):
    ids = [30, 31, 32, 33, 34, 35]
    scored_request = {"prompt": [ids, ids[:3]], "echo": True, "logprobs": 2, "max_tokens": 1, "temperature": 0}
    scored = server.post(TEXTS, **scored_request)
    chunks, _ = server.stream(TEXTS, **scored_request)
    for choice in scored["choices"]:
        assert choice["logprobs"]["text_offset"][:2] == [0, len(choice["logprobs"]["tokens"][0])]
        streamed = [each["logprobs"] for chunk in chunks for each in chunk["choices"] if each["logprobs"]
                    and each["index"] == choice["index"]]
        for key in ("tokens", "text_offset"):
            assert sum((each[key] for each in streamed), []) == choice["logprobs"][key]
    one, other = (choice["logprobs"] for choice in scored["choices"])
    assert [choice["index"] for choice in scored["choices"]] == [0, 1]
    assert len(one["tokens"]) == 7 and one["token_logprobs"][0] is None and one["top_logprobs"][0] is None
    assert all(value <= max(top.values()) <= 0
               for value, top in list(zip(one["token_logprobs"], one["top_logprobs"]))[1:])  # noqa: B905
    assert other["token_logprobs"][:3] == one["token_logprobs"][:3]
    text = server.post(TEXTS, prompt="The mill", echo=True, max_tokens=3, temperature=0)["choices"][0]["text"]
    assert text == "The mill" + server.post(TEXTS, prompt="The mill", max_tokens=3, temperature=0)["choices"][0]["text"]
    chunks, _ = server.stream(TEXTS, prompt="The mill", echo=True, max_tokens=3, temperature=0)
    assert "".join(each["choices"][0]["text"] for each in chunks) == text
    status, error = server.call("POST", TEXTS, {"prompt": [[999999]]})
    assert status == 400 and "999999" in error["error"]["message"]


def test_what_the_sampler_is_told(server):
    plain = server.post(CHAT, messages=turn("x"), logprobs=True, top_logprobs=2, **GREEDY)["choices"][0]
    entries = plain["logprobs"]["content"]
    assert len(entries) == 12 and all(each["top_logprobs"][0]["logprob"] == each["logprob"] for each in entries)
    text = b"".join(map(bytes, bytes_of({"choices": [plain]}))).decode("utf-8", "replace")
    assert text == plain["message"]["content"]
    one = server.post(CHAT, messages=turn("x"), logit_bias={"65": 100}, **GREEDY)["choices"][0]["message"]["content"]
    assert len(set(one)) == 1
    drawn = [bytes_of(server.post(CHAT, messages=turn("x"), max_tokens=12, temperature=50, top_k=0, min_p=0, top_p=1,
                                  seed=seed, logprobs=True)) for seed in (1, 1, -5)]
    assert drawn[0] == drawn[1] != drawn[2]
    cut = server.post(CHAT, messages=turn("x"), logit_bias={"65": 100}, stop=one[0], **GREEDY)["choices"][0]
    assert cut["message"]["content"] == "" and cut["finish_reason"] == "stop"
    clamped = server.post(CHAT, messages=turn("x"), max_completion_tokens=10 ** 6, temperature=0, ignore_eos=True)
    assert clamped["usage"]["total_tokens"] == 256 and clamped["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("body, status, words", [
    (b"{", 400, "not JSON"), (b'{"messages": [{"role": "user", "content": "\xff"}]}', 400, "UTF-8"),
    (b"[" * 100000, 400, "nested"), (b"[]", 400, "a list"), ({}, 400, "messages"),
    ({"messages": turn("x", 123)}, 400, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "image_url"),
    ({"messages": turn("x"), "temperature": "hot"}, 400, "temperature"),
    ({"messages": turn("x"), "temperature": float("nan")}, 400, "NaN"),
    ({"messages": turn("x"), "n": 0}, 400, "n is 0"), ({"messages": turn("x"), "model": "gpt-9"}, 404, "gpt-9"),
    ({"messages": turn("x"), "max_tokens": 0}, 400, "max_tokens"),
    ({"messages": turn("x"), "logit_bias": {"99999": 1}}, 400, "99999"),
    ({"messages": turn("word " * 300)}, 400, "at most 255"),
    (b" " * (10 * 2 ** 20), 413, "more than 4,194,304 bytes"),
    (b'{"messages": [' + b"[]," * 300000 + b"0]}", 413, "values")])
def test_a_wrong_body_is_refused_by_its_name(server, body, status, words):
    result, error = server.call("POST", CHAT, body)
    assert result == status and words in error["error"]["message"], error
    assert set(error["error"]) == {"message", "type", "param", "code"}
    assert server.post(CHAT, messages=turn("x"), **GREEDY)


def test_unknown_fields_are_ignored_and_unknown_paths_are_not(server):
    parts = turn([{"type": "text", "text": "x"}])
    assert server.post(CHAT, messages=parts, user="me", store=False, metadata={}, **GREEDY)
    assert server.call("GET", "/v1/nothing")[0] == 404 and server.call("GET", CHAT)[0] == 405
    assert server.call("GET", "/models")[0] == 200
    connection, response = server.open("HEAD", "/health")
    with contextlib.closing(connection):
        assert response.status == 200 and response.read() == b""


def test_a_page_of_the_web_cannot_use_a_server_without_a_key(server):
    body = {"messages": turn("x"), **GREEDY}
    assert server.call("POST", CHAT, body, {"Host": "evil.example"})[0] == 403
    assert server.call("POST", CHAT, body, {"Origin": "http://evil.example"})[0] == 403
    assert server.call("POST", CHAT, body, {"Origin": "null"})[0] == 403  # of a frame without an origin
    assert server.call("POST", CHAT, body, {"Origin": server.url})[0] == 200
    assert server.call("OPTIONS", CHAT, headers={"Origin": "http://evil.example"})[0] == 403


def test_a_page_of_an_allowed_origin_uses_the_server_with_and_without_a_key(chat_dir, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("open-sesame-1\n")
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    body = {"messages": turn("x"), **GREEDY}
    for options in ([], ["--api-key-file", keys]):
        allowed = ["--allow-origin", "https://UI.example, http://localhost:3000", "--set=cache_mb=0"]
        with Server(chat_dir, options=[*options, *allowed]) as server:
            for origin, status in (("https://ui.example", 204), ("https://ui.example.evil", 403), ("null", 403)):
                connection, response = server.open("OPTIONS", CHAT, headers=dict(asks, Origin=origin))
                with contextlib.closing(connection):
                    assert response.status == status and (response.getheader("Access-Control-Allow-Origin") == origin) \
                        == (status == 204)
                    assert status == 204 or b"--allow-origin " + origin.encode() in response.read()
            server.key = "open-sesame-1" if options else None
            for stream in (False, True):
                headers = {"Origin": "http://localhost:3000"}
                connection, response = server.open("POST", CHAT, dict(body, stream=stream), headers)
                with contextlib.closing(connection):
                    assert response.status == 200 and response.read()
                    assert response.getheader("Access-Control-Allow-Origin") == "http://localhost:3000"
            connection, response = server.open("GET", "/v1/models", headers={"Origin": "http://evil.example"})
            with contextlib.closing(connection):  # its script cannot read the answer, if there is one
                assert response.getheader("Access-Control-Allow-Origin") is None
                assert response.status == (200 if options else 403)


def test_a_client_that_leaves_ends_its_answer(server):
    forever = {"messages": turn("x"), "stream": True, "temperature": 0, "ignore_eos": True}
    for _ in range(20):  # none of which is read
        with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as left:
            body = json.dumps(forever).encode("utf-8")
            left.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
                         % (CHAT.encode("ascii"), len(body), body))
    assert server.post(CHAT, messages=turn("x"), **GREEDY)


def test_an_answer_ends_at_its_time(server):
    used = server.post(CHAT, messages=turn("x"), temperature=0, ignore_eos=True, max_seconds=0)
    assert used["stop_reason"] == "time" and used["choices"][0]["finish_reason"] == "length"


def raw(server, *parts, wait_s=0.0):
    """What comes back when the parts are sent, with a pause between them, until the server closes or has answered."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port), timeout=30)) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(wait_s)
        result = b""
        while True:
            data = client.recv(65536)
            result += data
            if not data or b"}" in result:
                return result


POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"


def test_a_request_that_two_readers_would_cut_in_two_ways_is_refused(server):
    both = POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert raw(server, both).startswith(b"HTTP/1.1 400")
    for path in (b"GET /health", b"GET /v1/models", b"POST /v1/nothing", b"PUT /v1/models"):
        request = path + both[len(b"POST /v1/chat/completions"):] + b"GET /v1/stats HTTP/1.1\r\nHost: localhost\r\n\r\n"
        result = until_closed(server, request)  # what would be the second request is part of the first one's body
        assert result.startswith(b"HTTP/1.1 400") and result.count(b"HTTP/1.1") == 1, result
    for wrong in (b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n", b"Content-Length: -1\r\n\r\n",
                  b"Host: evil\r\n\r\n", b"X: " + b"y" * 70000 + b"\r\n\r\n"):
        assert raw(server, POST + wrong)[:10] in (b"HTTP/1.1 4", b"")  # uvicorn 0.16 closes the connection
    assert server.post(CHAT, messages=turn("x"), **GREEDY)


def until_closed(server, data, ends_own_side=False):
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port), timeout=30)) as client:
        client.sendall(data)
        if ends_own_side:
            client.shutdown(socket.SHUT_WR)
        return b"".join(iter(partial(client.recv, 65536), b""))


def post_of(body, path=CHAT):
    data = json.dumps(body).encode("utf-8")
    return b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(data), data)


def test_a_client_that_ends_its_own_side_gets_its_answers(server):
    body = dict(GREEDY, messages=turn("x"), max_tokens=60, ignore_eos=True)
    result = until_closed(server, post_of(body) * 2, ends_own_side=True)  # pipelined
    assert result.count(b"HTTP/1.1 200") == 2 and result.count(b'"completion_tokens": 60') == 2
    result = until_closed(server, post_of(dict(body, stream=True)), ends_own_side=True)
    assert result.count(b"HTTP/1.1 200") == 1 and b"data: [DONE]" in result


def test_a_client_that_leaves_altogether_is_noticed(chat_dir):
    """By the second look, seconds after it ended its own side."""
    with Server(chat_dir, before=SLOW, options=["--set=cache_mb=0"]) as slow:
        body = dict(GREEDY, prompt="x", max_tokens=200, ignore_eos=True)
        with contextlib.closing(socket.create_connection(("127.0.0.1", slow.port))) as left:
            left.sendall(post_of(body, TEXTS))
            left.shutdown(socket.SHUT_WR)
            while not slow.call("GET", "/v1/stats")[1]["running"]:
                time.sleep(0.05)
        while slow.call("GET", "/v1/stats")[1]["running"]:
            time.sleep(0.05)
        assert slow.call("GET", "/v1/stats")[1]["requests_cancelled_total"] == 1


def test_an_absolute_address_is_one_of_this_server(server):
    for host, status in ((b"localhost", b"200"), (b"evil.example", b"403")):
        request = b"GET http://%s/v1/models?x=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % host
        assert until_closed(server, request).startswith(b"HTTP/1.1 " + status)
    request = b"GET http://localhost HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert b"<!doctype html>" in until_closed(server, request)


def test_idle_connections_lock_nobody_out(chat_dir):
    few = "from merino_runtime.serving import connections; connections.MOST_OF_NETWORK = 20"
    with Server(chat_dir, before=few, options=["--set=cache_mb=0"]) as server, contextlib.ExitStack() as opened:
        body = dict(GREEDY, messages=turn("x"), ignore_eos=True, max_tokens=200, stream=True)
        busy = server.open("POST", CHAT, body)[1]
        idle = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(60)]
        for connection in idle:
            opened.enter_context(contextlib.closing(connection))
        assert server.post(CHAT, messages=turn("x"), **GREEDY)
        assert idle[0].recv(1) == b"" and b"[DONE]" in busy.read()  # the oldest idle one is closed, a busy one is not


LIMITS = """
from merino_runtime.serving import connections, http
http.BODY_S, connections.HEADER_S, connections.IDLE_S, connections.WRITE_S = 0.5, 1, 1, 0.5
"""


def test_what_arrives_too_slowly_is_ended(chat_dir):
    with Server(chat_dir, before=LIMITS, options=["--set=cache_mb=0"]) as server:
        result = raw(server, POST + b"Content-Length: 9\r\n\r\n{")
        assert result.startswith(b"HTTP/1.1 408") and b"within 0.5 s" in result
        for begun in (b"", POST):  # of the first request, and of a second one
            assert raw(server, begun) == b""
        get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with contextlib.closing(socket.create_connection(("127.0.0.1", server.port), timeout=30)) as client:
            client.sendall(get + get[:9])
            while client.recv(65536):
                pass
        assert server.post(CHAT, messages=turn("x"), **GREEDY)


def test_a_client_that_takes_nothing_is_dropped(chat_dir):
    many = {"prompt": "x", "logprobs": 20, "temperature": 0, "ignore_eos": True, "max_tokens": 200, "stream": True}
    with Server(chat_dir, before=LIMITS, options=["--set=cache_mb=0"]) as server, contextlib.closing(
            socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.connect(("127.0.0.1", server.port))
        body = json.dumps(dict(many, prompt=["x"] * 60)).encode("utf-8")
        client.sendall(POST.replace(b"chat/", b"") + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        while not server.call("GET", "/v1/stats")[1]["requests_cancelled_total"]:
            time.sleep(0.05)
        assert server.post(CHAT, messages=turn("x"), **GREEDY)


def test_a_long_prompt_is_told_in_comments_and_a_wait_too(long_server, chat_dir):
    text = "word " * 150
    chunks, comments = long_server.stream(CHAT, messages=turn(text), **GREEDY)
    read = [list(map(int, re.match(r": (\d+) of (\d+) tokens", each).groups())) for each in comments]
    total = read[0][1]
    assert len(read) > 2 and [each[0] for each in read] == sorted({each[0] for each in read})
    assert {each[1] for each in read} == {total} and total == long_server.post(
        CHAT, messages=turn(text), **GREEDY)["usage"]["prompt_tokens"]
    quiet = "import merino_runtime.serving.http as http; http.QUIET_S = 0.01"
    with Server(chat_dir, before=quiet, options=["--set=cache_mb=0", "--slots", 1]) as server:
        long = {"messages": turn("x"), "temperature": 0, "ignore_eos": True, "max_tokens": 200}
        with contextlib.closing(server.open("POST", CHAT, dict(long, stream=True))[0]):
            assert ": waiting" in server.stream(CHAT, **long)[1]


def test_keys(chat_dir, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# of the kitchen\nopen-sesame-1\nopen-sesame-2\n")
    options = ["--api-key-file", keys, "--host", "0.0.0.0", "--set=cache_mb=0"]
    with Server(chat_dir, options=options, wait=False) as server:
        for key in (None, "open-sesame", "\u00e9".encode().decode("latin-1")):
            server.key = key
            status, error = server.call("GET", "/v1/models")
            assert (status, error["error"]["code"]) == (401, "invalid_api_key")
        while not server.ready():
            time.sleep(0.01)
        result = raw(server, POST + b"Content-Length: 4000000\r\n\r\n")  # refused before its body is awaited
        assert result.startswith(b"HTTP/1.1 401")
        server.key = "open-sesame-2"
        assert server.call("GET", "/v1/models", headers={"Host": "board.local", "Origin": "http://ui"})[0] == 200
        assert server.post(CHAT, messages=turn("x"), **GREEDY)
        assert "sesame" not in server.printed()


def test_prefixes_and_turns_are_a_keys_own(chat_dir, tmp_path):
    """The number of cached tokens would tell one key what another one wrote."""
    keys = tmp_path / "keys"
    keys.write_text("open-sesame-1\nopen-sesame-2\n")
    body = {"prompt": "The miller counts the sacks of flour in the evening. " * 3, "max_tokens": 2, "temperature": 0}

    def cached(server, header):
        status, answer = server.call("POST", TEXTS, body, header)
        assert status == 200
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    for slots in (1, 4):
        folder = tmp_path / f"cache-{slots}"
        for _ in range(2):  # the second time from disk
            options = ["--api-key-file", keys, "--slots", slots, f"--set=cache_dir={folder}"]
            with Server(chat_dir, options=options) as server:
                assert cached(server, {"Authorization": "Bearer open-sesame-1"}) >= 0
                body["prompt"] += "x"
                assert cached(server, {"Authorization": "bearer   open-sesame-1"}) > 30  # the same key
                assert cached(server, {"X-Api-Key": "open-sesame-2"}) == 0
        body["prompt"] = "Another text. " + body["prompt"]


def test_an_address_that_sends_wrong_keys_has_to_wait(chat_dir, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("open-sesame-1\n")
    with Server(chat_dir, options=["--api-key-file", keys, "--set=cache_mb=0"]) as server:
        for number in range(10):
            server.key = f"sesame-{number}"
            assert server.call("GET", "/v1/models")[0] == 401
        for key in ("sesame-10", "open-sesame-1"):  # the right one too: else guessing would go on
            server.key = key
            connection, response = server.open("GET", "/v1/models")
            with contextlib.closing(connection):
                assert response.status == 429 and 0 < int(response.getheader("Retry-After")) <= 60
        other = {"X-Forwarded-For": "192.0.2.7"}  # of a proxy on this machine
        assert server.call("GET", "/v1/models", headers=other)[0] == 200 and server.ready()
        log = server.printed()
        assert log.count("wrong API key from '127.0.0.1'") == 10 and log.count("refused for 60 s") == 1
        assert "sesame" not in log


def refused(*options):
    done = subprocess.run([sys.executable, "-m", "merino_bench", "serve", *map(str, options)], stderr=subprocess.PIPE,
                          env=dict(os.environ, PYTHONPATH=os.path.join(ROOT, "runtime")))
    assert done.returncode == 1
    return done.stderr.decode("utf-8")


def test_what_cannot_be_served_is_refused_before_it_begins(chat_dir, server, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("short\n")
    assert "--api-key-file key.txt" in refused(chat_dir, "--host", "0.0.0.0")
    assert "at least 8 characters" in refused(chat_dir, "--api-key-file", keys)
    assert "Choose another --port" in refused(chat_dir, "--port", server.port)
    for option, wrong in (("--port", 70000), ("--port", -1), ("--slots", 0), ("--set", "memory_mb=nan"),
                          ("--set", "max_seconds=0"), ("--set", "max_seconds=-5"), ("--set", "cache_mb=-1"),
                          ("--set", "queue=-1"), ("--set", "threads=0"), ("--set", "backend=cuda"),
                          ("--allow-origin", "ui.example"), ("--allow-origin", "https://ui.example/page")):
        printed = refused(chat_dir, option, wrong)
        assert str(wrong).partition("=")[0] in printed and "Traceback" not in printed, printed
    assert "both called" in refused(chat_dir, chat_dir)
    assert "slots" in refused(chat_dir, "--slots", 100000)
    assert "MB are allowed" in refused(chat_dir, "--set", "memory_mb=0.01")


def test_too_many_requests_are_told_when_to_come_again(chat_dir):
    with Server(chat_dir, options=["--slots", 1, "--set=queue=1"]) as server:
        long = {"messages": turn("x"), "temperature": 0, "ignore_eos": True, "max_tokens": 200}
        results = []

        def one():
            connection, response = server.open("POST", CHAT, long)
            results.append((response.status, response.getheader("Retry-After"), response.read()))
            connection.close()

        threads = [threading.Thread(target=one) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refusals = [each for each in results if each[0] == 429]
        assert {each[0] for each in results} == {200, 429} and all(int(each[1]) >= 1 for each in refusals)
        assert len({json.loads(each[2].decode())["choices"][0]["message"]["content"]
                    for each in results if each[0] == 200}) == 1


HOUSE = "You keep a house. " + "The lamp of the kitchen is off. " * 3


def cached(server, text, system=HOUSE, **more):
    answer = server.post(CHAT, messages=[*turn(system, "system"), *turn(text)], **dict(GREEDY, max_tokens=2, **more))
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"], answer["choices"][0]["message"]["content"]


def test_a_beginning_that_came_twice_outlives_a_restart(chat_dir, tmp_path):
    options = [f"--set=cache_dir={tmp_path}/kept"]
    with Server(chat_dir, options=options) as server:
        assert cached(server, "Is it dark?")[0] == 0
        shared, answer = cached(server, "Or not?")
        assert shared > 64
        server.close()
    (file,) = (tmp_path / "kept").rglob("*.cache")
    assert file.parent.stat().st_mode & 0o077 == 0
    with Server(chat_dir, options=options) as server:
        assert cached(server, "Or not?") == (shared, answer)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with Server(chat_dir, options=options) as server:
        assert cached(server, "Or not?") == (0, answer) and "deleted" in server.printed()
    assert not file.exists()
    file.parent.chmod(0o750)
    with Server(chat_dir, options=options) as server:
        assert "chmod 700" in server.printed() and cached(server, "Or not?") == (0, answer)


def test_a_background_request_never_costs_a_person_a_slot(chat_dir):
    """Three talks of people and one slot each but for the last; titles come in between."""
    with Server(chat_dir, options=["--slots", 2, "--set=cache_mb=0"]) as server:
        first, second = ("One talk about rivers. ", "Another one, of mills. ")
        assert cached(server, "a", first * 3)[0] == cached(server, "b", second * 3)[0] == 0
        for title in "xyz":
            assert cached(server, "Title", title * 40, priority="background")[0] < 40
        assert cached(server, "a", first * 3)[0] > 40 and cached(server, "b", second * 3)[0] > 40
        kinds = [slot["for"] for slot in server.call("GET", "/v1/stats")[1]["models"][0]["slots"]]
        assert kinds == ["person", "person", "background"]
        other = cached(server, "c", first * 3 + "And of boats.")[0]  # shares the talk's beginning: a copy, or the slot
        assert other > 40


def test_a_signal_ends_what_is_under_way_with_an_error(chat_dir):
    with Server(chat_dir, options=["--slots", 1, "--set=queue=100"]) as server:
        long = {"messages": turn("x"), "temperature": 0, "ignore_eos": True, "max_tokens": 200}
        results = []

        def one(streams):
            with contextlib.suppress(OSError):
                connection, response = server.open("POST", CHAT, dict(long, stream=streams))
                results.append((response.status, response.read()))
                connection.close()

        threads = [threading.Thread(target=one, args=(each % 2 == 1,)) for each in range(80)]
        for thread in threads:
            thread.start()
        while not results:
            time.sleep(0.001)
        server.process.terminate()
        for thread in threads:
            thread.join()
        assert server.process.wait(60) == 0 and "stopped" in server.printed()
    assert {status for status, _ in results} == {200, 503}
    assert any(status == 200 and b"the server was stopped" in data for status, data in results)


def test_a_model_that_cannot_be_loaded_ends_the_server(chat_dir, tmp_path):
    import shutil

    shutil.copytree(str(chat_dir), str(tmp_path / "broken"))
    path = tmp_path / "broken" / "model.onnx"
    path.write_bytes(b"\0" * path.stat().st_size)
    assert "sha256" in refused(tmp_path / "broken", "--port", 0)


SCHEMA = {"type": "object", "properties": {"lamp": {"enum": ["on", "off"]}, "level": {"type": "integer"}},
          "required": ["lamp", "level"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "set_lamp", "description": "Sets a lamp.", "parameters": SCHEMA}}
ROOM = {"temperature": 1.0, "max_tokens": 100}


def test_an_answer_follows_the_schema_that_it_is_given(server):
    requested = {"type": "json_schema", "json_schema": {"name": "lamp", "strict": True, "schema": SCHEMA}}
    for seed in range(5):
        choice = server.post(CHAT, messages=turn("x"), response_format=requested, seed=seed, **ROOM)["choices"][0]
        assert choice["finish_reason"] == "length" or set(json.loads(choice["message"]["content"])) == {"lamp", "level"}
    free = server.post(CHAT, messages=turn("x"), response_format={"type": "json_object"}, **ROOM)["choices"][0]
    assert free["message"]["content"].lstrip().startswith("{")
    status, error = server.call("POST", CHAT, {"messages": turn("x"), "response_format": dict(
        requested, json_schema={"schema": {"type": "object", "not": {}}})})
    assert status == 400 and error["error"]["param"] == "response_format" and "not" in error["error"]["message"]


def test_a_tool_that_must_be_called_is_called_in_a_stream_too(long_server):
    body = {"messages": turn("x"), "tools": [TOOL], "seed": 1, **ROOM}
    (whole,) = long_server.post(CHAT, tool_choice="required", **body)["choices"]
    assert whole["finish_reason"] == "tool_calls" and whole["message"]["content"] is None
    (call,) = whole["message"]["tool_calls"]
    assert call["function"]["name"] == "set_lamp" and call["id"] and call["type"] == "function"
    assert set(json.loads(call["function"]["arguments"])) == {"lamp", "level"}
    named = {"type": "function", "function": {"name": "set_lamp"}}
    chunks, _ = long_server.stream(CHAT, tool_choice=named, **body)
    (delta,) = [each for chunk in chunks for each in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert delta["index"] == 0 and delta["function"]["arguments"] == call["function"]["arguments"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    past = [*turn("x"), {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": "done <|im_end|>"}]
    used = long_server.post(CHAT, messages=past, tools=[TOOL], tool_choice="auto", temperature=0, max_tokens=3)["usage"]
    assert used["prompt_tokens_details"]["cached_tokens"] > 100
    none = long_server.post(CHAT, messages=turn("x"), tools=[TOOL], tool_choice="none", temperature=0, max_tokens=3)
    assert none["usage"]["prompt_tokens"] < 60
    form = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "required": ["done"], "properties": {
        "done": {"type": "boolean"}}}}}
    either = dict(body, temperature=50, top_k=0, top_p=1, min_p=0, max_tokens=200, response_format=form)
    answers = [long_server.post(CHAT, **dict(either, seed=seed))["choices"][0] for seed in range(8)]
    assert {each["finish_reason"] for each in answers} == {"stop", "tool_calls"}
    assert all(set(json.loads(each["message"]["content"])) == {"done"} for each in answers
               if each["finish_reason"] == "stop")
    for choice, words in (("never", "never"), ({"function": {"name": "fly"}}, "fly")):
        body = {"messages": turn("x"), "tools": [TOOL], "tool_choice": choice}
        status, error = long_server.call("POST", CHAT, body)
        assert status == 400 and words in error["error"]["message"]
