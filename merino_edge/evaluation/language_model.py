"""Run a bundle as a language model of lm-evaluation-harness, through the board's runtime, so that the scores are those
of the board.

Requests are scored in the order of their ids, so that a common beginning is computed once: it stays in the KV cache. A
graph that returns the logits of all positions scores a request in one prefill. Another graph takes a decode step for
each token behind the first of a continuation, with the same figures.
"""

from collections.abc import Callable, Sequence
from functools import partialmethod
from pathlib import Path
from typing import Any

from merino_edge.bundles.files import TOKENIZER_FILE
from merino_edge.evaluation.request_cache import RequestCache, request_hash
from merino_edge.storage.extras import import_extra
from merino_edge.text.scoring import log_likelihood, logits_behind
from merino_edge.text.tokenizer import load_tokenizer, prefix_id
from merino_runtime.api import LanguageModel
from merino_runtime.chat.template import compiled, rendered
from merino_runtime.errors import MerinoError
from merino_runtime.generation.generate import Generation, Token
from merino_runtime.generation.text import TextStream
from merino_runtime.io.json_file import read_text
from merino_runtime.sampling import GREEDY, GenerateOptions

MOST_NEW_TOKENS = 256  # of a task that names no number, as lm-eval's own models have it

_lm_eval = import_extra("lm_eval.api.model")
_utils = import_extra("lm_eval.utils")
_model_utils = import_extra("lm_eval.models.utils")
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
        self._template: tuple[str, Any] | None = None  # the chat template's text, and the same compiled
        if bundle.chat:
            path = f"{bundle.folder}/{bundle.chat.template}"
            text = read_text(path, "a chat template", "Copy or export the bundle again.")
            self._template = text, compiled(text, path)

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
        """Return the ids of a text. If it begins with the first token's text, as chat templates write it, it gets no
        second one."""
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
        """Return, for each request, the log-likelihood of its continuation and whether each token of it is the
        likeliest."""
        scores: dict[int, tuple[float, bool]] = {}
        most = self.max_length
        for index in sorted(range(len(requests)), key=lambda index: requests[index][1] + requests[index][2]):
            key, context, continuation = requests[index]
            if len(continuation) > most:
                raise MerinoError(
                    f"a text to score has {len(continuation)} tokens, and the context of {self.model.bundle.name} is"
                    f" {most}: export with a longer --context"
                )
            self.truncated += len(context) + len(continuation) > most + 1
            ids = (context + continuation)[-(most + 1) :][:-1]
            rows = logits_behind(self.runtime, ids, len(ids) - len(continuation))
            scores[index] = log_likelihood(rows, continuation)
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, scores[index])
        return [scores[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        sums = []
        for (text,) in (request.args for request in requests):
            windows = _utils.get_rolling_token_windows(
                token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length,
                context_len=1,
            )  # fmt: skip
            pairs = [(None, *_utils.make_disjoint_window(window)) for window in windows]
            sums.append(sum(score for score, _ in self._loglikelihood_tokens(pairs)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), sums[-1])
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """Generate greedily. A context that leaves no room for the new tokens loses its beginning."""
        texts = []
        for context, task_options in (request.args for request in requests):
            options = _model_utils.normalize_gen_kwargs(dict(task_options), MOST_NEW_TOKENS)
            if options.get("do_sample"):
                raise MerinoError("a task samples, and only greedy decoding is supported: leave that task out")
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
            text = ""
            events = Generation(
                self.runtime, ids[-room:], GenerateOptions(new, GREEDY),
                stop_ids=self.model.bundle.stop_ids or (self.eot_token_id,), stream=TextStream(self.model.tokenizer),
            )  # fmt: skip
            for event in events:
                text += event.text if isinstance(event, Token) else ""
                if any(stop and stop in text for stop in until):
                    events.close()
                    break
            texts.append(str(_model_utils.postprocess_generated_text(text, until, None)))
            self.cache_hook.add_partial("generate_until", (context, task_options), texts[-1])
        return texts


class CachedLM(_lm_eval.LM):  # type: ignore[name-defined]
    """A model of lm-eval that computes only the requests whose results are not in the cache.

    `model`: its hash. `progress` is called at each result, with the counts of results and of requests to compute.
    """

    def __init__(
        self, lm: Any, cache: RequestCache, model: str, task: str, progress: Callable[[int, int, str], None]
    ) -> None:
        super().__init__()
        self._lm, self._cache, self._model, self._task, self._progress = lm, cache, model, task, progress
        self._done = self._total = 0
        lm.set_cache_hook(self)

    def add_partial(self, kind: str, request: Sequence[Any], result: Any) -> None:
        """Store a result; lm-eval's models call this with each."""
        self._cache.add(self._model, request_hash(kind, request), result)
        self._done += 1
        self._progress(self._done, max(self._total, self._done), self._task)

    def _all(self, kind: str, requests: list[Any]) -> list[Any]:
        results = [self._cache.get(self._model, request_hash(kind, request.args)) for request in requests]
        missing = [index for index, result in enumerate(results) if result is None]
        new_requests = [requests[index] for index in missing]
        self._total += len(new_requests)
        new_results = getattr(self._lm, kind)(new_requests, disable_tqdm=True) if new_requests else []
        for index, result in zip(missing, new_results, strict=True):
            results[index] = result
        return results

    loglikelihood = partialmethod(_all, "loglikelihood")
    loglikelihood_rolling = partialmethod(_all, "loglikelihood_rolling")
    generate_until = partialmethod(_all, "generate_until")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(self._lm.apply_chat_template(chat_history, add_generation_prompt))

    @property
    def tokenizer_name(self) -> str:
        return str(self._lm.tokenizer_name)
