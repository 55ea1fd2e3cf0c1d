"""The Wyoming service: a client of Wyoming asks it over a socket, and a server with Home Assistant's protocol has the
home. What the model would answer is written down by sentence."""

import asyncio
import contextlib
import datetime
import json
import socket
from typing import NamedTuple

import pytest
from chat_bundle import make_bundle
from home_assistant_server import TOKEN, HomeServer

from merino_edge import embedded
from merino_edge.cli.house import read_house
from merino_edge.house import home_assistant, service
from merino_edge.house.home_assistant import HomeAssistant, websocket_url
from merino_edge.house.intents import INTENTS, LATER, RELATIVE, intents_of, reply_to, texts_of
from merino_runtime.errors import MerinoError
from merino_runtime.house.house import TOOLS, Call, Device, House
from merino_runtime.house.words import LANGUAGES

pytest.importorskip("wyoming", reason="no wyoming: install the extra house")
from wyoming.asr import Transcript  # noqa: E402
from wyoming.client import AsyncTcpClient  # noqa: E402


class Answer(NamedTuple):
    calls: list
    asks: bool = False


def one(tool, *targets, words="", **values):
    return Answer([Call(tool, targets, tuple(values.items()), words)])


ANSWERS = {
    "it is dark": one("turn_on", "bedroom/light"),
    "night light off": one("turn_off", "bedside lamp"),
    "all lights off": one("turn_off", "house/light"),
    "upstairs lights off": one("turn_off", "upstairs/light"),
    "dim it": one("dim", "kitchen ceiling"),
    "warmer": one("warmer", "heating"),
    "party and gate": Answer([Call("turn_on", ("party",)), Call("open", ("big one",))]),
    "unlock the door": one("unlock", "front door")._replace(asks=True),
    "the boombox": one("turn_on", words="boombox"),
    "order a pizza": Answer([]),
    "yes": Answer([]),
    "milk": one("add_item", "shopping list", words="milk"),
    "is the door locked": one("get_state", "front door", state="locked"),
    "kitchen ceiling off in five minutes": one("turn_off", "kitchen ceiling", after_minutes=5),
    "egg timer": one("start_timer", words="egg", minutes=4),
}


class Client:
    def __init__(self, port, heard):
        self.port, self.heard = port, heard

    async def ask(self, text, device="speaker-1"):
        """Return [(type, data)] of the events that answer a sentence, as Home Assistant reads them."""
        async with AsyncTcpClient("127.0.0.1", self.port) as client:
            context = {"conversation_id": "c", **({"device_id": device} if device else {})}
            await client.write_event(Transcript(text, context=context, language="en").event())
            events = []
            while True:
                event = await asyncio.wait_for(client.read_event(), 20)
                events.append((event.type, event.data))
                if event.type not in ("intents-start", "intent") or (event.type == "intent" and len(events) == 1):
                    return events

    async def intents(self, text, **keys):
        events = await self.ask(text, **keys)
        slots = [{one["name"]: one["value"] for one in data.get("entities", ())} for _, data in events]
        return [(data["name"], given, data.get("text"))
                for (kind, data), given in zip(events, slots, strict=True) if kind == "intent"]  # fmt: skip

    async def text(self, text):
        ((kind, data),) = await self.ask(text)
        return kind, data["text"]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.asynccontextmanager
async def running(home, lines=None, home_port=0, wait=True):
    """A service for that home -> (its client, its connection to Home Assistant)."""
    heard, port = [], free_port()

    def answer(house, sentence):
        heard.append((house, sentence))
        return ANSWERS[sentence]

    async with contextlib.AsyncExitStack() as stack:
        home_port = home_port or await stack.enter_async_context(home.run())
        say = (lines if lines is not None else []).append
        connection = HomeAssistant(f"http://127.0.0.1:{home_port}", TOKEN, say)
        ready = asyncio.Event()
        agent = service.Agent(answer, connection, "en")
        task = asyncio.create_task(service.serve(f"tcp://127.0.0.1:{port}", agent, say, ready.set))
        try:
            await asyncio.wait([task, asyncio.create_task(ready.wait())], return_when=asyncio.FIRST_COMPLETED)
            if wait:
                await asyncio.wait_for(connection.read.wait(), 20)
            yield Client(port, heard), connection
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def run(test):
    return asyncio.run(test())


