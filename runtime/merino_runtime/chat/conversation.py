"""A conversation with a chat model, in the model's chat template.

Earlier turns stay in the KV cache, so that a turn computes only its new tokens. An answer stays there as the generated
ids. If the template changes its text, for example by removing the thinking, that text is computed with the next turn.
Events are dicts, as `chat --json` prints them.
"""
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.bundle import Bundle
from merino_runtime.chat.template import THINK, THINK_END, ChatTemplate, Turn, encode_segments, messages_of
from merino_runtime.errors import MerinoError
from merino_runtime.sampling import GenerateOptions, Sampling

if TYPE_CHECKING:
    from merino_runtime.backends.backend import Backend
    from merino_runtime.generation.constraints import Compiled
    from merino_runtime.generation.generate import Done, Generation
    from merino_runtime.generation.text import TextStream, Tokenizer

Event = Dict[str, Any]
OVERFLOWS = ("error", "shift")
SHORTEST_TURN = 2  # tokens: one of a message and one of its answer
ROOM = 4  # with overflow `shift` an answer gets one part in four of the context, or `max_new_tokens`


class PastTurn(NamedTuple):
    """A finished turn."""
    user: str
    answer: str  # with the thinking
    ids: Tuple[int, ...]  # as generated, without the stop token
    opening: str  # the template's text before the answer


class _ChatOptions(NamedTuple):
    system: Optional[str] = None  # message before the first turn; None: the template's own, if any
    max_new_tokens: Optional[int] = None  # per answer; None: as many as the context holds
    sampling: Sampling = Sampling()
    no_think: bool = False  # answers without thinking
    overflow: str = "error"  # `error` refuses a turn that does not fit the context, `shift` drops the oldest turns
    json_schema: Any = None  # each answer is JSON that is valid for this schema
    adapter: Optional[str] = None  # name of a LoRA adapter in the bundle


class ChatOptions(_ChatOptions):
    """The options of a chat. Raise MerinoError for a value that no model allows."""
    __slots__ = ()

    def __new__(cls, *values: Any, **named: Any) -> "ChatOptions":
        self = super().__new__(cls, *values, **named)
        if self.overflow not in OVERFLOWS:
            raise MerinoError(f"overflow is {self.overflow!r}, allowed: {', '.join(OVERFLOWS)}.")
        GenerateOptions(1 if self.max_new_tokens is None else self.max_new_tokens, self.sampling)
        return self


