"""The Python API: open a bundle, stream text, hold a conversation, fork, save and load the cache (docs/python.md).

The commands use only this. numpy and a backend are imported when a model is opened.
"""
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, NamedTuple, Optional, Sequence

from merino_runtime.backends import choose_backend
from merino_runtime.backends.threads import thread_counts
from merino_runtime.bundle import Bundle, load_bundle
from merino_runtime.bundle.fit import check_bundle_fits
from merino_runtime.bundle.requirements import require
from merino_runtime.bundle.verified import check_files_once
from merino_runtime.errors import MerinoError
from merino_runtime.sampling import Form, GenerateOptions

if TYPE_CHECKING:
    import numpy as np

    from merino_runtime.backends.backend import Backend
    from merino_runtime.chat.conversation import ChatSession
    from merino_runtime.generation.constraints import Compiled
    from merino_runtime.generation.generate import Done, Generation
    from merino_runtime.generation.text import Tokenizer


def open_model(path: str, *, threads: Optional[int] = None, prefill_threads: Optional[int] = None,
               verify: bool = True, backend: Optional[str] = None,
               say: Callable[[str], None] = lambda _: None) -> "LanguageModel":
    """Open the bundle in the folder `path`. Raise MerinoError if it is damaged or this machine cannot run it.

    threads: for decode, and for prefill if prefill_threads is None; None: the bundle's choice, else the machine's.
    verify: hash files that changed since they were last hashed. backend: `onnxruntime` or `tensorrt`; None: the
    machine's and the bundle's choice. say: gets notes on slow settings and on the chosen backend.
    """
    bundle = load_bundle(path, verify=False)
    if verify:
        check_files_once(bundle)
    chosen = choose_backend(bundle, backend, say)
    sessions = thread_counts(bundle, threads, prefill_threads).sessions
    for note in check_bundle_fits(bundle, sessions=sessions, backend=chosen):
        say(note)
    require("numpy")  # imported only now, because bundles that cannot run here were refused before
    from merino_runtime.backends import open_backend

    return LanguageModel(bundle, open_backend(bundle, threads, prefill_threads, chosen, say))


class Mismatch(NamedTuple):
    position: int  # in greedy_ids, from 0
    expected: int
    actual: int


def selftest(bundle: Bundle, backend: "Backend") -> Optional[Mismatch]:
    """Compare greedy decoding of the golden prompt with the golden ids, in an empty cache -> the first difference, or
    None. Logits are not compared, because kernels of different CPUs round differently."""
    golden = bundle.golden
    if not golden.prompt_ids or not golden.greedy_ids:
        raise MerinoError(f"bundle {bundle.name!r} has no golden ids to compare with. Export it again.")
    backend.select(None)
    backend.truncate(0)
    logits = backend.prefill(golden.prompt_ids)
    for position, expected in enumerate(golden.greedy_ids):
        token_id = int(logits.argmax())
        if token_id != expected or not math.isfinite(logits[token_id]):
            return Mismatch(position, expected, token_id)
        if position + 1 < len(golden.greedy_ids):
            logits = backend.step(token_id)
    return None


def path_of(path: Any) -> str:
    """Return a path as text. Raise MerinoError for another type: Python would take a number as a file descriptor."""
    if not isinstance(path, (str, Path)):
        raise MerinoError(f"the path is {path!r:.80}, and must be text. Give the path of a file.")
    return str(path)