def test_the_exposed_entities_become_a_house_with_areas_floors_aliases_and_classes():
    async def test():
        async with running(HomeServer()) as (client, connection):
            await client.ask("it is dark")
            return client.heard[0], connection.home

    (house, sentence), home = run(test)
    assert sentence == "it is dark"
    assert house == House(
        (
            Device("heating", "climate", "bedroom", (), "climate.hall"),
            Device("big one", "cover", "kitchen", ("big one garage",), "cover.gate"),
            Device("party", "switch", "", (), "input_boolean.party"),
            Device("bedside lamp", "light", "bedroom", ("night light",), "light.bedside"),
            Device("kitchen ceiling", "light", "kitchen", (), "light.ceiling"),
            Device("front door", "lock", "kitchen", (), "lock.front"),
            Device("shopping list", "todo", "", (), "todo.shopping"),
        ),
        "bedroom", (("ground floor", ("kitchen",)), ("upstairs", ("bedroom",))),
    )  # fmt: skip
    assert home.heard("lights in the Cookery on the upper floor") == "lights in the kitchen on the upstairs"
    assert home.at({"satellite_id": "assist_satellite.bed"}).here == "bedroom" and home.at({}).here == ""
    assert home.names["light.bedside"] == "Bedside lamp"


def test_calls_become_intents_of_exposed_entities_alone():
    async def test():
        async with running(HomeServer()) as (client, _):
            return {text: await client.intents(text) for text in ANSWERS}

    got = run(test)
    assert got["it is dark"] == [("HassTurnOn", {"name": "light.bedside"}, "Turned on the Bedside lamp")]
    assert got["night light off"] == [("HassTurnOff", {"name": "light.bedside"}, "Turned off the Bedside lamp")]
    assert got["upstairs lights off"] == got["night light off"]
    assert [slots for _, slots, _ in got["all lights off"]] == [{"name": "light.bedside"}, {"name": "light.ceiling"}]
    assert [text for *_, text in got["all lights off"]] == ["Turned off the Bedside lamp and the Kitchen ceiling", None]
    dimmed = {"name": "light.ceiling", "brightness": 30}
    assert got["dim it"] == [("HassLightSet", dimmed, "Dimmed the Kitchen ceiling")]
    assert got["warmer"][0][:2] == ("HassClimateSetTemperature", {"name": "climate.hall", "temperature": 21.5})
    assert [intent[:2] for intent in got["party and gate"]] == [
        ("HassTurnOn", {"name": "input_boolean.party"}), ("HassTurnOn", {"name": "cover.gate"}),
    ]  # fmt: skip
    assert got["milk"][0][:2] == ("HassListAddItem", {"name": "todo.shopping", "item": "milk"})
    ((name, slots, text),) = got["is the door locked"]
    assert (name, slots) == ("HassGetState", {"name": "lock.front", "state": "locked"}) and "query.matched" in text
    ((name, slots, text),) = got["kitchen ceiling off in five minutes"]
    assert name == "HassStartTimer" and text == "I will turn off the Kitchen ceiling in 5 minutes"
    assert slots == {"minutes": 5, "conversation_command": "turn off the Kitchen ceiling"}
    assert got["egg timer"] == [("HassStartTimer", {"minutes": 4, "name": "egg"}, "Timer started")]
    assert not got["order a pizza"] and not got["the boombox"] and not got["unlock the door"]


