"""The official clients, unmodified, against a server on loopback."""

import json
import shutil
import subprocess

import pytest

pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

from chat_bundle import make_bundle  # noqa: E402
from served import Server  # noqa: E402

pytestmark = pytest.mark.slow
TALK = [{"role": "system", "content": "You count sacks."}, {"role": "user", "content": "How many are there?"}]
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
    with openai.OpenAI(base_url=server.url + "/v1", api_key="dummy", max_retries=0) as found:
        yield found


def test_the_openai_client(client):
    (model,) = client.models.list().data
    answer = client.chat.completions.create(model=model.id, messages=TALK, max_completion_tokens=8, temperature=0)
    assert answer.choices[0].message.content and answer.usage.completion_tokens <= 8
    chunks = list(client.chat.completions.create(
        model=model.id, messages=TALK, max_tokens=8, temperature=0, stream=True,
        stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage.prompt_tokens_details.cached_tokens > 0
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == \
        answer.choices[0].message.content
    scored = client.completions.create(model=model.id, prompt=[[40, 41, 42]], echo=True, logprobs=1, max_tokens=1)
    assert len(scored.choices[0].logprobs.token_logprobs) == 4
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9'"):
        client.chat.completions.create(model="gpt-9", messages=TALK)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model.id, messages=[])
    assert caught.value.param == "messages"
    with client.chat.completions.create(model=model.id, messages=TALK, stream=True) as left:
        next(iter(left))


def test_the_calls_of_home_assistant(client):
    """As its integration for OpenAI-compatible servers makes them: set-up, then a talk with tools in a stream."""
    model = client.with_options(timeout=10.0).models.list().data[0].id
    empty = {"type": "function", "function": {"name": "probe", "parameters": {"type": "object", "properties": {}}}}
    setup = {"model": model, "messages": TALK, "tools": [empty], "max_tokens": 3}
    assert client.chat.completions.create(**setup).choices
    assert list(client.chat.completions.create(**setup, stream=True))
    talk = [*TALK, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "grey"}'}]
    chunks = list(client.chat.completions.create(
        model=model, messages=talk, tools=[WEATHER], max_tokens=3000, temperature=1.0, top_p=1.0, user="kitchen",
        stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason in ("stop", "length", "tool_calls")
    assert all(call.index is not None for chunk in chunks if chunk.choices
               for call in chunk.choices[0].delta.tool_calls or ())


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
    assert model.digest and client.show(model.model).modelinfo and client.ps().models[0].context_length == 2048
    usual = {"model": f"{model.model}:latest", "options": {"num_predict": 6, "temperature": 0, "num_ctx": 8192},
             "keep_alive": -1}
    whole = client.chat(messages=TALK, **usual)
    assert whole.done and whole.eval_count <= 6 and whole.prompt_eval_count > 0
    parts = list(client.chat(messages=TALK, stream=True, **usual))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert [part.done for part in parts[-2:]] == [False, True]
    call = {"function": {"name": "weather", "arguments": {"city": "Ulm"}}}
    again = [*TALK, {"role": "assistant", "tool_calls": [call]},
             {"role": "tool", "content": "grey", "tool_name": "weather"}]
    assert client.chat(messages=again, tools=[WEATHER], **usual).done
    options = {"temperature": 0, "num_predict": 60}
    assert set(json.loads(client.chat(model=model.model, messages=TALK, format=LAMP, options=options).message.content))
    assert client.generate(prompt="The mill", raw=True, **usual).response
    assert client.generate(prompt="How many?", system="You count.", think=False, **usual).done
    assert client.generate(model=model.model).done_reason == "load"
    with pytest.raises(pytest.importorskip("ollama").ResponseError, match="no model"):
        client.chat(model="llama9", messages=TALK)


def test_prometheus_reads_the_metrics_and_people_the_stats(server):
    parse = pytest.importorskip("prometheus_client.parser").text_string_to_metric_families
    server.post("/v1/chat/completions", messages=TALK, max_tokens=4, temperature=0, ignore_eos=True)
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


NODE = """
import OpenAI from "openai";
const client = new OpenAI({baseURL: process.argv[2] + "/v1", apiKey: "dummy", maxRetries: 0});
const model = (await client.models.list()).data[0].id;
const usual = {model, messages: [{role: "user", content: "How many?"}], max_tokens: 8, temperature: 0};
const whole = await client.chat.completions.create(usual);
let text = "", usage = null;
const asked = {...usual, stream: true, stream_options: {include_usage: true}};
for await (const chunk of await client.chat.completions.create(asked)) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
let refused = 0;
try { await client.chat.completions.create({...usual, messages: []}); } catch (error) { refused = error.status; }
const same = text !== "" && text === whole.choices[0].message.content;
console.log(JSON.stringify({same, tokens: usage.completion_tokens <= 8, refused}));
"""


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("npm") is None, reason="no node here")
def test_the_openai_client_of_node(server, tmp_path):
    (tmp_path / "client.mjs").write_text(NODE)
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "openai"], cwd=tmp_path, check=True,
                   timeout=300)  # fmt: skip
    said = subprocess.run(["node", "client.mjs", server.url], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert json.loads(said.stdout) == {"same": True, "tokens": True, "refused": 400}
