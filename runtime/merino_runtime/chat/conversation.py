"""A conversation in turns with a model that was trained for it. The model reads the messages in its chat template.

Earlier turns stay in the KV cache, so that a turn computes its new tokens only. An answer stays there as the ids that
were generated; where the template takes another text of it than was generated, such as the answer without the thinking
before it, that text is computed with the next turn. Events are dicts, as `chat --json` prints them.
"""
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.bundle import Bundle, Chat, file_path
from merino_runtime.chat.template import (
    THINK,
    THINK_END,
    Piece,
    Turn,
    by_jinja,
    by_parts,
    compiled,
    messages_of,
    rendered,
)
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_text
from merino_runtime.sampling import GenerateOptions, Sampling

if TYPE_CHECKING:
    from merino_runtime.backends.backend import Backend
    from merino_runtime.generation.constraints import Compiled
    from merino_runtime.generation.generate import Done, Generation
    from merino_runtime.generation.text import TextStream, Tokenizer

Event = Dict[str, Any]
OVERFLOWS = ("error", "shift")
SHORTEST_TURN = 2  # tokens: one of a message and one of its answer
ROOM = 4  # with overflow `shift` an answer has this part of the context, or `max_new_tokens`


class PastTurn(NamedTuple):
    """A turn that is over."""
    user: str
    answer: str  # with the thinking
    ids: Tuple[int, ...]  # as generated, without what ended it
    opening: str  # the template's text before it


class ChatOptions(NamedTuple):
    """What a chat is asked for."""
    system: Optional[str] = None  # message before the first turn; None: the template's own, if any
    max_new_tokens: Optional[int] = None  # of an answer; None: as many as the context holds
    sampling: Sampling = Sampling()
    no_think: bool = False  # answers without thinking
    overflow: str = "error"  # `error` refuses a turn for which the context has no room, `shift` drops the oldest turns
    json_schema: Any = None  # each answer is JSON that is valid for this schema

    def check(self) -> None:
        """Raise MerinoError for a value that no model allows."""
        if self.overflow not in OVERFLOWS:
            raise MerinoError(f"overflow is {self.overflow!r}, allowed: {', '.join(OVERFLOWS)}.")
        GenerateOptions(1 if self.max_new_tokens is None else self.max_new_tokens, self.sampling).check()


