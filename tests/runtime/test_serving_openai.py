"""What OpenAI's interface promises beyond a plain chat: several answers, choices among tools, the Responses API, and
what is refused because it is not implemented. docs/reference/openapi.json is the server's: its paths, the fields that
it reads, their bounds, and its answers. A schema whose steps would not end stops its own request, in time."""
import ast
import base64
import json
import os
import re
import threading
import time

import numpy as np
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("torch")  # of the workstation, which makes the bundle
jsonschema = pytest.importorskip("jsonschema")

from chat_bundle import make_bundle  # noqa: E402
from served import ROOT, Server  # noqa: E402

from merino_runtime.api import open_model  # noqa: E402
from merino_runtime.serving.application import Application, Settings  # noqa: E402
from merino_runtime.serving.fields import UNSUPPORTED  # noqa: E402
from merino_runtime.serving.http import page  # noqa: E402

CHAT, TEXTS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
QUESTION = [{"role": "user", "content": "How many sacks?"}]
GREEDY = {"temperature": 0, "max_tokens": 12}


def tool(name, **properties):
    return {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": properties, "required": list(properties)}}}


TOOLS = [tool("lamp", on={"type": "boolean"}), tool("oven", on={"type": "boolean"})]
ON = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}


def bytes_of(choice):
    """Of the tokens: a random model's text is hardly UTF-8."""
    content = choice["logprobs"]["content"] if choice["logprobs"] else []
    return [byte for entry in content for byte in entry["bytes"]]


@pytest.fixture(scope="module")
def bundle(decoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "chat"
    return make_bundle(folder, decoder, dialect="fused", context=1024, embeddings=True)


@pytest.fixture(scope="module")
def server(bundle):
    with Server(bundle, options=["--set=cache_mb=0"]) as running:
        yield running


def texts(answer):
    return [choice["message"]["content"] for choice in answer["choices"]]


def test_several_answers_compute_the_prompt_once(server):
    before = server.call("GET", "/v1/stats")[1]
    body = {"messages": [{"role": "user", "content": "The miller counts the sacks in the evening. " * 8}],
            "max_tokens": 8, "seed": 5, "temperature": 9, "ignore_eos": True, "logprobs": True}
    several = server.post(CHAT, n=3, **body)
    after = server.call("GET", "/v1/stats")[1]
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2]
    answers = list(map(bytes_of, several["choices"]))
    assert len(set(map(bytes, answers))) == 3
    used = several["usage"]
    assert used["completion_tokens"] == 24 and used["prompt_tokens"] > 100
    computed = after["prompt_tokens_total"] - before["prompt_tokens_total"]
    assert computed <= used["prompt_tokens"] + 2  # each of the others computes the last token
    assert answers[1] == bytes_of(server.post(CHAT, **dict(body, seed=6))["choices"][0])
    chunks, _ = server.stream(CHAT, n=3, **body)
    streamed = [[], [], []]
    for chunk in chunks:
        for choice in chunk["choices"]:
            streamed[choice["index"]] += bytes_of(choice)
    assert streamed == answers
    two = server.post(TEXTS, prompt=["The mill", "The baker"], n=2, echo=True, max_tokens=3, seed=1)["choices"]
    assert [choice["text"][:8] for choice in two] == ["The mill", "The mill", "The bake", "The bake"]


def test_a_model_by_its_name(server):
    (listed,) = server.call("GET", "/v1/models")[1]["data"]
    assert server.call("GET", "/v1/models/" + listed["id"]) == (200, listed)
    status, answer = server.call("GET", "/v1/models/gpt-9")
    assert status == 404 and answer["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(("choice", "called"), [
    ("required", {"lamp", "oven"}), ({"type": "function", "function": {"name": "oven"}}, {"oven"}),
    ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
        {"type": "function", "function": {"name": "oven"}}]}}, {"oven"}),
])
def test_which_tool_is_called(server, choice, called):
    for seed in range(3):
        answer = server.post(CHAT, messages=QUESTION, tools=TOOLS, tool_choice=choice, seed=seed)["choices"][0]
        (call,) = answer["message"]["tool_calls"]
        assert call["function"]["name"] in called and answer["finish_reason"] == "tool_calls"
        assert set(json.loads(call["function"]["arguments"])) == {"on"}


