"""LoRA adapters in the server: a request names one like a model, and requests together get what each gets alone."""
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("peft")  # of the workstation, which makes the bundle

from chat_bundle import make_bundle  # noqa: E402
from served import Server  # noqa: E402

from merino_runtime.api import open_model  # noqa: E402
from merino_runtime.sampling import GREEDY  # noqa: E402

TEXTS = "/v1/completions"
PROMPT = "The river runs past the old mill, and the miller counts the sacks of flour. " * 4


@pytest.fixture(scope="module")
def folder(decoder, tmp_path_factory):
    made = tmp_path_factory.mktemp("adapters")
    return make_bundle(made / "base", decoder, dialect="fused", context=512, adapters=(made / "one", made / "two"))


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    kept = tmp_path_factory.mktemp("kept")
    with Server(folder, options=[f"--set=cache_dir={kept}"]) as running:
        yield running


def named(server):
    return [entry["id"] for entry in server.call("GET", "/v1/models")[1]["data"]]


def greedy(server, model, prompt=PROMPT, **more):
    body = {"temperature": 0, "max_tokens": 24, "ignore_eos": True, "logprobs": 0, **more}
    return server.post(TEXTS, model=model, prompt=prompt, **body)


def logprobs(answer):
    """A cached prefix changes their last digits: it was computed in other chunks."""
    return pytest.approx(answer["choices"][0]["logprobs"]["token_logprobs"][1:], rel=1e-3, abs=1e-5)


def same(answers, others):
    return all(one["choices"][0]["text"] == other["choices"][0]["text"] and
               logprobs(one) == other["choices"][0]["logprobs"]["token_logprobs"][1:]
               for one, other in zip(answers, others))  # noqa: B905, not in 3.6


def test_an_adapter_is_a_model_of_the_list(server):
    base, *others = server.call("GET", "/v1/models")[1]["data"]
    assert [entry["id"] for entry in others] == ["one", "two"] and base["parent"] is None
    assert all(entry["parent"] == base["id"] for entry in others)
    assert server.call("GET", "/v1/models/two") == (200, others[1])
    assert [entry["name"] for entry in server.call("GET", "/api/tags")[1]["models"]] == named(server)
    status, answer = server.call("POST", TEXTS, {"model": "three", "prompt": "a"})
    assert status == 404 and "one, two" in answer["error"]["message"]
    status, answer = server.call("POST", TEXTS, {"model": "one", "prompt": "a", "lora": [{"id": 0, "scale": 1.0}]})
    assert status == 400 and answer["error"]["param"] == "lora"


def test_requests_together_get_what_each_gets_alone(server, folder):
    """As the Python API answers; no prefix of one adapter is another's, and each keeps its own."""
    names = named(server)
    with open_model(str(folder)) as model:
        expected = []
        for name in (None, *names[1:]):
            options = {"max_new_tokens": 24, "sampling": GREEDY, "ignore_eos": True, "adapter": name}
            *events, _ = model.generate(PROMPT, **options)
            expected.append("".join(event.text for event in events))
    alone = [greedy(server, name) for name in names]
    assert [answer["choices"][0]["text"] for answer in alone] == expected and len(set(expected)) == 3
    assert [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in alone] == [0, 0, 0]
    assert [answer["model"] for answer in alone] == names
    again = [greedy(server, name) for name in names]
    assert all(answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 50 for answer in again)
    assert same(again, alone)
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda name: greedy(server, name), names * 2))
    assert same(together, alone * 2) and not same(alone, [*alone[1:], alone[0]])


def test_an_echo_and_a_chat_are_of_the_adapter(server):
    """Log-probabilities of the prompt's own tokens; and two turns whose prefix is cached."""
    names = named(server)
    echoes = [greedy(server, name, "The mill", echo=True) for name in (*names, *names)]
    assert same(echoes[:3], echoes[3:]) and not any(same([echoes[index]], [echoes[index - 1]]) for index in range(3))
    for turn in range(2):
        body = {"temperature": 0, "max_tokens": 8, "messages": [{"role": "user", "content": "How many sacks?"}]}
        chats = [server.post("/v1/chat/completions", model=name, **body) for name in (*names, *names)]
        found = [(chat["model"], chat["choices"][0]["message"]["content"]) for chat in chats]
        assert found[:3] == found[3:] and len(set(found)) == 3, turn