def test_refusals_questions_and_their_answers():
    async def test():
        async with running(HomeServer()) as (client, _):
            refused, question = (
                ("not-recognized", text) for text in ("Sorry, I can't do that.", "Shall I unlock the Front door?")
            )
            missing = ("not-recognized", "Sorry, there is nothing called boombox here.")
            assert await client.text("order a pizza") == refused and await client.text("the boombox") == missing
            assert await client.text("unlock the door") == question
            unlocked = [("HassTurnOff", {"name": "lock.front"}, "Unlocked the Front door")]
            assert await client.intents("Yes please!") == unlocked
            assert await client.text("unlock the door") == question
            assert await client.text("No.") == ("handled", "All right.")
            assert await client.text("unlock the door") == question
            assert await client.intents("it is dark")  # the question is over, and yes is a sentence like others
            assert await client.text("yes") == refused

    run(test)


def test_changes_are_followed_and_a_lost_connection_is_made_again(monkeypatch):
    monkeypatch.setattr(home_assistant, "SETTLE_S", 0.01)
    monkeypatch.setattr(home_assistant, "RETRY_S", (0.05,))

    async def test():
        home, lines, port = HomeServer(), [], free_port()
        async with contextlib.AsyncExitStack() as servers:
            await servers.enter_async_context(home.run(port))
            async with running(home, lines, port) as (client, connection):
                assert len(await client.intents("all lights off")) == 2
                home.exposed["light.hidden"] = True
                connection.read.clear()
                await home.changed()
                await asyncio.wait_for(connection.read.wait(), 20)
                assert len(await client.intents("all lights off")) == 3
                await servers.aclose()  # Home Assistant restarts
                assert len(await client.intents("all lights off")) == 3  # by what is known
                home.exposed["light.hidden"] = False
                connection.read.clear()
                await servers.enter_async_context(home.run(port))
                await asyncio.wait_for(connection.read.wait(), 20)
                assert len(await client.intents("all lights off")) == 2
        assert any("connecting again" in line for line in lines)

    run(test)


def test_a_refused_token_ends_the_service_and_no_home_assistant_is_said(monkeypatch):
    monkeypatch.setattr(service, "WAIT_S", 0.05)

    async def refused():
        home = HomeServer()
        home.token = "another"
        async with home.run() as port:
            connection = HomeAssistant(f"http://127.0.0.1:{port}", TOKEN, str)
            await service.serve(f"tcp://127.0.0.1:{free_port()}", service.Agent(str, connection, "en"), str)

    with pytest.raises(MerinoError, match="refuses the token .*Invalid access token.* long-lived access token"):
        run(refused)

    async def absent():
        async with running(HomeServer(), home_port=free_port(), wait=False) as (client, _):
            return await client.text("it is dark")

    assert run(absent) == ("not-recognized", texts_of("en")["not_ready"])


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "tcp://127.0.0.1", "tcp://192.0.2.1:1"])
def test_an_address_that_cannot_be_used_is_refused(uri):
    connection = HomeAssistant("http://127.0.0.1:1", TOKEN, str)
    with pytest.raises(MerinoError, match=uri):
        asyncio.run(service.serve(uri, service.Agent(str, connection, "en"), str))


def test_the_address_and_the_token_of_home_assistant(tmp_path, monkeypatch):
    monkeypatch.delenv("SUPERVISOR_TOKEN", raising=False)
    assert websocket_url("http://home.local:8123/") == "ws://home.local:8123/api/websocket"
    assert websocket_url("https://home.example") == "wss://home.example/api/websocket"
    assert websocket_url(home_assistant.SUPERVISOR) == home_assistant.SUPERVISOR
    with pytest.raises(MerinoError, match="--home-assistant home.local is no address"):
        websocket_url("home.local")
    token, url = tmp_path / "token", "http://home.local:8123"
    with pytest.raises(MerinoError, match="--home-assistant and --token-file is missing"):
        service.access(None, None)
    with pytest.raises(MerinoError, match="--token-file is missing"):
        service.access(url, None)
    with pytest.raises(MerinoError, match="cannot be read"):
        service.access(url, token)
    token.write_text("\n")
    with pytest.raises(MerinoError, match="is empty"):
        service.access(url, token)
    token.write_text("abc\n")
    assert service.access(url, token) == (url, "abc")
    monkeypatch.setenv("SUPERVISOR_TOKEN", "own")
    assert service.access(None, None) == (home_assistant.SUPERVISOR, "own")
    assert service.access(url, token) == (url, "abc")


