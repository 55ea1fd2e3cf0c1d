"""The service `merino-house`: sentences from Home Assistant over Wyoming, intents back, which Home Assistant executes.

Wyoming has no authentication: whoever reaches the port learns the names of entities and nothing else, since only Home
Assistant carries intents out.
"""

import asyncio
import contextlib
import datetime
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

from merino_edge import __version__
from merino_edge.house.home_assistant import SUPERVISOR, HomeAssistant
from merino_edge.house.intents import RELATIVE, Reply, intents_of, reply_to, texts_of
from merino_edge.storage.extras import import_extra
from merino_runtime.errors import MerinoError, machine_fault
from merino_runtime.house.house import Call, House

NAME = "merino-house"
ASK_S = 60  # for which a question waits for its answer
WAIT_S = 10  # for the home at the first sentence
Answerer = Callable[[House, str], Any]  # -> merino_runtime.house.answer.Answer


class Question(NamedTuple):
    """Calls that wait for a yes. `asked`: by time.monotonic."""

    calls: tuple[Call, ...]
    asked: float


class Agent:
    """What a sentence leads to. `answer`: calls the model; one sentence at a time."""

    def __init__(self, answer: Answerer, home_assistant: HomeAssistant, language: str):
        self.answer, self.home_assistant, self.language = answer, home_assistant, language
        self.texts = texts_of(language)
        self._one = asyncio.Lock()
        self._questions: dict[str, Question] = {}

    async def reply(self, sentence: str, context: dict[str, Any]) -> Reply:
        """Return the reply to a sentence. `context`: conversation_id, device_id and satellite_id, if known."""
        if self.home_assistant.home is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.home_assistant.read.wait(), WAIT_S)
        home = self.home_assistant.home
        if home is None:
            return Reply(text=self.texts["not_ready"])
        speaker = context.get("satellite_id") or context.get("device_id") or context.get("conversation_id") or ""
        question, plain = self._questions.pop(speaker, None), sentence.lower().strip(" .!?")
        house = home.at(context)._replace(language=self.language)
        if question and time.monotonic() - question.asked < ASK_S and plain in (*self.texts["yes"], *self.texts["no"]):
            if plain in self.texts["no"]:
                return Reply(text=self.texts["all_right"], done=True)
            calls: tuple[Call, ...] = question.calls
        else:
            async with self._one:
                answer = await asyncio.to_thread(self.answer, house, home.heard(sentence))
            calls = tuple(answer.calls)
            reply = reply_to(calls, answer.asks, house, home.names)
            if reply.asks:
                self._questions = {key: kept for key, kept in self._questions.items() if still_open(kept)}
                self._questions[speaker] = Question(reply.asks, time.monotonic())
            if reply.text:
                return reply
        states = await self.home_assistant.states() if any(call.tool in RELATIVE for call in calls) else {}
        return intents_of(calls, house, home.names, states=states, now=datetime.datetime.now())


def still_open(question: Question) -> bool:
    return time.monotonic() - question.asked < ASK_S


def handler_of(agent: Agent, say: Callable[[str], None]) -> Any:
    """Return Wyoming's handler class for connections of Home Assistant."""
    asr, error, handle, info, intent, server = (
        import_extra(f"wyoming.{name}") for name in ("asr", "error", "handle", "info", "intent", "server")
    )
    project = info.Attribution(name="merino_edge", url="")
    described = {"attribution": project, "installed": True, "version": __version__}
    model = info.IntentModel(name="house", description="house commands", languages=[agent.language], **described)
    program = info.IntentProgram(
        name=NAME, description="small language model for house commands", models=[model], **described
    )
    service = info.Info(intent=[program])

    base: Any = server.AsyncEventHandler

    class Handler(base):
        async def handle_event(self, event: Any) -> bool:
            if info.Describe.is_type(event.type):
                await self.write_event(service.event())
                return True
            if asr.Transcript.is_type(event.type):
                given = asr.Transcript.from_event(event)
            elif intent.Recognize.is_type(event.type):
                given = intent.Recognize.from_event(event)
            else:
                return True
            try:
                reply = await agent.reply(given.text, given.context or {})
            except (MerinoError, OSError) as fault:
                say(f"{NAME}: {fault}")
                await self.write_event(error.Error(text=str(fault)).event())
                return True
            for written in events(reply):
                await self.write_event(written)
            return True

    def events(reply: Reply) -> list[Any]:
        if reply.done:
            return [handle.Handled(text=reply.text).event()]
        if not reply.intents:
            return [intent.NotRecognized(text=reply.text).event()]
        made = [
            intent.Intent(
                one.name, [intent.Entity(name=name, value=value) for name, value in one.slots.items()], one.text or None
            ).event()
            for one in reply.intents
        ]
        return made if len(made) == 1 else [intent.IntentsStart().event(), *made, intent.IntentsStop().event()]

    return Handler


async def serve(uri: str, agent: Agent, say: Callable[[str], None], ready: Callable[[], None] = lambda: None) -> None:
    """Serve until the task is canceled. Raises MerinoError for an address that cannot be used, and for a token that
    Home Assistant refuses."""
    handler, address = handler_of(agent, say), urlparse(uri)
    try:
        server = import_extra("wyoming.server").AsyncServer.from_uri(uri)
        await server.start(handler)
    except ValueError as error:
        raise MerinoError(f"--uri {uri}: {error}. Give one such as tcp://0.0.0.0:10500") from error
    except OSError as error:
        raise machine_fault(f"listen on {uri}", error) from error
    say(f"{NAME} listens on {uri}: in Home Assistant add the integration Wyoming Protocol with this host and port")
    ready()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.stop)
        if address.scheme == "tcp" and address.hostname not in ("127.0.0.1", "localhost", "::1"):
            await announce(stack, address.port or 0)
        await agent.home_assistant.follow()


async def announce(stack: contextlib.AsyncExitStack, port: int) -> None:
    """Announce the service on the network, so that Home Assistant finds it, if zeroconf is installed."""
    try:
        from wyoming.zeroconf import HomeAssistantZeroconf
    except ImportError:
        return
    with contextlib.suppress(OSError):
        found = HomeAssistantZeroconf(port=port, name=NAME)
        await found.register_server()
        stack.push_async_callback(found._aiozc.async_close)


def access(home_assistant: str | None, token_file: Path | None) -> tuple[str, str]:
    """Return (address, token) of Home Assistant: as given, or an add-on's. Raises MerinoError if there is neither."""
    supervisor = os.environ.get("SUPERVISOR_TOKEN")
    if home_assistant is None and supervisor:
        return SUPERVISOR, supervisor
    if home_assistant is None or token_file is None:
        missing = "--home-assistant and --token-file" if home_assistant is None else "--token-file"
        raise MerinoError(
            f"{missing} is missing: give the address of Home Assistant and a file with a long-lived access token; only"
            " an add-on has a token by itself (SUPERVISOR_TOKEN)"
        )
    try:
        token = token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MerinoError(f"--token-file {token_file} cannot be read: {error}. Give a file with the token") from error
    if not token:
        raise MerinoError(f"--token-file {token_file} is empty: write a long-lived access token to it")
    return home_assistant, token
