"""The Python API: open a bundle, stream text, hold a conversation, fork, save and load the cache (docs/python.md).

The verbs of the command line use nothing else. numpy and a backend are imported when a model is opened.
"""
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Optional, Sequence

from merino_runtime.backends.choice import choose_backend
from merino_runtime.backends.threads import thread_counts
from merino_runtime.bundle import Bundle, load_bundle
from merino_runtime.bundle.fit import check_bundle_fits
from merino_runtime.bundle.requirements import require
from merino_runtime.bundle.verified import check_files_once
from merino_runtime.errors import MerinoError
from merino_runtime.sampling import Sampling

if TYPE_CHECKING:
    from merino_runtime.backends.backend import Backend
    from merino_runtime.chat.conversation import ChatSession
    from merino_runtime.generation.constraints import Compiled
    from merino_runtime.generation.generate import Done, Generation
    from merino_runtime.generation.selftest import Mismatch
    from merino_runtime.generation.text import Tokenizer


def open_model(path: str, *, threads: Optional[int] = None, prefill_threads: Optional[int] = None,
               verify: bool = True, allow_slow: bool = False, backend: Optional[str] = None,
               say: Callable[[str], None] = lambda _: None) -> "LanguageModel":
    """Opens the bundle in the folder `path`. MerinoError if it is damaged or this machine cannot run it.

    threads: of decode, and of prefill if prefill_threads is None; None: the bundle's choice, else by the machine.
    verify: hash files that changed since they were last hashed. allow_slow: run although this CPU lacks the format's
    instructions. backend: `onnxruntime` or `tensorrt`; None: the machine's and the bundle's choice. say: gets notes on
    what will be slow, and on the choice.
    """
    bundle = load_bundle(path, verify=False)
    if verify:
        check_files_once(bundle)
    chosen = choose_backend(bundle, backend, say)
    sessions = thread_counts(bundle, threads, prefill_threads).sessions
    for note in check_bundle_fits(bundle, allow_slow=allow_slow, sessions=sessions, backend=chosen):
        say(note)
    require("numpy")  # imported below, and only now: what cannot run here was refused before
    from merino_runtime.backends import open_backend

    return LanguageModel(bundle, open_backend(bundle, threads, prefill_threads, chosen, say))


