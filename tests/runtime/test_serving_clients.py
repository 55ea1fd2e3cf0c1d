"""The official clients, unmodified, against a server on loopback."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

from chat_bundle import make_bundle  # noqa: E402
from processes import fetched  # noqa: E402
from served import Server  # noqa: E402

pytestmark = pytest.mark.slow
PAGE = Path(__file__).resolve().parents[2] / "docs" / "programs.md"
MESSAGES = [{"role": "system", "content": "You count sacks."}, {"role": "user", "content": "How many are there?"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}

LAMP = {"title": "lamp", "type": "object", "properties": {"lamp": {"enum": ["on", "off"]}}, "required": ["lamp"],
        "additionalProperties": False}  # fmt: skip


@pytest.fixture(scope="module")
def server(decoder, tmp_path_factory):
    folder = make_bundle(tmp_path_factory.mktemp("bundle") / "chat", decoder, context=2048)
    with Server(folder, XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache"))) as running:
        yield running


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="dummy", max_retries=0) as result:
        yield result


def test_the_openai_client(client):
    (model,) = client.models.list().data
    answer = client.chat.completions.create(model=model.id, messages=MESSAGES, max_completion_tokens=8, temperature=0)
    assert answer.choices[0].message.content and answer.usage.completion_tokens <= 8
    chunks = list(client.chat.completions.create(
        model=model.id, messages=MESSAGES, max_tokens=8, temperature=0, stream=True,
        stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage.prompt_tokens_details.cached_tokens > 0
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == \
        answer.choices[0].message.content
    scored = client.completions.create(model=model.id, prompt=[[40, 41, 42]], echo=True, logprobs=1, max_tokens=1)
    assert len(scored.choices[0].logprobs.token_logprobs) == 4
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9'"):
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model.id, messages=[])
    assert caught.value.param == "messages"
    with client.chat.completions.create(model=model.id, messages=MESSAGES, stream=True) as left:
        next(iter(left))


def test_the_openai_clients_responses(client):
    model = client.models.list().data[0].id
    assert client.models.retrieve(model).id == model
    usual = {"model": model, "input": "How many sacks?", "temperature": 0, "max_output_tokens": 8}
    whole = client.responses.create(instructions="You count.", **usual)
    assert whole.output_text and whole.usage.output_tokens <= 8
    with client.responses.stream(instructions="You count.", **usual) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == whole.output_text
    form = {"format": {"type": "json_schema", "name": "lamp", "schema": LAMP, "strict": True}}
    structured = client.responses.create(text=form, **dict(usual, max_output_tokens=60))
    assert set(json.loads(structured.output_text)) == {"lamp"}
    with client.responses.stream(text=form, **dict(usual, max_output_tokens=60)) as stream:
        assert stream.get_final_response().output_text == structured.output_text
    tool = dict(WEATHER["function"], type="function", strict=False)
    called = client.responses.create(tools=[tool], tool_choice="required", **dict(usual, max_output_tokens=-1))
    (call,) = called.output
    assert (call.type, call.name) == ("function_call", "weather") and set(json.loads(call.arguments)) <= {"city"}
    talk = [{"role": "user", "content": "In Ulm?"}, *called.output,
            {"type": "function_call_output", "call_id": call.call_id, "output": "gray"}]
    assert client.responses.create(**dict(usual, input=talk, tools=[tool], tool_choice="none")).output_text
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(previous_response_id=whole.id, **usual)
    assert caught.value.param == "previous_response_id"
    two = client.chat.completions.create(model=model, messages=MESSAGES, n=2, max_tokens=4)
    assert [choice.index for choice in two.choices] == [0, 1]


def test_the_calls_of_home_assistant(client):
    """As its integration for OpenAI-compatible servers makes them: set-up, then a talk with tools in a stream."""
    model = client.with_options(timeout=10.0).models.list().data[0].id
    empty = {"type": "function", "function": {"name": "probe", "parameters": {"type": "object", "properties": {}}}}
    setup = {"model": model, "messages": MESSAGES, "tools": [empty], "max_tokens": 3}
    assert client.chat.completions.create(**setup).choices
    assert list(client.chat.completions.create(**setup, stream=True))
    dialogue = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "gray"}'}]
    chunks = list(client.chat.completions.create(
        model=model, messages=dialogue, tools=[WEATHER], max_tokens=3000, temperature=1.0, top_p=1.0, user="kitchen",
        stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason in ("stop", "length", "tool_calls")
    assert all(call.index is not None for chunk in chunks if chunk.choices
               for call in chunk.choices[0].delta.tool_calls or ())


TASK = "### Task:\nGenerate {}.\n### Chat History:\n<chat_history>\nUSER: {}\nASSISTANT: {}\n</chat_history>"


def test_the_calls_of_open_webui_leave_the_conversation_in_its_slot(server, client):
    """A stream, then a title, tags and follow-ups, none of which is one; then the next turn."""
    model = client.models.list().data[0].id
    conversation = [{"role": "user", "content": "What does the miller do in the evening, and who buys his flour? " * 4}]
    usual = {"model": model, "temperature": 0}
    parts = list(client.chat.completions.create(messages=conversation, stream=True, max_tokens=20, **usual,
                                                stream_options={"include_usage": True}))
    answer = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    for expected in ("a concise title with an emoji", "1-3 broad tags", "3-5 relevant follow-up questions"):
        task = [{"role": "user", "content": TASK.format(expected, conversation[0]["content"], answer)}]
        assert client.chat.completions.create(messages=task, stream=False, max_completion_tokens=30, **usual).choices
    conversation += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And in the morning?"}]
    parts = list(client.chat.completions.create(messages=conversation, stream=True, max_tokens=5, **usual,
                                                stream_options={"include_usage": True}))
    first = server.post("/v1/chat/completions", messages=conversation[:1], max_tokens=1)["usage"]["prompt_tokens"]
    assert parts[-1].usage.prompt_tokens_details.cached_tokens >= first > 60


def programs(title, language):
    """The programs of a section of the page of clients, each whole."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    result = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert result
    return result


