"""Home Assistant itself with its integrations for llama.cpp and for Ollama, set up over its own interface, at a server,
and with its Wyoming integration at the service for house commands.

`make test-home-assistant` makes its root file system. The server's model has random weights: what it writes means
nothing. The service's answers are written down, so that what Home Assistant does with its intents is judged alone.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import websockets.sync.client
from chat_bundle import make_bundle
from served import Server

from merino_edge.house import service
from merino_edge.house.home_assistant import HomeAssistant
from merino_runtime.house.house import Call

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
START_S = 600
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
        self.token = None
        name, password = "keeper", "grinds-at-night"
        code = self.post("/api/onboarding/users", name=name, username=name, password=password, client_id=URL + "/",
                         language="en")["auth_code"]  # fmt: skip
        form = {"grant_type": "authorization_code", "code": code, "client_id": URL + "/"}
        self.token = call("/auth/token", urllib.parse.urlencode(form).encode(), {})["access_token"]
        self.command("http/config/promote")  # else it takes back the port after five minutes, and restarts

    def post(self, path, **body):
        return call(path, json.dumps(body).encode(), self._headers())

    def states(self, domain):
        names = [each["entity_id"] for each in call("/api/states", None, self._headers())]
        return [name for name in names if name.startswith(domain + ".") and not name.endswith(".home_assistant")]

    def command(self, kind, **fields):
        """The result of a command of the WebSocket API."""
        with websockets.sync.client.connect(URL.replace("http", "ws") + "/api/websocket") as socket:
            socket.recv()
            socket.send(json.dumps({"type": "auth", "access_token": self.token}))
            socket.recv()
            socket.send(json.dumps({"id": 1, "type": kind, **fields}))
            answer = json.loads(socket.recv())
            assert answer["success"], answer
            return answer["result"]

    def expose(self, entity_id):
        self.command("homeassistant/expose_entity", assistants=["conversation"], entity_ids=[entity_id],
                     should_expose=True)  # fmt: skip

    def pipeline(self, agent):
        """A pipeline of Assist that asks Home Assistant's own templates first, then the agent -> its id."""
        none = dict.fromkeys(("stt_engine", "stt_language", "tts_engine", "tts_language", "tts_voice",
                              "wake_word_entity", "wake_word_id"))  # fmt: skip
        made = self.command("assist_pipeline/pipeline/create", name="House", language="en", conversation_language="en",
                            conversation_engine=agent, prefer_local_intents=True, **none)  # fmt: skip
        return made["id"]

    def assist(self, pipeline, text):
        """The response of a pipeline to a sentence."""
        with websockets.sync.client.connect(URL.replace("http", "ws") + "/api/websocket") as socket:
            socket.recv()
            socket.send(json.dumps({"type": "auth", "access_token": self.token}))
            socket.recv()
            run = {"start_stage": "intent", "end_stage": "intent", "pipeline": pipeline, "input": {"text": text}}
            socket.send(json.dumps({"id": 1, "type": "assist_pipeline/run", **run}))
            while True:
                event = json.loads(socket.recv(timeout=300)).get("event", {})
                assert event.get("type") != "error", event
                if event.get("type") == "intent-end":
                    return event["data"]["intent_output"]["response"]

    def state(self, entity_id):
        return call(f"/api/states/{entity_id}", None, self._headers())

    def _headers(self):
        key = {"Authorization": f"Bearer {self.token}"} if self.token else {}
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

    def answer(self, agent, text, **fields):
        return self.post("/api/conversation/process", text=text, agent_id=agent, language="en", **fields)["response"]


