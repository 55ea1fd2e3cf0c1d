"""The official clients, unmodified, against a server on loopback."""

import pytest

pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

from chat_bundle import make_bundle  # noqa: E402
from served import Server  # noqa: E402

TALK = [{"role": "system", "content": "You count sacks."}, {"role": "user", "content": "How many are there?"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}


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
