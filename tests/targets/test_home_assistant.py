"""Home Assistant itself with its integrations for llama.cpp and for Ollama, set up over its own interface, at a server.

`make test-home-assistant` makes its root file system. The model has random weights: what it writes means nothing.
"""

import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from chat_bundle import make_bundle
from served import Server

ROOT = Path(os.environ.get("MERINO_HOME_ASSISTANT_ROOT", "none"))
PORT = 18123
CONFIGURATION = f"""\
homeassistant:
  name: Home
  latitude: 48.4
  longitude: 10.0
  elevation: 478
  unit_system: metric
  time_zone: Europe/Berlin
http:
  server_host: 127.0.0.1
  server_port: {PORT}
api:
config:
onboarding:
conversation:
input_boolean:
  lamp:
template:
  - light:
      - name: Kitchen lamp
        unique_id: kitchen_lamp
        state: "{{{{ is_state('input_boolean.lamp', 'on') }}}}"
        turn_on:
          action: input_boolean.turn_on
          target: {{entity_id: input_boolean.lamp}}
        turn_off:
          action: input_boolean.turn_off
          target: {{entity_id: input_boolean.lamp}}
"""
URL = f"http://127.0.0.1:{PORT}"
START_S = 120
ENTER = """
mount -t proc proc "$1/proc" && mount --bind /dev "$1/dev" && mount --bind "$2" "$1/config" &&
exec chroot "$1" /ha/bin/hass -c /config --skip-pip
"""
# A model that calls a tool in each answer, and writes short strings.
ALWAYS_CALLS = """
from merino_runtime.generation import constraints
compiled = constraints.compile_tools

def short(schema):
    if isinstance(schema, list):
        return [short(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain = schema.get("type") == "string" and "enum" not in schema
    return {**{key: short(value) for key, value in schema.items()}, **({"maxLength": 8} if plain else {})}

constraints.compile_tools = lambda tools, choice, *rest: compiled(short(tools), "required", *rest)
"""
ROUNDS = 10  # of tools, which both integrations allow

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.skipif(not (ROOT / "ha").exists(), reason="no Home Assistant (make test-home-assistant sets it up)"),
]


class Home:
    """A Home Assistant that runs, by its REST interface."""

    def __init__(self):
        self._token = None
        name, password = "keeper", "grinds-at-night"
        code = self.post("/api/onboarding/users", name=name, username=name, password=password, client_id=URL + "/",
                         language="en")["auth_code"]  # fmt: skip
        form = {"grant_type": "authorization_code", "code": code, "client_id": URL + "/"}
        self._token = call("/auth/token", urllib.parse.urlencode(form).encode(), {})["access_token"]

    def post(self, path, **body):
        return call(path, json.dumps(body).encode(), self._headers())

    def states(self, domain):
        names = [each["entity_id"] for each in call("/api/states", None, self._headers())]
        return [name for name in names if name.startswith(domain + ".") and not name.endswith(".home_assistant")]

    def _headers(self):
        key = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        return {"Content-Type": "application/json", **key}

    def set_up(self, handler, *forms, kind="flow"):
        """A flow of the settings, filled in form by form -> its entry."""
        path = f"/api/config/config_entries/{kind}"
        step = self.post(path, handler=handler)
        for form in forms:
            assert step["type"] == "form", step
            step = self.post(f"{path}/{step['flow_id']}", **form)
        assert step["type"] == "create_entry", step
        return step

    def answer(self, agent, text):
        return self.post("/api/conversation/process", text=text, agent_id=agent, language="en")["response"]


def call(path, data, headers):
    request = urllib.request.Request(URL + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{path}: {error.code} {error.read()[:500]}") from error


@contextlib.contextmanager
def home(folder):
    folder.mkdir()
    (folder / "configuration.yaml").write_text(CONFIGURATION)
    with open(folder / "log", "wb") as log:
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "home", ROOT, folder]
        process = subprocess.Popen(words, stdout=log, stderr=log)
        try:
            end = time.monotonic() + START_S
            while not answers():
                assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()[-3000:]
                time.sleep(0.5)
            yield Home()
        finally:
            process.kill()
            process.wait()


def answers():
    with contextlib.suppress(OSError):
        call("/api/onboarding", None, {})
        return True
    return False


@pytest.fixture(scope="module")
def bundle(decoder, tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "chat", decoder, dialect="fused", context=16384)


STRUCTURE = {
    "lamp": {"selector": {"entity": {}}, "required": True},
    "rooms": {"selector": {"select": {"multiple": True, "options": ["kitchen", "bedroom"]}}, "required": True},
    "level": {"selector": {"number": {"min": 0, "max": 100}}, "required": True},
    "color": {"selector": {"color_rgb": {}}},
}


def agents_of(running, server):
    """Both integrations, set up as a user does it -> their agents and the AI task's."""
    model = server.call("GET", "/v1/models")[1]["data"][0]["id"]
    running.set_up("llama_cpp", {"base_url": server.url + "/v1"}, {"chat_model": model})
    entry = running.set_up("ollama", {"url": server.url})["result"]["entry_id"]
    usual = {"model": model, "num_ctx": 8192, "max_history": 20, "keep_alive": -1, "think": False}
    conversation = dict(usual, name="Talk", llm_hass_api=["assist"])
    running.set_up([entry, "conversation"], conversation, kind="subentries/flow")
    while len(running.states("conversation")) < 2:  # the integration is loaded again with each agent
        time.sleep(0.2)
    running.set_up([entry, "ai_task_data"], dict(usual, name="Task"), kind="subentries/flow")
    while not running.states("ai_task"):
        time.sleep(0.2)
    return running.states("conversation"), running.states("ai_task")


def test_both_integrations_are_set_up_talk_call_tools_and_do_a_task(bundle, tmp_path):
    with Server(bundle, options=["--cache-mb", 0]) as server, home(tmp_path / "config") as running:
        agents, (task,) = agents_of(running, server)
        for agent in agents:
            response = running.answer(agent, "Is the kitchen lamp on?")
            assert response["response_type"] == "action_done" and response["speech"]["plain"]["speech"], response
        wanted = {"task_name": "report", "instructions": "Which lamp?", "entity_id": task, "structure": STRUCTURE}
        done = running.post("/api/services/ai_task/generate_data?return_response", **wanted)
        data = done["service_response"]["data"]
        assert {"lamp", "rooms", "level"} <= set(data) <= set(STRUCTURE) and 0 <= data["level"] <= 100
        assert data["rooms"] in ([], ["kitchen"], ["bedroom"], ["kitchen", "bedroom"])
        stats = server.call("GET", "/v1/stats")[1]
        assert stats["requests_failed_total"] == 0 and stats["requests_total"] == 5  # two are of the set-up
        port = ["--cache-mb", 0, "--port", server.port]
        server.close()
        with Server(bundle, options=port, before=ALWAYS_CALLS) as calls:
            for agent in agents:
                before = calls.call("GET", "/v1/stats")[1]["requests_total"]
                running.answer(agent, "Turn on the kitchen lamp.")
                assert calls.call("GET", "/v1/stats")[1]["requests_total"] == before + ROUNDS
            assert calls.call("GET", "/v1/stats")[1]["requests_failed_total"] == 0
    assert "JSONDecodeError" not in (tmp_path / "config" / "log").read_text()
