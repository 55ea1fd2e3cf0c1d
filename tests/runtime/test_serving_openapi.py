"""docs/reference/openapi.json is the server's: its paths, the fields that it reads, their bounds, and its answers."""
import ast
import json
import os
import re

import pytest

pytest.importorskip("uvicorn")
jsonschema = pytest.importorskip("jsonschema")

from served import ROOT, Server  # noqa: E402

from merino_runtime.serving.application import Application, Settings  # noqa: E402
from merino_runtime.serving.http import page  # noqa: E402

FILE = os.path.join(ROOT, "docs", "reference", "openapi.json")
if not os.path.exists(FILE):
    pytest.skip("the documents are not on this machine", allow_module_level=True)
with open(FILE, encoding="utf-8") as opened:
    DOCUMENT = json.load(opened)
SCHEMAS = DOCUMENT["components"]["schemas"]
CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
REQUEST = {"messages": [{"role": "user", "content": "The miller counts"}], "max_tokens": 4}


def validator_of(schema):
    return jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def check(path, value, method="post", kind="application/json", status="200"):
    validator_of(DOCUMENT["paths"][path][method]["responses"][status]["content"][kind]["schema"]).validate(value)


@pytest.fixture(scope="module")
def server(chat_dir, tmp_path_factory):
    with Server(chat_dir, XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache"))) as running:
        yield running


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
    ("openai_requests.py", ["ChatRequest", "CompletionsRequest"]),
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


def test_a_tools_call_is_as_documented(tmp_path_factory, request):
    pytest.importorskip("torch")
    from chat_bundle import make_bundle

    folder = make_bundle(tmp_path_factory.mktemp("bundle") / "chat", request.getfixturevalue("decoder"), context=1024)
    tool = {"type": "function", "function": {"name": "grind", "parameters": {
        "type": "object", "properties": {"sacks": {"enum": [1, 2]}}, "required": ["sacks"]}}}
    with Server(folder, options=["--cache-mb", 0]) as running:
        requested = {"messages": REQUEST["messages"], "tools": [tool], "tool_choice": "required"}
        validator_of(SCHEMAS["ChatRequest"]).validate(requested)
        whole = running.post(CHAT, **requested)
        assert whole["choices"][0]["message"]["tool_calls"]
        check(CHAT, whole)
        called = running.post("/api/chat", stream=False, messages=REQUEST["messages"], tools=[tool])
        check("/api/chat", called)


def test_the_page_names_each_path():
    with open(os.path.join(ROOT, "docs", "server-api.md"), encoding="utf-8") as file:
        text = file.read()
    named = set(re.findall(r"`(?:GET |POST )?(/[\w/{}]*)`", text))
    assert {path for path in DOCUMENT["paths"] if path not in ("/v1/health", "/api/pull")} <= named
