"""Reads the entities that Home Assistant exposes to voice assistants, over its WebSocket API, and follows changes."""

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from merino_edge.storage.extras import import_extra
from merino_edge.storage.faults import one_line, shortened
from merino_runtime.errors import MerinoError
from merino_runtime.house.house import TOOLS, Device, House
from merino_runtime.house.words import spoken

SUPERVISOR = "ws://supervisor/core/websocket"  # for an add-on, with SUPERVISOR_TOKEN
MOST_BYTES = 64 << 20  # of a message: all states of a large home
TIMEOUT_S = 30
SETTLE_S = 0.5  # registries change in bursts
RETRY_S = (1, 2, 5, 10, 30)  # between attempts to connect
CHANGES = (
    "entity_registry_updated", "area_registry_updated", "floor_registry_updated", "device_registry_updated",
    "homeassistant_started",
)  # fmt: skip
COMMANDS = {
    "exposed": "homeassistant/expose_entity/list", "entities": "config/entity_registry/list_for_display",
    "areas": "config/area_registry/list", "floors": "config/floor_registry/list",
    "devices": "config/device_registry/list", "states": "get_states",
}  # fmt: skip
DOMAINS = frozenset(domain for tool in TOOLS.values() for domain in tool.domains)
AS_DOMAIN = {"input_boolean": "switch", "group": "switch"}
CLASSES = {"cover", "media_player", "switch"}  # domains whose device class people say: "the garage", "the TV"


class Home(NamedTuple):
    """`house`: without `here`. `places`: the area of each device id and entity id, in lower case. `aliases`: of areas
    and floors, with the names that the house has. `names`: of entities, as Home Assistant writes them."""

    house: House
    places: dict[str, str]
    aliases: dict[str, str]
    names: dict[str, str]

    def at(self, context: Mapping[str, Any]) -> House:
        """Return the house as it is seen from the satellite of a sentence."""
        here = (self.places.get(context.get(key) or "") for key in ("satellite_id", "device_id"))
        return self.house._replace(here=next(filter(None, here), ""))

    def heard(self, sentence: str) -> str:
        """Return a sentence with the names of areas and floors instead of their aliases."""
        for alias, name in self.aliases.items():
            sentence = re.sub(rf"\b{re.escape(alias)}\b", name, sentence, flags=re.IGNORECASE)
        return sentence


def read_home(answers: Mapping[str, Any]) -> Home:
    """Return the home from the results of COMMANDS and, as `entries`, of config/entity_registry/get_entries."""
    areas = {area["area_id"]: area for area in answers["areas"]}
    floors = {floor["floor_id"]: floor for floor in answers["floors"]}
    area_of = {device["id"]: device.get("area_id") for device in answers["devices"]}
    states = {state["entity_id"]: state for state in answers["states"]}
    ids = {}  # of the areas of entities
    for entity in answers["entities"]["entities"]:
        ids[entity["ei"]] = entity.get("ai") or area_of.get(entity.get("di"))
    names = {area_id: spoken(area["name"]) for area_id, area in areas.items()}
    places = {key: names[area] for key, area in {**area_of, **ids}.items() if area in names}
    devices, written = [], {}
    for entity_id in exposed_ids(answers["exposed"]):
        domain = entity_id.partition(".")[0]
        domain = AS_DOMAIN.get(domain, domain)
        if entity_id not in states or domain not in DOMAINS:
            continue
        attributes = states[entity_id].get("attributes", {})
        name = attributes.get("friendly_name") or entity_id.partition(".")[2].replace("_", " ")
        if not spoken(name):
            continue
        entry = answers.get("entries", {}).get(entity_id) or {}
        aliases = [spoken(alias) for alias in entry.get("aliases") or () if isinstance(alias, str)]
        kind = str(attributes.get("device_class") or "").replace("_", " ")
        if domain in CLASSES and kind and kind not in spoken(name):
            aliases.append(f"{spoken(name)} {kind}")
        area = places.get(entity_id, "")
        devices.append(Device(spoken(name), domain, area, tuple(filter(None, dict.fromkeys(aliases))), entity_id))
        written[entity_id] = name
    on_floor: dict[str, list[str]] = {}
    for area_id, area in areas.items():
        if area.get("floor_id") in floors and any(device.area == names[area_id] for device in devices):
            on_floor.setdefault(spoken(floors[area["floor_id"]]["name"]), []).append(names[area_id])
    also = {
        spoken(alias): spoken(place["name"]) for place in [*areas.values(), *floors.values()]
        for alias in place.get("aliases") or () if spoken(alias)
    }  # fmt: skip
    listed = tuple((floor, tuple(inside)) for floor, inside in on_floor.items())
    return Home(House(tuple(devices), "", listed), places, also, written)