class LanguageModel:
    """A bundle with one KV cache. It runs one generation at a time; `fork` gives more. Close it, or use `with`.

    A generation that is resumed after another one used the cache raises MerinoError.
    """

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
        """Opened at its first use. MerinoError if the bundle has none."""
        if self._tokenizer is None:
            from merino_runtime.generation.text import open_tokenizer

            self._tokenizer = open_tokenizer(self.bundle)
        return self._tokenizer

    def generate(self, prompt: str, *, max_new_tokens: int = 128, sampling: Optional[Sampling] = None,
                 stops: Sequence[str] = (), ignore_eos: bool = False, overflow: str = "stop",
                 json_schema: Any = None, tools: Any = None, top: Optional[int] = None) -> "Generation":
        """Continues a prompt, event by event: a Token per id, and a Done with the measurements at the end.

        sampling None: the defaults of `Sampling`. stops: the text ends before the first of these strings. overflow:
        `stop`, `error` or `shift` if the context is too short. Ids that the cache shares with the prompt are not
        computed again. json_schema: the text is JSON that this schema takes. tools: it is a call of one of these, a
        list as OpenAI's API has it, as {"name":...,"arguments":{...}}. Where Done has the stop_reason `eos`, such a
        text is complete (docs/constrained.md). top: a Likely follows each Token that the schema or the tools do not
        force, with its log-probability by the model's own logits and with `top` of the likeliest ids. MerinoError for a
        request that cannot be met.
        """
        from merino_runtime.generation.generate import generate_text

        return generate_text(
            self.bundle, self.backend, self.tokenizer, prompt, max_new_tokens=max_new_tokens,
            sampling=Sampling() if sampling is None else sampling, stops=stops, ignore_eos=ignore_eos,
            overflow=overflow, constraint=self.constraint(json_schema, tools), top=top)

    def constraint(self, json_schema: Any = None, tools: Any = None) -> Optional["Compiled"]:
        """Made once for a schema or a list of tools; None where both are None."""
        if json_schema is None and tools is None:
            return None
        if json_schema is not None and tools is not None:
            raise MerinoError("a JSON schema and tools were given: an answer follows one of them. Leave one out.")
        from merino_runtime.generation.constraints import compile_schema, compile_tools

        if tools is None:
            return compile_schema(json_schema, self.tokenizer, self.bundle.stop_ids)
        return compile_tools(tools, "required", self.tokenizer, self.bundle.stop_ids)

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Continues a prompt, piece by piece of text. options: those of `generate`."""
        return _texts(self.generate(prompt, **options))

    def conversation(self) -> "Conversation":
        """A dialogue whose earlier turns stay in the cache."""
        return Conversation(self)

    def chat(self, **options: Any) -> "ChatSession":
        """A conversation in the model's own chat template, whose earlier turns stay in the cache. options: those of
        `merino_runtime.chat.conversation.ChatSession`. MerinoError where the bundle has no template."""
        from merino_runtime.chat.conversation import ChatSession

        return ChatSession(self.bundle, self.backend, self.tokenizer, **options)

    def fork(self) -> "LanguageModel":
        """A model with a copy of the cache over the same weights. Both are closed separately, in any order, and may run
        in two threads."""
        return LanguageModel(self.bundle, self.backend.fork(), self._tokenizer)

    def save_cache(self, path: str) -> None:
        """Writes the cache to a file, whole or not at all. MerinoError if that fails."""
        from merino_runtime.generation.cache_file import save_cache

        save_cache(self.bundle, self.backend, path)

    def load_cache(self, path: str) -> None:
        """Reads a file of `save_cache`. A prompt that begins with its ids computes the rest alone. MerinoError if the
        file is damaged or was written by another bundle."""
        from merino_runtime.generation.cache_file import load_cache

        load_cache(self.bundle, self.backend, path)

    def selftest(self) -> Optional["Mismatch"]:
        """Compares greedy decoding with the bundle's golden ids: the first difference, None if there is none."""
        from merino_runtime.generation.selftest import selftest

        return selftest(self.bundle, self.backend)

    def close(self) -> None:
        """Frees the cache, and the weights with the last fork."""
        self.backend.close()


class Conversation:
    """Text and replies in turns over one model. Each turn computes only its new text.

    The text is passed on as it is: marks between turns, if the model was trained with such, are the caller's.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self.ids: List[int] = []  # of all turns, texts and replies
        self.done: Optional["Done"] = None  # measurements of the last complete reply

    def reply(self, text: str, *, max_new_tokens: int = 128, sampling: Optional[Sampling] = None,
              stops: Sequence[str] = (), ignore_eos: bool = False, overflow: str = "stop") -> Iterator[str]:
        """Adds text and streams the reply, piece by piece. Options as of `LanguageModel.generate`. A reply that is not
        read to its end counts as far as it was read."""
        from merino_runtime.generation.generate import generate
        from merino_runtime.generation.text import TextStream

        model = self._model
        if not text and not self.ids:
            raise MerinoError("the conversation is empty. Begin it with at least one word.")
        ids = [*self.ids, *(model.tokenizer.encode(text, begins=not self.ids) if text else [])]
        generation = generate(
            model.backend, ids, max_new_tokens=max_new_tokens, sampling=Sampling() if sampling is None else sampling,
            stop_ids=() if ignore_eos else model.bundle.stop_ids, stream=TextStream(model.tokenizer, stops),
            overflow=overflow)
        self.ids, self.done = ids, None
        return self._pieces(generation)

    def _pieces(self, generation: "Generation") -> Iterator[str]:
        from merino_runtime.generation.generate import Done, Token

        for event in generation:
            if isinstance(event, Token):
                self.ids.append(event.id)
                if event.text:
                    yield event.text
            elif isinstance(event, Done):
                self.done = event


def _texts(generation: "Generation") -> Iterator[str]:
    from merino_runtime.generation.generate import Token

    for event in generation:
        if isinstance(event, Token) and event.text:
            yield event.text
