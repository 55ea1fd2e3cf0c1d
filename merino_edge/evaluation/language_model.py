"""A bundle as a language model of lm-evaluation-harness, through the board's runtime, so that the scores are those of
the board.

Requests are scored in the order of their ids, so that a common beginning is computed once: the cache keeps it. A graph
that returns the logits of all positions scores a request in one prefill, another graph takes a decode step for each
token behind the first of an answer; the figures are the same.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from merino_edge.bundles.files import TOKENIZER_FILE
from merino_edge.evaluation.answers import Answers, hashed
from merino_edge.evaluation.extra import needed
from merino_edge.text.scoring import log_likelihood, logits_behind
from merino_edge.text.tokenizer import load_tokenizer, prefix_id
from merino_runtime.api import LanguageModel
from merino_runtime.chat.template import compiled, rendered
from merino_runtime.errors import MerinoError
from merino_runtime.generation.generate import Token, generate
from merino_runtime.generation.text import TextStream
from merino_runtime.io.json_file import read_text
from merino_runtime.sampling import GREEDY, GenerateOptions

MOST_NEW_TOKENS = 256  # of a task that names no number, as lm-eval's own models have it

_lm_eval = needed("lm_eval.api.model")
_utils = needed("lm_eval.utils")
_model_utils = needed("lm_eval.models.utils")
Request = tuple[Any, list[int], list[int]]  # key, context, continuation


class BundleLM(_lm_eval.TemplateLM):  # type: ignore[name-defined]
    """`truncated`: how many requests were longer than the context and lost their beginning."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model, self.runtime = model, model.backend
        self.truncated = 0
        bundle = model.bundle
        tokens = bundle.chat.tokens if bundle.chat else {}
        tokenizer = load_tokenizer(Path(bundle.folder) / TOKENIZER_FILE)
        self._prefix_id = prefix_id(bundle.name, tokenizer, tokens, bundle.stop_ids)
        self._prefix_text = tokenizer.id_to_token(self._prefix_id) or ""
        self._template = template_of(model)

    @property
    def eot_token_id(self) -> int:
        return self.model.bundle.stop_ids[0] if self.model.bundle.stop_ids else self._prefix_id

    @property
    def prefix_token_id(self) -> int:
        return self._prefix_id

    @property
    def max_length(self) -> int:
        return self.runtime.context

    @property
    def tokenizer_name(self) -> str:
        return self.model.bundle.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """A text that begins with the first token's own text, as chat templates write it, gets no second one."""
        if add_special_tokens is None:
            add_special_tokens = not (self._prefix_text and string.startswith(self._prefix_text))
        return self.model.tokenizer.encode(string, begins=add_special_tokens)

    def chat_template(self, chat_template: bool | str = False) -> str | None:  # noqa: ARG002
        return self._template[0] if self._template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if self._template is None:
            raise MerinoError(f"{self.model.bundle.name} has no chat template: leave out --chat-template")
        if not add_generation_prompt:
            raise MerinoError("tasks that begin the model's answer are not supported: leave out --chat-template")
        bundle = self.model.bundle
        tokens = bundle.chat.tokens if bundle.chat else {}
        return rendered(self._template[1], tokens, chat_history)

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[tuple[float, bool]]:
        scores: dict[int, tuple[float, bool]] = {}
        order = sorted(range(len(requests)), key=lambda place: requests[place][1] + requests[place][2])
        for place in order:
            key, context, continuation = requests[place]
            scores[place] = self._scored(context, continuation)
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, scores[place])
        return [scores[place] for place in range(len(requests))]

    def _scored(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Log-likelihood of the continuation, and whether each of its tokens is the likeliest."""
        most = self.max_length
        if len(continuation) > most:
            raise MerinoError(
                f"a text to score has {len(continuation)} tokens, and the context of {self.model.bundle.name} is"
                f" {most}: export with a longer --context"
            )
        self.truncated += len(context) + len(continuation) > most + 1
        ids = (context + continuation)[-(most + 1) :][:-1]
        rows = logits_behind(self.runtime, ids, len(ids) - len(continuation))
        return log_likelihood(rows, continuation)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        sums = []
        for (text,) in (request.args for request in requests):
            windows = _utils.get_rolling_token_windows(
                token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length,
                context_len=1,
            )  # fmt: skip
            pairs = [(None, *_utils.make_disjoint_window(window)) for window in windows]
            sums.append(sum(each for each, _ in self._loglikelihood_tokens(pairs)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), sums[-1])
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """Greedy. A context that leaves no room for the new tokens loses its beginning."""
        texts = []
        for context, options in (request.args for request in requests):
            texts.append(self._continued(context, _model_utils.normalize_gen_kwargs(dict(options), MOST_NEW_TOKENS)))
            self.cache_hook.add_partial("generate_until", (context, options), texts[-1])
        return texts

    def _continued(self, context: str, options: dict[str, Any]) -> str:
        if options.get("do_sample"):
            raise MerinoError("a task samples its answers, and greedy ones alone are supported: leave that task out")
        until = _model_utils.handle_stop_sequences(options.get("until"), None)
        new = options["max_gen_toks"]
        room = self.max_length - new
        if room <= 0:
            raise MerinoError(
                f"a task generates up to {new} tokens, and the context of {self.model.bundle.name} is"
                f" {self.max_length}: export with a longer --context"
            )
        ids = self.tok_encode(context)
        self.truncated += len(ids) > room
        stream, text = TextStream(self.model.tokenizer), ""
        events = generate(
            self.runtime, ids[-room:], GenerateOptions(new, GREEDY),
            stop_ids=self.model.bundle.stop_ids or (self.eot_token_id,), stream=stream,
        )  # fmt: skip
        for event in events:
            text += event.text if isinstance(event, Token) else ""
            if any(stop and stop in text for stop in until):
                events.close()
                break
        return str(_model_utils.postprocess_generated_text(text, until, None))


def steps_of(lm: BundleLM, requests: Sequence[Any]) -> int:
    """How many tokens of the requests stand behind the first that is scored."""
    texts = [request.args[-1] for request in requests if request.request_type.startswith("loglikelihood")]
    return sum(max(0, len(lm.tok_encode(text, add_special_tokens=False)) - 1) for text in texts)


def template_of(model: LanguageModel) -> tuple[str, Any] | None:
    """The chat template's text, and the same compiled."""
    chat = model.bundle.chat
    if chat is None:
        return None
    path = f"{model.bundle.folder}/{chat.template}"
    text = read_text(path, "a chat template", "Copy or export the bundle again.")
    return text, compiled(text, path)


class _Hook:
    """lm-eval's models call it with each answer."""

    def __init__(self, answers: Answers, model: str, answered: Callable[[], None]) -> None:
        self._answers, self._model, self._answered = answers, model, answered

    def add_partial(self, kind: str, request: Sequence[Any], answer: Any) -> None:
        self._answers.keep(self._model, hashed(kind, request), answer)
        self._answered()


class Resumed(_lm_eval.LM):  # type: ignore[name-defined]
    """A model of lm-eval that computes only requests which have no answer yet.

    `begun` is called with the requests to compute, `answered` at each answer.
    """

    def __init__(
        self, lm: Any, answers: Answers, model: str, begun: Callable[[list[Any]], None] = lambda _: None,
        answered: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._lm, self._answers, self._model, self._begun = lm, answers, model, begun
        lm.set_cache_hook(_Hook(answers, model, answered))

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        return self._all("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Any]) -> list[Any]:
        return self._all("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Any]) -> list[Any]:
        return self._all("generate_until", requests)

    def _all(self, kind: str, requests: list[Any]) -> list[Any]:
        keys = [hashed(kind, request.args) for request in requests]
        answers = [self._answers.get(self._model, key) for key in keys]
        missing = [place for place, answer in enumerate(answers) if answer is None]
        requested = [requests[place] for place in missing]
        self._begun(requested)
        given = getattr(self._lm, kind)(requested, disable_tqdm=True) if requested else []
        for place, answer in zip(missing, given, strict=True):
            answers[place] = answer
        return answers

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(self._lm.apply_chat_template(chat_history, add_generation_prompt))

    @property
    def tokenizer_name(self) -> str:
        return str(self._lm.tokenizer_name)