def exposed_ids(result: Mapping[str, Any]) -> list[str]:
    """Return the ids of the entities that are exposed to Assist."""
    listed = result["exposed_entities"]
    return sorted(entity for entity, assistants in listed.items() if assistants.get("conversation"))


def websocket_url(url: str) -> str:
    """Return the address of the WebSocket API for the address of Home Assistant's page."""
    scheme, separator, rest = url.partition("://")
    schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    if not separator or scheme not in schemes or not rest:
        raise MerinoError(f"--home-assistant {url} is no address: give one such as http://homeassistant.local:8123")
    complete = rest.endswith("/websocket")
    return f"{schemes[scheme]}://{rest if complete else rest.rstrip('/') + '/api/websocket'}"


class HomeAssistant:
    """A connection that `follow` keeps open. `home`: None until the first one has read it."""

    def __init__(self, url: str, token: str, say: Callable[[str], None]):
        self.url, self.token, self.say = websocket_url(url), token, say
        self.home: Home | None = None
        self.read = asyncio.Event()  # set each time that `home` is new
        self._socket: Any = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._changed = asyncio.Event()

    async def follow(self) -> None:
        """Read the home now and after each change, and connect again whenever the connection is lost. Raises
        MerinoError if Home Assistant refuses the token."""
        websockets = import_extra("websockets")
        for attempt in itertools.count():
            try:
                async with websockets.connect(self.url, max_size=MOST_BYTES, open_timeout=TIMEOUT_S) as socket:
                    await self._sign_in(socket)
                    await self._stay(socket)
            except (OSError, TimeoutError, ValueError, KeyError, websockets.WebSocketException) as error:
                seconds = RETRY_S[min(attempt, len(RETRY_S) - 1)] if self.home is None else RETRY_S[0]
                self.say(f"Home Assistant at {self.url}: {one_line(error)}; connecting again in {seconds} s")
                await asyncio.sleep(seconds)

    async def states(self) -> dict[str, dict[str, Any]]:
        """Return the states by entity id, as they are now; empty without a connection."""
        try:
            return {state["entity_id"]: state for state in await self._call("get_states")}
        except (OSError, TimeoutError):
            return {}

    async def _sign_in(self, socket: Any) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await socket.recv()  # auth_required
            await socket.send(json.dumps({"type": "auth", "access_token": self.token}))
            answer = json.loads(await socket.recv())
        if answer["type"] != "auth_ok":
            raise MerinoError(
                f"Home Assistant at {self.url} refuses the token ({shortened(str(answer.get('message')))}): make"
                " a long-lived access token on the Security page of an administrator's profile, and write it to the"
                " file of --token-file"
            )

    async def _stay(self, socket: Any) -> None:
        """Answer calls and follow changes until the connection ends."""
        self._socket, self._numbers = socket, itertools.count(1)
        reader = asyncio.create_task(self._receive(socket))
        try:
            for event in CHANGES:
                await self._call("subscribe_events", event_type=event)
            while not reader.done():
                self._changed.clear()
                self.home = await self._read()
                self.say(f"Home Assistant: {len(self.home.house.devices)} exposed entities")
                self.read.set()
                changed = asyncio.create_task(self._changed.wait())
                try:
                    await asyncio.wait([reader, changed], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                await asyncio.sleep(SETTLE_S)
            await reader
            raise ConnectionError("the connection ended")
        finally:
            reader.cancel()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await reader

    async def _read(self) -> Home:
        answers = {name: await self._call(command) for name, command in COMMANDS.items()}
        exposed = exposed_ids(answers["exposed"])
        answers["entries"] = await self._call("config/entity_registry/get_entries", entity_ids=exposed)
        return read_home(answers)

    async def _receive(self, socket: Any) -> None:
        try:
            async for text in socket:
                message = json.loads(text)
                future = self._waiting.pop(message.get("id"), None) if message.get("type") == "result" else None
                if future and not future.done():
                    future.set_result(message)
                elif message.get("type") == "event":
                    self._changed.set()
        finally:
            self._socket = None
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ConnectionError("the connection ended"))
            self._waiting.clear()

    async def _call(self, command: str, **fields: Any) -> Any:
        """Return the result of a command. Raises OSError without a connection, and MerinoError for a refusal."""
        if self._socket is None:
            raise ConnectionError("there is no connection")
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": number, "type": command, **fields}))
        async with asyncio.timeout(TIMEOUT_S):
            answer = await self._waiting[number]
        if not answer.get("success"):
            error = answer.get("error", {})
            who = ": the token must be an administrator's" if error.get("code") == "unauthorized" else ""
            raise MerinoError(f"Home Assistant refuses {command} ({shortened(str(error.get('message')))}){who}")
        return answer.get("result")
