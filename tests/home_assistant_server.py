"""A small WebSocket server that speaks Home Assistant's protocol, with a home that a test changes.

The forms of its messages are those that Home Assistant 2026.11 sends.
"""

import contextlib
import json

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

TOKEN = "a-long-lived-token"
VERSION = "2026.11.0"


def entry(entity_id, *, name=None, area=None, device=None, aliases=(), **attributes):
    domain, _, key = entity_id.partition(".")
    attributes = {"friendly_name": name or key.replace("_", " ").capitalize(), **attributes}
    return {
        "display": {"ei": entity_id, "lb": [], "pl": "demo", **({"ai": area} if area else {}),
                    **({"di": device} if device else {})},
        "extended": {"entity_id": entity_id, "area_id": area, "aliases": list(aliases), "device_id": device,
                     "platform": "demo", "device_class": None, "original_name": attributes["friendly_name"]},
        "state": {"entity_id": entity_id, "state": "off", "attributes": attributes, "last_changed": "2026-12-01",
                  "context": {"id": "1", "parent_id": None, "user_id": None}},
    }  # fmt: skip


AREAS = [
    {"area_id": "kitchen", "name": "Kitchen", "aliases": ["Cookery"], "floor_id": "ground", "icon": None, "labels": []},
    {"area_id": "bedroom", "name": "Bedroom", "aliases": [], "floor_id": "up", "icon": None, "labels": []},
]
FLOORS = [
    {"floor_id": "ground", "name": "Ground floor", "aliases": [], "level": 0, "icon": None},
    {"floor_id": "up", "name": "Upstairs", "aliases": ["upper floor"], "level": 1, "icon": None},
]
DEVICES = [
    {"id": "speaker-1", "area_id": "bedroom", "name": "Satellite", "name_by_user": None},
    {"id": "bulb-1", "area_id": "kitchen", "name": "Bulb", "name_by_user": None},
]


class HomeServer:
    """`exposed`: whether an entity is exposed to Assist, by id. `token`: what it accepts."""

    def __init__(self):
        self.token = TOKEN
        self.areas, self.floors, self.devices = AREAS, FLOORS, DEVICES
        entities = [
            entry("light.ceiling", name="Kitchen ceiling", device="bulb-1", brightness=128),
            entry("light.bedside", name="Bedside lamp", area="bedroom", aliases=["Night light", None], brightness=26),
            entry("light.hidden", name="Hidden lamp", area="bedroom"),
            entry("cover.gate", name="Big one", area="kitchen", device_class="garage"),
            entry("lock.front", name="Front door", area="kitchen"),
            entry("climate.hall", name="Heating", area="bedroom", temperature=20.5, current_temperature=19),
            entry("input_boolean.party", name="Party"),
            entry("todo.shopping", name="Shopping list"),
            entry("sensor.outside", name="Outside", unit_of_measurement="C"),
            entry("assist_satellite.bed", name="Satellite", device="speaker-1"),
        ]
        self.entities = {one["state"]["entity_id"]: one for one in entities}
        self.exposed = {name: name not in ("light.hidden", "assist_satellite.bed") for name in self.entities}
        self.connections = set()
        self.commands = []

    def result_of(self, message):
        self.commands.append(message["type"])
        entities = self.entities
        return {
            "subscribe_events": lambda: None,
            "homeassistant/expose_entity/list": lambda: {
                "exposed_entities": {name: {"conversation": on} for name, on in self.exposed.items()}},
            "config/entity_registry/list_for_display": lambda: {
                "entity_categories": {"0": "config"}, "entities": [one["display"] for one in entities.values()]},
            "config/entity_registry/get_entries": lambda: {
                name: entities[name]["extended"] for name in message["entity_ids"]},
            "config/area_registry/list": lambda: self.areas,
            "config/floor_registry/list": lambda: self.floors,
            "config/device_registry/list": lambda: self.devices,
            "get_states": lambda: [one["state"] for one in entities.values()],
        }[message["type"]]()  # fmt: skip

    async def talk(self, socket):
        await socket.send(json.dumps({"type": "auth_required", "ha_version": VERSION}))
        if json.loads(await socket.recv()) != {"type": "auth", "access_token": self.token}:
            await socket.send(json.dumps({"type": "auth_invalid", "message": "Invalid access token or password"}))
            return
        await socket.send(json.dumps({"type": "auth_ok", "ha_version": VERSION}))
        self.connections.add(socket)
        try:
            async for text in socket:
                message = json.loads(text)
                answer = {"id": message["id"], "type": "result", "success": True, "result": self.result_of(message)}
                await socket.send(json.dumps(answer))
        except ConnectionClosed:
            pass
        finally:
            self.connections.discard(socket)

    async def changed(self, event="entity_registry_updated"):
        for socket in self.connections:
            data = {"event_type": event, "data": {"action": "update"}, "origin": "LOCAL"}
            await socket.send(json.dumps({"id": 1, "type": "event", "event": data}))

    @contextlib.asynccontextmanager
    async def run(self, port=0):
        async with serve(self.talk, "127.0.0.1", port) as server:
            yield server.sockets[0].getsockname()[1]