def call(path, data, headers):
    request = urllib.request.Request(URL + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{path}: {error.code} {error.read()[:500]}") from error


@contextlib.contextmanager
def home(folder, more=""):
    """more: further lines of its configuration."""
    folder.mkdir()
    (folder / "configuration.yaml").write_text(CONFIGURATION + more)
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
    with Server(bundle, options=["--set=cache_mb=0"]) as server, home(tmp_path / "config") as running:
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
        port = ["--set=cache_mb=0", "--port", server.port]
        server.close()
        with Server(bundle, options=port, before=ALWAYS_CALLS) as calls:
            for agent in agents:
                before = calls.call("GET", "/v1/stats")[1]["requests_total"]
                running.answer(agent, "Turn on the kitchen lamp.")
                assert calls.call("GET", "/v1/stats")[1]["requests_total"] == before + ROUNDS
            assert calls.call("GET", "/v1/stats")[1]["requests_failed_total"] == 0
    assert "JSONDecodeError" not in (tmp_path / "config" / "log").read_text()


def one(tool, *targets, words="", **values):
    return [Call(tool, targets, tuple(values.items()), words)]


# By sentence: the calls of a model, and whether it is sure. The names are those of Home Assistant's demo.
ANSWERS = {
    "it is gloomy over the bed": (one("turn_on", "bed light"), False),
    "darkness please": (one("turn_off", "house/light"), False),
    "make the bed cozy": (one("set_brightness", "bed light", percent=40), False),
    "and redder": (one("set_color", "bed light", color="red"), False),
    "let some air in": (one("set_position", "hall window", percent=70), False),
    "breeze and bed": (one("set_speed", "living room fan", percent=50) + one("turn_on", "bed light"), False),
    "a bit warmer": (one("warmer", "heatpump"), False),
    "hush": (one("mute", "bedroom"), False),
    "let me in": (one("unlock", "front door"), True),
    "is it shut": (one("get_state", "front door", state="locked"), False),
    "how warm is it": (one("get_temperature", "heatpump"), False),
    "bed off soon": (one("turn_off", "bed light", after_minutes=5), False),
    "the boombox": (one("turn_on", words="boombox"), False),
    "order a pizza": ([], False),
}


class Answer:
    def __init__(self, calls, asks):
        self.calls, self.asks = calls, asks


@contextlib.contextmanager
def house_service(running):
    """The service in a thread, connected to Home Assistant -> (its port, the houses that it was asked for, its
    connection)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    houses, lines, loop = [], [], asyncio.new_event_loop()
    connection, ready = HomeAssistant(URL, running.token, lines.append), threading.Event()

    def answer(house, sentence):
        houses.append(house)
        return Answer(*ANSWERS[sentence])

    async def serve():
        task = asyncio.ensure_future(
            service.serve(f"tcp://127.0.0.1:{port}", service.Agent(answer, connection, "en"), lines.append)
        )
        stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        await connection.read.wait()
        ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    stop = []
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(60), lines
    try:
        yield port, houses, connection
    finally:
        stop[0]()
        thread.join(10)


def test_the_house_service_acts_asks_and_refuses_as_a_wyoming_agent(tmp_path):
    with home(tmp_path / "config", "demo:\n") as running, house_service(running) as (port, houses, connection):
        running.set_up("wyoming", {"host": "127.0.0.1", "port": port})
        while not (agents := running.states("conversation")):
            time.sleep(0.2)

        shown = {"light.bed_light", "cover.hall_window", "climate.heatpump", "fan.living_room_fan",
                 "media_player.bedroom"}  # fmt: skip
        while not shown <= set(connection.home.names):  # it is read again when Home Assistant has started
            time.sleep(0.2)

        def say(text):
            response = running.answer(agents[0], text, conversation_id="house")
            return response["response_type"], response["speech"].get("plain", {}).get("speech")

        assert say("it is gloomy over the bed") == ("action_done", "Turned on the Bed Light")
        assert running.state("light.bed_light")["state"] == "on"
        names = {device.key for device in houses[0].devices}
        assert not any(name.startswith("lock.") for name in names)  # locks are not exposed by default
        running.expose("lock.front_door")
        while "lock.front_door" not in connection.home.names:  # it follows changes
            time.sleep(0.2)
        assert say("make the bed cozy")[0] == "action_done"
        assert running.state("light.bed_light")["attributes"]["brightness"] == 102
        assert say("and redder")[0] == "action_done"
        assert running.state("light.bed_light")["attributes"]["rgb_color"] == [255, 0, 0]
        kind, text = say("darkness please")
        assert kind == "action_done" and text.startswith("Turned off ") and text.endswith(" lights")
        lights = [name for name in names if name.startswith("light.")]
        assert len(lights) > 3 and {running.state(name)["state"] for name in lights} == {"off"}
        assert say("let some air in")[0] == "action_done"
        end = time.monotonic() + 60
        while running.state("cover.hall_window")["attributes"]["current_position"] != 70:
            assert time.monotonic() < end
            time.sleep(0.5)
        assert say("breeze and bed") == (
            "action_done", "Set the Living Room Fan to 50 percent\nTurned on the Bed Light")  # fmt: skip
        assert running.state("fan.living_room_fan")["attributes"]["percentage"] == 50
        assert running.state("light.bed_light")["state"] == "on"
        before = running.state("climate.heatpump")["attributes"]["temperature"]
        assert say("a bit warmer")[0] == "action_done"
        assert running.state("climate.heatpump")["attributes"]["temperature"] == before + 1
        assert say("hush")[0] == "action_done"
        assert running.state("media_player.bedroom")["attributes"]["is_volume_muted"]
        assert running.state("lock.front_door")["state"] == "locked"
        assert say("is it shut") == ("query_answer", "Yes")
        assert say("let me in") == ("error", "Shall I unlock the Front Door?")
        assert running.state("lock.front_door")["state"] == "locked"
        assert say("yes") == ("action_done", "Unlocked the Front Door")
        end = time.monotonic() + 60
        while running.state("lock.front_door")["state"] != "unlocked":
            assert time.monotonic() < end
            time.sleep(0.5)
        assert say("is it shut") == ("query_answer", "No, Front Door is unlocked")
        kind, text = say("how warm is it")
        assert kind == "query_answer" and text.endswith(" degrees")
        assert say("bed off soon") == ("action_done", "I will turn off the Bed Light in 5 minutes")
        assert say("the boombox") == ("error", "Sorry, there is nothing called boombox here.")
        assert say("order a pizza") == ("error", "Sorry, I can't do that.")
        heard = len(houses)
        pipeline = running.pipeline(agents[0])
        local = running.assist(pipeline, "turn on the bed light")
        assert local["response_type"] == "action_done" and len(houses) == heard  # by Home Assistant's own templates
        response = running.assist(pipeline, "darkness please")
        assert response["response_type"] == "action_done" and len(houses) == heard + 1
        assert running.state("light.bed_light")["state"] == "off"