class ChatSession:
    """One conversation with one model, whose backend nothing else may use meanwhile. Raise MerinoError if the bundle
    has no chat template."""

    def __init__(self, bundle: Bundle, backend: "Backend", tokenizer: "Tokenizer",
                 options: ChatOptions = ChatOptions()) -> None:  # noqa: B008
        self.backend, self._tokenizer, self._stops = backend, tokenizer, frozenset(bundle.stop_ids)
        self._sampling, self._most = options.sampling, options.max_new_tokens
        self._shifts, self._adapter = options.overflow == "shift", options.adapter
        backend.adapter_of(self._adapter)
        self._constraint: Optional[Compiled] = None
        if options.json_schema is not None:
            from merino_runtime.generation.constraints import compile_schema

            self._constraint = compile_schema(options.json_schema, tokenizer, bundle.stop_ids)
        if bundle.chat is None:
            raise MerinoError(f"bundle {bundle.name!r} has no chat template: its model was not trained to chat, or was "
                              "exported without. `generate` continues a text. To chat, export a model of that kind "
                              "(they are often called -Instruct) from a folder with its chat_template.jinja or "
                              "tokenizer_config.json.")
        self._template, self._no_think = ChatTemplate(bundle, bundle.chat), options.no_think
        if bundle.chat.parts is None:
            self._template.render()  # without jinja2 this ends here
        if options.no_think and not self._template.switches_thinking():
            raise MerinoError(f"the chat template of {bundle.name!r} does not know of answers without thinking "
                              "(enable_thinking). Leave out --no-think.")
        self._past: List[PastTurn] = []
        self._active: Optional[_ActiveTurn] = None
        self.system: Optional[str] = None
        self.set_system(options.system)

    def set_system(self, system: Optional[str]) -> None:
        """Set the system message of the whole conversation, from the next turn on. Raise MerinoError if the template
        supports none, or if no message fits the context beside it."""
        if system is not None:
            _check_text("the system message", system)
            size, context = len(self._ids(system, (), "")[0]), self.backend.context
            if size + SHORTEST_TURN > context:
                raise MerinoError(f"the system message has {size} tokens with what the template puts around it, and "
                                  f"the context is {context}: no message and answer fit. Shorten the system message, "
                                  "or export with a longer --context.")
        self.system = system

    def reset(self) -> None:
        """Forget all turns; keep the system message."""
        self._past = []

    def answer(self, text: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Add a turn: yield {begin, prompt_tokens, dropped_turns, thinks}, {id, text} per token, and {done, ...} with
        the measurements. This call raises MerinoError for an impossible turn, which changes nothing.

        stopped: called after each token; true ends the turn. If the caller is interrupted, it calls `interrupted`.
        """
        from merino_runtime.generation.generate import Generation
        from merino_runtime.generation.text import TextStream

        _check_text("the message", text)
        if not text.strip():
            raise MerinoError("the message is empty. Write at least one word.")
        self.interrupted()
        dropped, ids, opening = self._fitting(text)
        stream = TextStream(self._tokenizer, begins=True)
        options = GenerateOptions(self._most or self.backend.context, self._sampling, adapter=self._adapter)
        generation = Generation(self.backend, ids, options, stop_ids=list(self._stops), stream=stream,
                                constraint=self._constraint)
        self._past = self._past[dropped:]
        self._active = _ActiveTurn(text, opening, len(ids), generation, stream)
        return self._events(self._active, dropped, stopped)

    def _events(self, active: "_ActiveTurn", dropped: int, stopped: Callable[[], bool]) -> Iterator[Event]:
        from merino_runtime.generation.generate import Done, Token

        yield {"begin": True, "prompt_tokens": active.prompt_tokens, "dropped_turns": dropped,
               "thinks": bool(_opened(active.opening))}
        for event in active.generation:
            if isinstance(event, Done):
                yield self._over(active, event)
                return
            assert isinstance(event, Token)  # a prompt that is too long was refused
            active.ids.append(event.id)
            active.text += event.text
            yield event._asdict()
            if stopped():
                yield from self.interrupted()
                return

    def interrupted(self) -> List[Event]:
        """End an incomplete answer, whose text so far stays in the conversation -> its last text and its {done}."""
        active = self._active
        if active is None:
            return []
        active.generation.close()
        text = active.stream.finish()
        active.text += text
        done = self._over(active, active.generation.measured())
        return [{"id": None, "text": text}, done] if text else [done]

    def _over(self, active: "_ActiveTurn", done: "Done") -> Event:
        self._active = None
        ids = tuple(active.ids[:-1] if active.ids and active.ids[-1] in self._stops else active.ids)
        answer = _opened(active.opening) + active.text
        if active.ids:
            self._past.append(PastTurn(active.user, answer, ids, active.opening))
        thinking, end, rest = answer.rpartition(THINK_END)
        if not end and answer.lstrip().startswith(THINK):
            thinking, rest = answer, ""
        return dict(done._asdict(), done=True, prompt_tokens=active.prompt_tokens, context=self.backend.context,
                    context_used=active.prompt_tokens + len(active.ids), turns=len(self._past), answer=rest,
                    thinking=thinking.replace(THINK, "", 1) if thinking else None)

    def _fitting(self, text: str) -> Tuple[int, List[int], str]:
        """Return the number of oldest turns to drop, the prompt's ids, and the text that opens the answer."""
        context = self.backend.context
        needed = max(1, min(self._most or context, context // ROOM)) if self._shifts else 1
        for dropped in range(len(self._past) + 1):
            ids, opening = self._ids(self.system, self._past[dropped:], text)
            # Turns behind a dropped one are computed again, so a drop makes room for several turns.
            room = max(needed, context // 2) if 0 < dropped < len(self._past) else needed
            if context - len(ids) >= room:
                return dropped, ids, opening
            if not self._shifts and self._past:
                raise MerinoError(
                    f"the conversation has {len(ids)} tokens with this message and the context is {context}: no answer "
                    "fits. Start again with /reset, or with --set overflow=shift, which drops the oldest turns; an "
                    "export with a longer --context holds more.")
        raise MerinoError(f"the message has {len(ids)} tokens with what the template puts around it, and the context "
                          f"is {context}: no answer fits. Shorten it, or export with a longer --context.")

    def _ids(self, system: Optional[str], past: Sequence[PastTurn], text: str) -> Tuple[List[int], str]:
        messages = messages_of(system, [Turn(turn.user, turn.answer) for turn in past], text)
        segments = self._template.segments(messages, self._no_think)

        def known(index: int) -> Sequence[int]:
            segment = segments[index]
            turn = None if segment.turn is None else past[segment.turn]
            same = turn and segment.text == turn.answer and segments[index - 1].text == turn.opening
            return turn.ids if turn and same else ()

        return encode_segments(self._tokenizer, segments, known), segments[-1].text


def _check_text(what: str, text: Any) -> None:
    if not isinstance(text, str):
        raise MerinoError(f"{what} is {text!r:.80}, allowed is a string. Decode bytes first.")


class _ActiveTurn:
    """The turn whose answer is being generated."""

    def __init__(self, user: str, opening: str, prompt_tokens: int, generation: "Generation", stream: "TextStream"
                 ) -> None:
        self.user, self.opening, self.prompt_tokens = user, opening, prompt_tokens
        self.generation, self.stream = generation, stream
        self.ids: List[int] = []
        self.text = ""


def _opened(opening: str) -> str:
    """Return the thinking that the template opens for the answer; usually empty."""
    start = opening.rfind(THINK)
    return opening[start:] if start > opening.rfind(THINK_END) else ""
