"""A schema whose steps would not end stops its own request, in time, and no other."""
import re
import threading
import time

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("torch")  # of the workstation
pytestmark = pytest.mark.slow

from chat_bundle import make_bundle  # noqa: E402
from served import Server  # noqa: E402

CHAT = "/v1/chat/completions"
HOSTILE = {"type": "string", "pattern": "^((.?){1000}){1000}x$"}
# Without the bound of the work, so that the time alone ends a step.
TIME_ALONE = """
from merino_runtime.generation.constraints import automaton, tokens
automaton.MOST_NODES = automaton.MOST_WORK = 10 ** 12
tokens.STEP_S = 3.0
from merino_runtime.serving import scheduler
scheduler.STALLED_S = 0.5
"""


def asked(server, schema, **more):
    body = dict(messages=[{"role": "user", "content": "x"}], temperature=0, max_tokens=40, **more)
    body["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return server.call("POST", CHAT, body)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, decoder):
    return make_bundle(tmp_path_factory.mktemp("constraints") / "tiny", decoder)


def test_a_schema_that_is_too_large_ends_its_request_alone(bundle):
    with Server(bundle) as server:
        before = server.rss_kb()
        status, answer = asked(server, HOSTILE)
        assert status == 500 and re.search("the constraint is too large|takes too long", answer["error"]["message"])
        assert server.rss_kb() < before + 250000
        status, answer = asked(server, {"type": "boolean"})
        assert status == 200 and answer["choices"][0]["message"]["content"] in ("true", "false")


def test_a_long_step_keeps_the_requests_time_and_health_reports_it(bundle):
    with Server(bundle, before=TIME_ALONE) as server:
        status, answer = asked(server, HOSTILE, max_seconds=1)
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