def run_on(server, text, *command, cwd=None):
    """What a program prints, which ends without an error."""
    assert "http://127.0.0.1:8080" in text
    done = subprocess.run([*command, text.replace("http://127.0.0.1:8080", server.url)], cwd=cwd, timeout=120,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("title, needs", [("openai in Python", "openai"), ("LangChain", "langchain_openai")])
def test_the_programs_of_the_page_run(server, title, needs):
    pytest.importorskip(needs)
    printed = [run_on(server, text, sys.executable, "-c") for text in programs(title, "python")]
    assert all(len(text) > 5 for text in printed) and "set_light" in printed[1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_commands_of_the_page_for_curl_run(server):
    strict = 'set -eu; curl() { command curl --fail "$@"; echo; }\n'
    printed = "".join(run_on(server, strict + text, "bash", "-c") for text in programs("curl", "bash"))
    needed = ("chat.completion", "data: [DONE]", "text_completion", "num_requests_running", "brightness", "eval_count")
    assert [each for each in needed if each not in printed] == []


def test_langchain(server):
    chat = pytest.importorskip("langchain_openai").ChatOpenAI(
        base_url=server.url + "/v1", api_key="dummy", model=server.call("GET", "/v1/models")[1]["data"][0]["id"],
        max_completion_tokens=6, temperature=0)
    answer = chat.invoke([("system", "You count sacks."), ("human", "How many?")])
    assert answer.content and answer.usage_metadata["output_tokens"] <= 6
    assert "".join(chunk.content for chunk in chat.stream("How many?"))
    chat.max_tokens, chat.temperature = 60, 1.0
    structured = chat.with_structured_output(LAMP, method="json_schema", strict=True)
    assert set(structured.invoke("The lamp?")) == {"lamp"}
    (call,) = chat.bind_tools([WEATHER], tool_choice="weather").invoke("In Ulm?").tool_calls
    assert call["name"] == "weather" and set(call["args"]) <= {"city"}


def test_the_ollama_client(server):
    client = pytest.importorskip("ollama").Client(host=server.url)
    (model,) = client.list().models
    shown = client.show(model.model)
    assert shown.modelinfo and shown.capabilities == ["completion", "tools"]
    assert model.digest and client.ps().models[0].context_length == 2048
    usual = {"model": f"{model.model}:latest", "options": {"num_predict": 6, "temperature": 0, "num_ctx": 8192},
             "keep_alive": -1}
    whole = client.chat(messages=MESSAGES, **usual)
    assert whole.done and whole.eval_count <= 6 and whole.prompt_eval_count > 0
    parts = list(client.chat(messages=MESSAGES, stream=True, **usual))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert [part.done for part in parts[-2:]] == [False, True]
    call = {"function": {"name": "weather", "arguments": {"city": "Ulm"}}}
    again = [*MESSAGES, {"role": "assistant", "tool_calls": [call]},
             {"role": "tool", "content": "gray", "tool_name": "weather"}]
    assert client.chat(messages=again, tools=[WEATHER], **usual).done
    options = {"temperature": 0, "num_predict": 60}
    answer = client.chat(model=model.model, messages=MESSAGES, format=LAMP, options=options)
    assert set(json.loads(answer.message.content))
    assert client.generate(prompt="The mill", raw=True, **usual).response
    assert client.generate(prompt="How many?", system="You count.", think=False, **usual).done
    assert client.generate(model=model.model).done_reason == "load"
    with pytest.raises(pytest.importorskip("ollama").ResponseError, match="no model"):
        client.chat(model="llama9", messages=MESSAGES)
    with pytest.raises(pytest.importorskip("ollama").ResponseError, match="makes no embeddings"):
        client.embed(model=model.model, input="x")


def test_prometheus_reads_the_metrics_and_people_the_stats(server):
    parse = pytest.importorskip("prometheus_client.parser").text_string_to_metric_families
    server.post("/v1/chat/completions", messages=MESSAGES, max_tokens=4, temperature=0, ignore_eos=True)
    connection, response = server.open("GET", "/metrics")
    families = {family.name: family for family in parse(response.read().decode())}
    connection.close()
    for name in ("prompt_tokens", "prompt_seconds", "tokens_predicted", "tokens_predicted_seconds"):
        (sample,) = families[f"llamacpp:{name}"].samples
        assert sample.name.endswith("_total") and sample.value > 0
    assert families["llamacpp:requests_processing"].samples[0].value == 0
    for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency"):
        family = families[f"vllm:{name}_seconds"]
        values = {sample.name.rpartition("_")[2]: sample.value for sample in family.samples}  # the last bucket is +Inf
        assert family.type == "histogram" and values["bucket"] == values["count"] > 0 and values["sum"] > 0
    stats = server.call("GET", "/v1/stats")[1]
    assert stats["decode_tok_s"] > 0 and stats["models"][0]["slots"][0]["tokens"] > 0


LITELLM = """
import json, sys, litellm
usual = {"model": "openai/" + sys.argv[1], "api_base": sys.argv[2] + "/v1", "api_key": "dummy", "num_retries": 0}
messages, lamp, weather = json.loads(sys.argv[3])
whole = litellm.completion(messages=messages, max_tokens=8, temperature=0, **usual).choices[0].message.content
chunks = litellm.completion(messages=messages, max_tokens=8, temperature=0, stream=True, **usual)
assert whole and "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
form = {"type": "json_schema", "json_schema": {"name": "lamp", "schema": lamp, "strict": True}}
answer = litellm.completion(messages=messages, response_format=form, max_tokens=60, **usual)
assert set(json.loads(answer.choices[0].message.content)) == {"lamp"}
called = litellm.completion(messages=messages, tools=[weather], tool_choice="required", **usual)
assert called.choices[0].message.tool_calls[0].function.name == "weather"
assert litellm.text_completion(prompt="The mill", max_tokens=3, **usual).choices[0].text
assert litellm.responses(input="How many?", max_output_tokens=8, temperature=0, **usual).output[0].content[0].text
"""


@pytest.mark.nightly
def test_litellm(server):
    install = [sys.executable, "-m", "pip", "install", "--quiet", "litellm==1.110.2", "--target"]
    environment = dict(os.environ, PYTHONPATH=fetched("litellm", *install), LITELLM_LOCAL_MODEL_COST_MAP="True")
    model = server.call("GET", "/v1/models")[1]["data"][0]["id"]
    words = [sys.executable, "-c", LITELLM, model, server.url, json.dumps([MESSAGES, LAMP, WEATHER])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("npm") is None, reason="no node here")
def test_the_program_of_the_page_for_node_runs(server, tmp_path):
    (program,) = programs("openai in JavaScript", "js")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "openai"]
    subprocess.run(install, cwd=tmp_path, check=True, timeout=300)
    refused = """
try { await client.chat.completions.create({model, messages: []}); } catch (error) { console.log(error.status); }"""
    printed = run_on(server, program + refused, "node", "--input-type=module", "-e", cwd=tmp_path)
    assert re.search(r"\n\d+ tokens\n400\n$", printed), printed