class ChatSession:
    """One conversation over one model; its backend is used by nothing else meanwhile. Raises MerinoError if the bundle
    has no chat template, and for options that are out of range."""

    def __init__(self, bundle: Bundle, backend: "Backend", tokenizer: "Tokenizer",
                 options: ChatOptions = ChatOptions()) -> None:  # noqa: B008
        options.check()
        self.backend, self._tokenizer, self._stops = backend, tokenizer, frozenset(bundle.stop_ids)
        self._sampling, self._most = options.sampling, options.max_new_tokens
        self._shifts = options.overflow == "shift"
        self._constraint: Optional[Compiled] = None
        if options.json_schema is not None:
            from merino_runtime.generation.constraints import compile_schema

            self._constraint = compile_schema(options.json_schema, tokenizer, bundle.stop_ids)
        self._render = _renderer(bundle, options.no_think)
        self._past: List[PastTurn] = []
        self._now: Optional[_Answer] = None
        self.system: Optional[str] = None
        self.set_system(options.system)

    def set_system(self, system: Optional[str]) -> None:
        """From the next turn on, for the earlier ones too. Raises MerinoError where the template takes none, and where
        the context has no room for a message beside it."""
        if system is not None:
            _check_text("the system message", system)
            size, context = len(self._ids(system, (), "")[0]), self.backend.context
            if size + SHORTEST_TURN > context:
                raise MerinoError(f"the system message has {size} tokens with what the template puts around it, and "
                                  f"the context is {context}: no message and answer fit. Shorten the system message, "
                                  "or export with a longer --context.")
        self.system = system

    def reset(self) -> None:
        """Forgets all turns; the system message stays."""
        self._past = []

    def answer(self, text: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Adds a turn: {begin, prompt_tokens, dropped_turns, thinks}, {id, text} per token, and {done, ...} with the
        measurements. This call raises MerinoError for a turn that is not possible, and then nothing has changed.

        stopped: called after each token. Where the caller is interrupted, or leaves, `interrupted` ends the turn.
        """
        from merino_runtime.generation.generate import generate
        from merino_runtime.generation.text import TextStream

        _check_text("the message", text)
        if not text.strip():
            raise MerinoError("the message is empty. Write at least one word.")
        self.interrupted()
        dropped, ids, opening = self._fitting(text)
        stream = TextStream(self._tokenizer, begins=True)
        generation = generate(self.backend, ids, GenerateOptions(self._most or self.backend.context, self._sampling),
                              stop_ids=list(self._stops), stream=stream, constraint=self._constraint)
        self._past = self._past[dropped:]
        self._now = _Answer(text, opening, len(ids), generation, stream)
        return self._events(self._now, dropped, stopped)

    def _events(self, now: "_Answer", dropped: int, stopped: Callable[[], bool]) -> Iterator[Event]:
        from merino_runtime.generation.generate import Done, Token

        yield {"begin": True, "prompt_tokens": now.prompt_tokens, "dropped_turns": dropped,
               "thinks": bool(_opened(now.opening))}
        for event in now.generation:
            if isinstance(event, Done):
                yield self._over(now, event)
                return
            assert isinstance(event, Token)  # a prompt that is too long was refused
            now.ids.append(event.id)
            now.text += event.text
            yield event._asdict()
            if stopped():
                yield from self.interrupted()
                return

    def interrupted(self) -> List[Event]:
        """Ends an answer that is not complete: what there is of it stays in the conversation. Returns its last text and
        its {done}."""
        now = self._now
        if now is None:
            return []
        now.generation.close()
        text = now.stream.finish()
        now.text += text
        done = self._over(now, now.generation.measured())
        return [{"id": None, "text": text}, done] if text else [done]

    def _over(self, now: "_Answer", done: "Done") -> Event:
        self._now = None
        ids = tuple(now.ids[:-1] if now.ids and now.ids[-1] in self._stops else now.ids)
        answer = _opened(now.opening) + now.text
        if now.ids:
            self._past.append(PastTurn(now.user, answer, ids, now.opening))
        thinking, end, rest = answer.rpartition(THINK_END)
        if not end and answer.lstrip().startswith(THINK):
            thinking, rest = answer, ""
        return dict(done._asdict(), done=True, prompt_tokens=now.prompt_tokens, context=self.backend.context,
                    context_used=now.prompt_tokens + len(now.ids), turns=len(self._past), answer=rest,
                    thinking=thinking.replace(THINK, "", 1) if thinking else None)

    def _fitting(self, text: str) -> Tuple[int, List[int], str]:
        """How many of the oldest turns are left out, the prompt's ids, and the text that opens the answer."""
        context = self.backend.context
        needed = max(1, min(self._most or context, context // ROOM)) if self._shifts else 1
        for dropped in range(len(self._past) + 1):
            ids, opening = self._ids(self.system, self._past[dropped:], text)
            # What is kept behind a gap is computed again: where one is made, it holds for some turns.
            room = max(needed, context // 2) if 0 < dropped < len(self._past) else needed
            if context - len(ids) >= room:
                return dropped, ids, opening
            if not self._shifts and self._past:
                raise MerinoError(
                    f"the conversation has {len(ids)} tokens with this message and the context is {context}: no answer "
                    "fits. Start again with /reset, or start with --overflow shift, which drops the oldest turns; an "
                    "export with a longer --context holds more.")
        raise MerinoError(f"the message has {len(ids)} tokens with what the template puts around it, and the context "
                          f"is {context}: no answer fits. Shorten it, or export with a longer --context.")

    def _ids(self, system: Optional[str], past: Sequence[PastTurn], text: str) -> Tuple[List[int], str]:
        pieces = self._render(system, [Turn(each.user, each.answer) for each in past], text)
        encode = self._tokenizer.encode_pieces
        ids: List[int] = []
        group: List[Tuple[str, bool]] = []
        for index, piece in enumerate(pieces):
            turn = None if piece.turn is None else past[piece.turn]
            if turn and piece.text == turn.answer and pieces[index - 1].text == turn.opening:
                ids += [*encode(group), *turn.ids]
                group = []
            else:
                group.append((piece.text, piece.own))
        return ids + encode(group), pieces[-1].text


def _check_text(what: str, text: Any) -> None:
    if not isinstance(text, str):
        raise MerinoError(f"{what} is {text!r:.80}, allowed is a string. Decode bytes first.")


class _Answer:
    """One that is being generated."""

    def __init__(self, user: str, opening: str, prompt_tokens: int, generation: "Generation", stream: "TextStream"
                 ) -> None:
        self.user, self.opening, self.prompt_tokens = user, opening, prompt_tokens
        self.generation, self.stream = generation, stream
        self.ids: List[int] = []
        self.text = ""


def _opened(opening: str) -> str:
    """The thinking that the template's own text begins for the answer; mostly none."""
    start = opening.rfind(THINK)
    return opening[start:] if start > opening.rfind(THINK_END) else ""


def _renderer(bundle: Bundle, no_think: bool) -> Callable[[Optional[str], Sequence[Turn], str], List[Piece]]:
    """(system, turns, user's text) -> pieces. Raises MerinoError where the bundle has no template, or one that does not
    know of `no_think`."""
    chat = bundle.chat
    if chat is None:
        raise MerinoError(f"bundle {bundle.name!r} has no chat template: its model was not trained to chat, or was "
                          "exported without. `generate` continues a text. To chat, export a model of that kind (they "
                          "are often called -Instruct) from a folder with its chat_template.jinja or "
                          "tokenizer_config.json.")
    parts = chat.parts
    if parts is not None:
        known = parts.no_think is not None
        render = lambda system, turns, user: by_parts(parts, system, turns, user, no_think)  # noqa: E731
    else:
        template = _template_of(bundle, chat)
        messages = messages_of(None, (), "x")
        known = rendered(template, chat.tokens, messages, True) != rendered(template, chat.tokens, messages)
        render = lambda system, turns, user: by_jinja(template, chat, system, turns, user, no_think)  # noqa: E731
    if no_think and not known:
        raise MerinoError(f"the chat template of {bundle.name!r} does not know of answers without thinking "
                          "(enable_thinking). Leave out --no-think.")
    return render


def _template_of(bundle: Bundle, chat: Chat) -> Callable[..., str]:
    path = file_path(bundle, chat.template)
    assert path is not None, chat.template  # bundle.json is refused without
    return compiled(read_text(path, "a chat template", "Copy or export the bundle again."), path)