HOUSE = House(tuple(Device(f"{domain} {place}", domain, "hall", (), f"{domain}.{place}")
                    for domain in sorted(home_assistant.DOMAINS) for place in range(2)), "hall")  # fmt: skip
NAMES = {device.key: device.name.title() for device in HOUSE.devices}
STATES = {device.key: {"attributes": {"brightness": 255, "temperature": 20}} for device in HOUSE.devices}
VALUES = {"percent": 30, "color": "warm white", "degrees": 21, "minutes": 3, "seconds": 4, "state": "on"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_tool_has_an_intent_with_its_values_and_words_for_it(language):
    house, shall = HOUSE._replace(language=language), texts_of(language)["shall"].partition("{}")[0]
    assert set(INTENTS) == {*TOOLS, "cancel_timers"} and set(LATER) | set(RELATIVE) <= set(TOOLS)
    for name, tool in TOOLS.items():
        targets = tuple(f"{tool.domains[0]} {place}" for place in range(2)) if tool.domains else ()
        call = Call(name, targets, tuple((value, VALUES[value]) for value in tool.values), "milk")
        assert reply_to([call], False, house, NAMES) == ((), "", (), False)
        question = reply_to([call], True, house, NAMES)
        assert question.text.startswith(shall) and "{" not in question.text and question.asks == (call,)
        intents = intents_of([call], house, NAMES, states=STATES, now=datetime.datetime(2026, 1, 1, 23)).intents
        assert [intent.slots.get("name") for intent in intents] == (
            [f"{tool.domains[0]}.{place}" for place in range(2)] if tool.domains else ["milk"]
        )
        assert intents[0].text and len(intents[0].slots) >= 1 + bool(tool.values)
        json.dumps(intents)


@pytest.mark.parametrize(("call", "slots", "language"), [
    (Call("cancel_timer", words="pasta"), {"name": "pasta"}, "en"), (Call("cancel_timer"), {}, "en"),
    (Call("pause_timer", words="hall"), {"area": "hall"}, "en"),
    (Call("timer_left", words="5 minute"), {"start_minutes": 5}, "en"),
    (Call("add_time", (), (("minutes", 2),), "one hour"), {"minutes": 2, "start_hours": 1}, "en"),
    (Call("start_timer", (), (("minutes", 2),), "hall"), {"minutes": 2, "name": "hall"}, "en"),
    (Call("pause_timer", words="5 minuten"), {"start_minutes": 5}, "de"),
    (Call("cancel_timer", words="una hora"), {"start_hours": 1}, "es"),
    (Call("cancel_timer", words="la hall"), {"area": "hall"}, "fr"),
    (Call("cancel_timer", words="all, the hall"), {"area": "hall"}, "en"),
    (Call("cancel_timer", words="alle"), {}, "de"), (Call("cancel_timer", words="all day"), {"name": "all day"}, "en"),
    (Call("cancel_timer", words="la brioche"), {"name": "la brioche"}, "fr"),
])  # fmt: skip
def test_a_timer_is_named_by_its_name_its_area_or_its_length(call, slots, language):
    house = House((Device("lamp", "light", "hall", (), "light.lamp"),), "hall", language=language)
    [intent] = intents_of([call], house, {}, states={}, now=datetime.datetime(2026, 1, 1)).intents
    assert intent.slots == slots
    assert (intent.name == "HassCancelAllTimers") == (call.words in ("all, the hall", "alle"))


def test_later_commands_become_timers_and_others_are_refused():
    at = Call("close", ("cover 0",), (("at", "07:30"),))
    now = datetime.datetime(2026, 1, 1, 23, 0, 20)
    (intent,) = intents_of([at], HOUSE, NAMES, states={}, now=now).intents
    assert intent.slots == {"minutes": 8 * 60 + 30, "conversation_command": "close the Cover 0"}
    assert intent.text == "I will close the Cover 0 at 07:30"
    soon = at._replace(values=(("at", "23:05"),))
    assert intents_of([soon], HOUSE, NAMES, states={}, now=now).intents[0].slots["minutes"] == 5
    refused = reply_to([Call("next", ("media_player 0",), (("after_minutes", 5),))], False, HOUSE, NAMES)
    assert refused.text == "Sorry, I can't do that at a later time."


def test_a_relative_call_without_a_state_and_names_with_braces_do_no_harm():
    warmer = Call("warmer", ("climate 0",))
    reply = intents_of([warmer], HOUSE, NAMES, states={}, now=datetime.datetime(2026, 1, 1))
    assert not reply.intents and reply.text == "Sorry, I don't know the state of the Climate 0."
    names = {**NAMES, "light.0": "{{ states.lock }} {% x %}"}
    on = Call("turn_on", ("light 0",))
    (intent,) = intents_of([on], HOUSE, names, states={}, now=datetime.datetime(2026, 1, 1)).intents
    assert intent.text == "Turned on the (( states.lock )) (% x %)"


def test_house_prints_calls_and_says_what_is_missing(tmp_path, decoder, here, monkeypatch):
    path = tmp_path / "house.json"
    path.write_text(json.dumps({"here": "Kitchen", "floors": {"Upstairs": ["Bedroom"]}, "devices": [
        ["Ceiling light", "light", "Kitchen"], ["TV", "media_player", "Bedroom", "telly"]]}))  # fmt: skip
    devices = (Device("ceiling light", "light", "kitchen"), Device("tv", "media_player", "bedroom", ("telly",)))
    assert read_house(path) == House(devices, "kitchen", (("upstairs", ("bedroom",)),))
    bundle = make_bundle(tmp_path / "bundle", decoder, dialect="fused", context=512)  # random weights
    code, printed, err = here("house", "it is dark in here", "order a pizza", "--devices", path, "--bundle", bundle)
    assert code == 0
    assert {json.loads(line)["name"] for line in printed.splitlines()} <= {*TOOLS, "refuse"}
    assert printed.count("\n") >= 2
    assert "it is dark in here: " in err and "order a pizza: " in err
    monkeypatch.setattr(embedded, "__file__", str(tmp_path / "none" / "__init__.py"))
    code, _, err = here("house", "hello", "--devices", path)
    assert code == 1 and "this installation has no house model of language 'en': give --bundle FOLDER" in err
    for text, message in (
        ('{"devices": [["lamp"]]}', "is no house: write name, domain and area"), ("[]", "is no house"),
        ('{"devices": [["lamp", "lamp", "hall"]]}', "domain 'lamp' is not known, allowed: climate, cover"),
        ('{"devices": [["lamp", {}, "hall"]]}', "domain {} is not known"),
        ('{"devices": [["", "light", "hall"]]}', "is no house"),
        ('{"devices": [], "floors": {"up": "hall"}}', "is no house"), ('{"devices": [], "here": []}', "is no house"),
        ('{"devices": [], "language": []}', "is no house"),
        ('{"devices": [], "language": "xx"}', "language 'xx' is not known: choose from de, en, es, fr"),
        ('{"devices": [], "language": "de"}', "is of language 'de', and --bundle"),
    ):
        path.write_text(text)
        code, _, err = here("house", "hello", "--devices", path, "--bundle", bundle)
        assert code == 1 and message in " ".join(err.split())