class LanguageModel:
    """A bundle with one KV cache. It runs one generation at a time; `fork` returns further models. Close it, or use
    `with`. A generation that is resumed after another one used the cache raises MerinoError."""

    def __init__(self, bundle: Bundle, backend: "Backend", tokenizer: Optional["Tokenizer"] = None) -> None:
        self.bundle = bundle
        self.backend = backend
        self._tokenizer = tokenizer

    def __enter__(self) -> "LanguageModel":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer, opened at its first use. Raise MerinoError if the bundle has none."""
        if self._tokenizer is None:
            from merino_runtime.generation.text import open_tokenizer

            self._tokenizer = open_tokenizer(self.bundle)
        return self._tokenizer

    def generate(self, prompt: str, **options: Any) -> "Generation":
        """Continue a prompt, event by event: a Token per id, and at the end a Done with the measurements.

        options: the fields of `sampling.GenerateOptions`. stops: the text ends before the first of these strings.
        overflow: `stop`, `error` or `shift` if the context is too short. json_schema: the text is JSON that is valid
        for this schema. tools: the text is a call of one of these tools (OpenAI's list), as
        {"name":...,"arguments":{...}}. regex: the whole text matches it. grammar: the text is one of this GBNF grammar.
        Such a text is complete if Done has the stop_reason `eos` (docs/constrained.md).
        top: a TokenLogprobs follows each Token that is not forced, with the log-probabilities of the token and of the
        `top` likeliest ids, by the model's own logits. adapter: the name of one of the bundle's LoRA adapters; the
        cache of another one is emptied. Ids that the cache shares with the prompt are not computed
        again. Raise MerinoError for a request that cannot be met.
        """
        checked = GenerateOptions(**options)
        if not prompt:  # refused even if the tokenizer would add a first token
            raise MerinoError("the prompt is empty. Give at least one word.")
        return self._generation(self.tokenizer.encode(prompt), checked)

    def _generation(self, ids: Sequence[int], options: GenerateOptions) -> "Generation":
        from merino_runtime.generation.generate import Generation
        from merino_runtime.generation.text import TextStream

        return Generation(
            self.backend, ids, options, stop_ids=() if options.ignore_eos else self.bundle.stop_ids,
            stream=TextStream(self.tokenizer, options.stops),
            constraint=self.constraint(options.json_schema, options.tools, options.regex, options.grammar))

    def constraint(self, json_schema: Any = None, tools: Any = None, regex: Optional[str] = None,
                   grammar: Optional[str] = None) -> Optional["Compiled"]:
        """Compile what is not None: a schema, a list of tools, a regular expression or a grammar in GBNF."""
        from merino_runtime.generation.constraints import compile_form, compile_tools

        if tools is not None:
            return compile_tools(tools, "required", self.tokenizer, self.bundle.stop_ids)
        forms = {"json": json_schema, "regex": regex, "grammar": grammar}
        return next((compile_form(Form(kind, value), self.tokenizer, self.bundle.stop_ids)
                     for kind, value in forms.items() if value is not None), None)

    def embed(self, text: str) -> "np.ndarray":
        """Return a text's embedding [width]: the mean of its tokens' last hidden states, with length 1. Raise
        MerinoError if the bundle was exported without embeddings."""
        from merino_runtime.backends.backend import unit

        self.backend.select(None)
        self.backend.truncate(0)
        return unit(self.backend.embed(self.tokenizer.encode(text)))

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Continue a prompt -> its text in parts, as they are generated. options: as of `generate`."""
        texts = (getattr(event, "text", "") for event in self.generate(prompt, **options))
        return filter(None, texts)

    def conversation(self) -> "Conversation":
        """Start a plain dialogue, whose earlier turns stay in the cache."""
        return Conversation(self)

    def chat(self, **options: Any) -> "ChatSession":
        """Start a conversation in the model's chat template, whose earlier turns stay in the cache. options: the fields
        of `merino_runtime.chat.conversation.ChatOptions`. Raise MerinoError if the bundle has no template."""
        from merino_runtime.chat.conversation import ChatOptions, ChatSession

        return ChatSession(self.bundle, self.backend, self.tokenizer, ChatOptions(**options))

    def fork(self) -> "LanguageModel":
        """Return a model with a copy of the cache and the same weights. Both are closed separately, in any order, and
        may run in two threads."""
        return LanguageModel(self.bundle, self.backend.fork(), self._tokenizer)

    def save_cache(self, path: str) -> None:
        """Write the cache to a file, whole or not at all. Raise MerinoError if that fails."""
        from merino_runtime.generation.cache_file import save_cache

        save_cache(self.bundle, self.backend, path_of(path))

    def load_cache(self, path: str) -> None:
        """Read a file of `save_cache`. A prompt that begins with its ids then computes only the rest. Raise MerinoError
        if the file is damaged or was written by another bundle."""
        from merino_runtime.generation.cache_file import load_cache

        load_cache(self.bundle, self.backend, path_of(path))

    def selftest(self) -> Optional[Mismatch]:
        """Compare greedy decoding with the bundle's golden ids -> the first difference, or None."""
        return selftest(self.bundle, self.backend)

    def close(self) -> None:
        """Free the cache, and with the last fork the weights."""
        self.backend.close()


class Conversation:
    """Text and replies in turns with one model. Each turn computes only its new text. The caller adds marks between
    turns if the model was trained with them."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self.ids: List[int] = []  # of all turns, texts and replies
        self.done: Optional["Done"] = None  # measurements of the last complete reply

    def reply(self, text: str, **options: Any) -> Iterator[str]:
        """Add text and stream the reply in parts. options: as of `LanguageModel.generate`. If the reply is not read to
        its end, only the part that was read counts."""
        model = self._model
        if not text and not self.ids:
            raise MerinoError("the conversation is empty. Begin it with at least one word.")
        ids = [*self.ids, *(model.tokenizer.encode(text, begins=not self.ids) if text else [])]
        generation = model._generation(ids, GenerateOptions(**options))
        self.ids, self.done = ids, None
        return self._texts(generation)

    def _texts(self, generation: "Generation") -> Iterator[str]:
        from merino_runtime.generation.generate import Done, Token

        for event in generation:
            if isinstance(event, Token):
                self.ids.append(event.id)
                if event.text:
                    yield event.text
            elif isinstance(event, Done):
                self.done = event