def test_a_call_that_is_cut_is_not_content(server):
    for most in (1, 5, 9):
        body = dict(GREEDY, messages=QUESTION, tools=TOOLS, tool_choice="required", max_tokens=most)
        choice = server.post(CHAT, **body)["choices"][0]
        assert choice["finish_reason"] == "length" and not choice["message"]["content"]
        chunks, _ = server.stream(CHAT, **body)
        assert not any(part["delta"].get("content") for chunk in chunks for part in chunk["choices"])


@pytest.mark.parametrize(("path", "body", "param"), [
    (CHAT, {"tool_choice": "required"}, "tool_choice"), (CHAT, {"tool_choice": "required", "tools": []}, "tool_choice"),
    (CHAT, {"tool_choice": {"type": "function", "function": {"name": "lamp"}}}, "tool_choice"),
    (CHAT, {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {
        "mode": "auto", "tools": [{"type": "function", "function": {"name": "door"}}]}}}, "tool_choice"),
    (CHAT, {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "door"}}}, "tools"),
    (CHAT, {"response_format": {"type": "json_object", "schema": 3}}, "response_format.schema"),
    (CHAT, {"response_format": {"type": "json_object", "schema": {"type": "hiccup"}}}, "response_format"),
    (CHAT, {"guided_regex": 3}, "guided_regex"), (CHAT, {"guided_regex": "(?=a)"}, "response_format"),
    (CHAT, {"guided_choice": []}, "guided_choice"), (TEXTS, {"guided_choice": [1]}, "guided_choice"),
    (CHAT, {"grammar": "root ::= a"}, "response_format"), (TEXTS, {"grammar": [1]}, "grammar"),
    (CHAT, {"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag"),
    (CHAT, {"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
    (CHAT, {"grammar": "root ::= [a]", "json_schema": {}}, "grammar"),
    (CHAT, {"max_tokens": 0}, "max_tokens"), (CHAT, {"max_tokens": -2}, "max_tokens"), (CHAT, {"n": 65}, "n"),
    (CHAT, {"best_of": 2}, "best_of"), (TEXTS, {"prompt": ["x"] * 40, "n": 2}, "n"),
    (CHAT, {"continue_final_message": True}, "continue_final_message"),
    (CHAT, {"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    (RESPONSES, {"previous_response_id": "resp_1"}, "previous_response_id"),
    (RESPONSES, {"top_logprobs": 3}, "top_logprobs"),
    (RESPONSES, {"include": ["message.output_text.logprobs"]}, "include"),
    (RESPONSES, {"tools": [{"type": "web_search"}]}, "tools"),
    (RESPONSES, {"input": [{"type": "item_reference"}]}, "input"),
    (RESPONSES, {"tools": [{"type": "function", "name": "lamp"}], "tool_choice": {
        "type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "door"}]}}, "tool_choice"),
])
def test_what_cannot_be_meant_is_refused_by_its_name(server, path, body, param):
    usual = {CHAT: {"messages": QUESTION}, TEXTS: {"prompt": "x"}, RESPONSES: {"input": "x"}}[path]
    status, answer = server.call("POST", path, dict(usual, **body))
    assert (status, answer["error"]["param"]) == (400, param), answer


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_what_is_not_implemented_is_refused_by_its_name(server, name):
    for path, body in ((CHAT, {"messages": QUESTION}), (TEXTS, {"prompt": "x"}), (RESPONSES, {"input": "x"})):
        status, answer = server.call("POST", path, dict(body, **{name: 0.5}))
        assert (status, answer["error"]["param"]) == (400, name)
        for neutral in (None, [], *UNSUPPORTED[name][:1]):
            assert server.call("POST", path, dict(body, max_tokens=1, max_output_tokens=1, **{name: neutral}))[0] == 200
    status, answer = server.call("POST", "/api/chat", {"messages": QUESTION, "options": {name: 0.5}})
    assert status == 400 and answer["error"].startswith(name)


def test_embeddings_are_the_models_in_each_form(server, bundle):
    sentences = ["The mill stands by the river.", "The river runs past the mill.", "Sacks of flour. " * 60]
    with open_model(str(bundle)) as model:
        expected = [model.embed(text) for text in sentences]
        ids = model.tokenizer.encode(sentences[0])
    answer = server.post("/v1/embeddings", input=sentences)
    check("/v1/embeddings", answer)
    found = [entry["embedding"] for entry in answer["data"]]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert answer["usage"]["prompt_tokens"] > 300
    packed = server.post("/embeddings", input=ids, encoding_format="base64", dimensions=64)["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), np.array(found[0], np.float32))
    answer = server.post("/api/embed", input=sentences[:2])
    check("/api/embed", answer)
    np.testing.assert_array_equal(answer["embeddings"], found[:2])
    assert len(server.post("/api/embed", input="flour " * 2000)["embeddings"]) == 1
    for body, expected in (({"input": "x", "dimensions": 3}, "dimensions"), ({"input": []}, "input"), ({}, "input"),
                           ({"input": "flour " * 2000}, "the context of this model is 1024"),
                           ({"input": [""]}, "input"),
                           ({"input": "x", "max_seconds": 0}, "the request's time is over")):
        status, answer = server.call("POST", "/v1/embeddings", body)
        assert status in (400, 503) and expected in str(answer["error"])


def test_embeddings_leave_the_chats_their_slots(server):
    chats = [[{"role": "user", "content": f"Chat {number}: how many sacks does the miller count?"}]
             for number in range(3)]
    for messages in chats:
        server.post(CHAT, messages=messages, max_tokens=2)
    server.post("/v1/embeddings", input=["The mill", "The river"] * 6)
    cached = [server.post(CHAT, messages=messages, max_tokens=2)["usage"]["prompt_tokens_details"]["cached_tokens"]
              for messages in chats]
    assert all(cached)


def test_a_model_without_embeddings_refuses_them_by_name(decoder, tmp_path):
    with Server(make_bundle(tmp_path / "chat", decoder, dialect="fused"), options=["--set", "cache_mb=0"]) as plain:
        for path in ("/v1/embeddings", "/api/embed"):
            status, answer = plain.call("POST", path, {"input": "y"})
            assert status == 400 and "makes no embeddings" in str(answer["error"])


def test_json_in_each_of_its_forms(server):
    strict = {"type": "json_schema", "json_schema": {"schema": ON}}
    for path, body, form in (
            (CHAT, {"messages": QUESTION}, {"response_format": {"type": "json_object", "schema": ON}}),
            (CHAT, {"messages": QUESTION}, {"json_schema": ON}), (CHAT, {"messages": QUESTION}, {"guided_json": ON}),
            (TEXTS, {"prompt": "The lamp:"}, {"response_format": strict}),
            (RESPONSES, {"input": "The lamp?"}, {"text": {"format": {"type": "json_schema", "schema": ON}}})):
        answer = server.post(path, max_tokens=300, max_output_tokens=300, **body, **form)
        text = answer["output"][0]["content"][0]["text"] if path == RESPONSES else \
            answer["choices"][0].get("text") or texts(answer)[0]
        assert set(json.loads(text)) == {"on"}


def test_a_pattern_a_grammar_and_a_choice_in_each_field(server):
    names = "Ann|Bob"
    rule = 'root ::= "Ann" | "Bob"'
    for form in ({"guided_regex": names}, {"guided_choice": ["Ann", "Bob"]}, {"grammar": rule},
                 {"guided_grammar": rule},
                 {"structured_outputs": {"regex": names}}, {"structured_outputs": {"choice": ["Ann", "Bob"]}},
                 {"structured_outputs": {"grammar": rule, "disable_any_whitespace": True}},
                 {"grammar": rule, "response_format": {"type": "json_object"}, "guided_regex": ""}):
        answer = server.post(CHAT, messages=QUESTION, max_tokens=30, **form)
        assert texts(answer)[0] in names.split("|") and answer["choices"][0]["finish_reason"] == "stop"
        assert server.post(TEXTS, prompt="The mill", max_tokens=30, **form)["choices"][0]["text"] in names.split("|")
        status, answer = server.call("POST", "/api/chat", {"messages": QUESTION, "stream": False, "options": form})
        assert status == 200 and answer["message"]["content"] in names.split("|")
    called = server.post(CHAT, messages=QUESTION, tools=TOOLS, guided_regex=names, max_tokens=90)["choices"][0]
    assert called["finish_reason"] in ("stop", "tool_calls")


def test_as_many_tokens_as_fit_and_log_probabilities_of_the_token_alone(server):
    used = server.post(CHAT, messages=QUESTION, max_tokens=-1, ignore_eos=True)["usage"]
    assert used["total_tokens"] == 1024
    logprobs = server.post(TEXTS, prompt="The mill", logprobs=0, max_tokens=3)["choices"][0]["logprobs"]
    pairs = zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)
    assert logprobs["top_logprobs"] == [{token: logprob} for token, logprob in pairs]


def test_an_answer_is_continued(server):
    whole = server.post(CHAT, messages=QUESTION, ignore_eos=True, logprobs=True, **GREEDY)
    begun = [*QUESTION, {"role": "assistant", "content": "There are"}]
    answer = server.post(CHAT, messages=begun, continue_final_message=True, add_generation_prompt=False, **GREEDY)
    assert answer["usage"]["prompt_tokens"] > whole["usage"]["prompt_tokens"]
    again = server.post(CHAT, messages=begun, **GREEDY)  # an answer, and another one
    assert again["usage"]["prompt_tokens"] > answer["usage"]["prompt_tokens"]


def test_roles_of_a_template_of_its_own(server):
    messages = [{"role": "narrator", "content": "A mill at night."}, *QUESTION]
    other = server.post(CHAT, messages=[dict(messages[0], role="user"), *QUESTION], **GREEDY)
    assert server.post(CHAT, messages=messages, **GREEDY)["usage"]["prompt_tokens"] != other["usage"]["prompt_tokens"]


def events_of(server, **body):
    connection, response = server.open("POST", RESPONSES, dict(body, stream=True))
    text = response.read().decode("utf-8")
    connection.close()
    assert response.status == 200, text
    events = [part.split("\n") for part in text.split("\n\n") if part.startswith("event: ")]
    values = [json.loads(data[len("data: "):]) for _, data in events]
    assert [name[len("event: "):] for name, _ in events] == [value["type"] for value in values]
    assert [value["sequence_number"] for value in values] == list(range(len(values)))
    return values


def test_a_response_and_its_events_say_the_same(server):
    body = {"input": "How many sacks?", "instructions": "You count.", "temperature": 0, "max_output_tokens": 9,
            "ignore_eos": True}
    whole = server.post(RESPONSES, **body)
    (item,) = whole["output"]
    assert (whole["status"], whole["incomplete_details"]["reason"]) == ("incomplete", "max_output_tokens")
    assert whole["usage"]["output_tokens"] == 9 and item["role"] == "assistant"
    chat = server.post(CHAT, messages=[{"role": "system", "content": "You count."}, *QUESTION], temperature=0,
                       max_tokens=9, ignore_eos=True)
    assert item["content"][0]["text"] == texts(chat)[0]
    events = events_of(server, **body)
    kinds = [event["type"].partition(".")[2] for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert "".join(event.get("delta", "") for event in events) == item["content"][0]["text"]
    assert events[-1]["response"]["output"][0]["content"] == item["content"]


def test_a_response_calls_tools_and_reads_their_results(server):
    flat = [dict(part["function"], type="function") for part in TOOLS]
    body = {"input": "Lamp on.", "tools": flat, "tool_choice": {"type": "function", "name": "lamp"}, "temperature": 0}
    whole = server.post(RESPONSES, **body)
    (call,) = whole["output"]
    assert (whole["status"], call["type"], call["name"]) == ("completed", "function_call", "lamp")
    events = events_of(server, **body)
    assert [event["arguments"] for event in events if event["type"].endswith("arguments.done")] == [call["arguments"]]
    talk = [{"role": "user", "content": [{"type": "input_text", "text": "Lamp on."}]},
            {"type": "reasoning", "summary": []}, call,
            {"type": "function_call_output", "call_id": call["call_id"], "output": "done"}]
    answer = server.post(RESPONSES, input=talk, tools=flat, tool_choice="none", max_output_tokens=5)
    same = server.post(CHAT, max_tokens=5, messages=[
        {"role": "user", "content": "Lamp on."},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {
            "name": "lamp", "arguments": call["arguments"]}}]},
        {"role": "tool", "content": "done"}])
    assert answer["usage"]["input_tokens"] == same["usage"]["prompt_tokens"]


with open(os.path.join(ROOT, "docs", "reference", "openapi.json"), encoding="utf-8") as opened:
    DOCUMENT = json.load(opened)
SCHEMAS = DOCUMENT["components"]["schemas"]
REQUEST = {"messages": [{"role": "user", "content": "The miller counts"}], "max_tokens": 4}


def validator_of(schema):
    return jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def check(path, value, method="post", kind="application/json", status="200"):
    validator_of(DOCUMENT["paths"][path][method]["responses"][status]["content"][kind]["schema"]).validate(value)


def test_the_paths_are_the_applications():
    routes = {path: {method.lower() for method in methods} for path, methods in
              Application({}, Settings(), page=page())._routes.items()}
    assert {path: set(each) for path, each in DOCUMENT["paths"].items()} == routes


def names_read(module):
    """The fields that a module reads of a body, by the calls of `fields` and `body`."""
    with open(os.path.join(ROOT, "runtime", "merino_runtime", "serving", module), encoding="utf-8") as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            place = 1 if owner == "fields" else 0
            if owner in ("fields", "body") and len(node.args) > place and isinstance(node.args[place], ast.Constant):
                yield node.args[place].value


def names_documented(schema):
    """Of objects inside of it too."""
    result = set(schema.get("properties", {}))
    inner = list(schema.values())
    return result.union(*(names_documented(each) for each in inner if isinstance(each, dict)),
                       *(names_documented(each) for part in inner if isinstance(part, list)
                         for each in part if isinstance(each, dict)))


@pytest.mark.parametrize(("module", "requests"), [
    ("openai_requests.py", ["ChatRequest", "CompletionsRequest", "EmbeddingsRequest", "OllamaEmbedRequest"]),
    ("responses_api.py", ["ResponsesRequest", "ChatRequest"]),
    ("ollama.py", ["OllamaChatRequest", "OllamaGenerateRequest"]),
])
def test_each_field_that_is_read_is_documented(module, requests):
    read = set(names_read(module))
    assert read and read <= set().union(*(names_documented(SCHEMAS[each]) for each in requests))


@pytest.mark.parametrize(("path", "request_name", "body"), [
    (CHAT, "ChatRequest", REQUEST), (TEXTS, "CompletionsRequest", {"prompt": "The mill"}),
    ("/api/chat", "OllamaChatRequest", REQUEST),
])
def test_each_bound_is_the_servers(server, path, request_name, body):
    """One beyond a bound is refused by the field's name, and the schema refuses it too."""
    result = SCHEMAS[request_name]["properties"]
    steps = (("minimum", -1), ("maximum", 1))
    bounded = [(name, *each) for name, schema in result.items() for each in steps if each[0] in schema]
    assert bounded
    for name, bound, step in bounded:
        beyond = result[name][bound] + step
        if abs(beyond) > 2 ** 62:
            continue  # JSON's numbers are not exact there
        wrong = dict(body, **{name: beyond})
        status, answer = server.call("POST", path, wrong)
        assert status == 400 and name in str(answer["error"]), (name, beyond, answer)
        check(path, answer, status="default")
        assert not validator_of(SCHEMAS[request_name]).is_valid(wrong), (name, beyond)


def test_answers_are_as_documented(server):
    check(CHAT, server.post(CHAT, **REQUEST))
    check(CHAT, server.post(CHAT, logprobs=True, top_logprobs=2, **REQUEST))
    chunks, _ = server.stream(CHAT, stream_options={"include_usage": True}, timings_per_token=True, **REQUEST)
    for chunk in chunks:
        check(CHAT, chunk, kind="text/event-stream")
    name = server.call("GET", "/v1/models")[1]["data"][0]["id"]
    check("/v1/models/{id}", server.call("GET", "/v1/models/" + name)[1], "get")
    check("/v1/responses", server.post("/v1/responses", input="The mill", max_output_tokens=3))
    check(TEXTS, server.post(TEXTS, prompt="The mill", echo=True, logprobs=2, max_tokens=2))
    for path in ("/health", "/v1/models", "/v1/stats", "/api/tags", "/api/ps", "/api/version"):
        status, value = server.call("GET", path)
        assert status == 200
        check(path, value, "get")
    for path in ("/api/show", "/api/pull"):
        check(path, server.post(path, model=name))
    check("/api/chat", server.post("/api/chat", model=name, stream=False, messages=REQUEST["messages"],
                                   options={"num_predict": 3}))
    check("/api/generate", server.post("/api/generate", model=name, stream=False, prompt="Flour",
                                       options={"num_predict": 3}))


def test_a_tools_call_is_as_documented(server):
    grind = tool("grind", sacks={"enum": [1, 2]})
    requested = {"messages": REQUEST["messages"], "tools": [grind], "tool_choice": "required"}
    validator_of(SCHEMAS["ChatRequest"]).validate(requested)
    whole = server.post(CHAT, **requested)
    assert whole["choices"][0]["message"]["tool_calls"]
    check(CHAT, whole)
    check("/api/chat", server.post("/api/chat", stream=False, messages=REQUEST["messages"], tools=[grind]))


HOSTILE = {"type": "string", "pattern": "^((.?){1000}){1000}x$"}
# Without the bound of the work, so that the time alone ends a step.
TIME_ALONE = """
from merino_runtime.generation.constraints import automaton, tokens
automaton.MOST_NODES = automaton.MOST_WORK = 10 ** 12
tokens.STEP_S = 1.5
from merino_runtime.serving import scheduler
scheduler.STALLED_S = 0.3
"""


def asked(server, schema, **more):
    body = dict(messages=[{"role": "user", "content": "x"}], temperature=0, max_tokens=40, **more)
    body["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return server.call("POST", CHAT, body)


@pytest.mark.slow
def test_a_schema_that_is_too_large_ends_its_request_alone(bundle):
    with Server(bundle) as server:
        before = server.rss_kb()
        status, answer = asked(server, HOSTILE)
        assert status == 500 and re.search("the constraint is too large|takes too long", answer["error"]["message"])
        assert server.rss_kb() < before + 250000
        status, answer = asked(server, {"type": "boolean"})
        assert status == 200 and answer["choices"][0]["message"]["content"] in ("true", "false")


@pytest.mark.slow
def test_a_long_step_keeps_the_requests_time_and_health_reports_it(bundle):
    with Server(bundle, before=TIME_ALONE) as server:
        status, answer = asked(server, HOSTILE, max_seconds=0.5)
        assert status == 200 and answer["stop_reason"] == "time"
        results = []
        running = threading.Thread(target=lambda: results.append(asked(server, HOSTILE)))
        running.start()
        seen = set()
        while running.is_alive():
            seen.add(server.call("GET", "/health")[0])
            time.sleep(0.05)
        running.join()
        assert 503 in seen and results[0][0] == 500 and "takes too long" in results[0][1]["error"]["message"]
        assert server.call("GET", "/health") == (200, {"status": "ok"})
