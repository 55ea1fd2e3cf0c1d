"""Measure the perplexity of any source on a text: per token, per word and per byte, with an interval over its
documents.

Each document is scored from its first token on, behind the token that begins a text. A document longer than the context
is scored in windows that overlap by half the context, so that each token behind the first window is predicted from at
least half a context. Figures per word and per byte are comparable between models with different tokenizers.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from merino_edge.evaluation.models import SourceModel, open_source
from merino_edge.evaluation.request_cache import RequestCache, request_hash
from merino_edge.evaluation.run import Progress, Say, circumstances
from merino_edge.records.evaluation import Evaluation, Metric
from merino_edge.text.documents import check_files, read_texts
from merino_edge.text.scoring import log_likelihood, logits_behind
from merino_edge.text.tokenizer import prefix_id
from merino_runtime.errors import MerinoError

TASK = "perplexity"
LEAST_DOCUMENTS = 5  # for an interval
RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
Logits = Callable[[list[int], int], Iterator[np.ndarray]]  # ids, first -> [m, vocab] after each from ids[first] on


def evaluate_text(
    sources: Sequence[str], text: Path, limit: int | None, cache: RequestCache, progress: Progress = lambda *_: None,
    say: Say = lambda _: None,
) -> Iterator[Evaluation]:  # fmt: skip
    """Yield a row per source. Raise MerinoError for a source or a text that cannot be read, and if a tokenizer does not
    decode the ids to the same text."""
    check_files([text], "--perplexity")
    documents, (file,) = read_texts([text], "--perplexity")
    used = documents[:limit]
    for what in sources:
        with open_source(what, say) as model:
            start = time.monotonic()
            ids = [document_ids(model, document, number) for number, document in enumerate(used, 1)]
            scores = []
            try:
                for number, (document, its_ids) in enumerate(zip(used, ids, strict=True), 1):
                    loss = loss_of(model, its_ids, cache)
                    scores.append((loss, len(its_ids), len(document.split()), len(document.encode())))
                    progress(number, len(used), f"documents, {model.name}")
            finally:
                cache.write()
            yield Evaluation(
                **model.facts, task=TASK, task_version=None, metrics=metrics_of(scores), items=len(used),
                of_items=len(documents), scored_tokens=sum(map(len, ids)), few_shot=0,
                chat_template=False, truncated=0, seconds=round(time.monotonic() - start, 1), **circumstances(file),
            )  # fmt: skip


def document_ids(model: SourceModel, document: str, number: int) -> list[int]:
    """Return the ids of a document. Raise MerinoError if they do not decode to the text, whose words and bytes are
    counted."""
    ids: list[int] = model.tokenizer.encode(document, add_special_tokens=False).ids
    decoded = model.tokenizer.decode(ids, skip_special_tokens=False)
    if decoded != document:
        start = len(os.path.commonprefix([decoded, document]))
        raise MerinoError(
            f"the tokenizer of {model.name} does not give back document {number} of --perplexity: at character"
            f" {start + 1} {document[start : start + 20]!r} becomes {decoded[start : start + 20]!r}, so a figure per"
            " byte would be of another text. Change the text there, or compare on text that it keeps"
        )
    return ids


def loss_of(model: SourceModel, ids: list[int], cache: RequestCache) -> float:
    """Return the loss of all ids in nats, from the cache or computed. Each id is predicted once."""
    key = request_hash(TASK, [ids])
    loss = cache.get(model.facts["sha256"], key)
    if loss is None:
        logits, context, stride = logits_of(model), model.context, max(1, model.context // 2)
        inputs = [prefix_id(model.name, model.tokenizer, model.tokens, model.stop_ids), *ids]
        loss, done = 0.0, 0
        while done < len(ids):
            end = min(len(ids), context if not done else done + stride)
            start = max(0, end - context)
            loss -= log_likelihood(logits(inputs[start:end], done - start), ids[done:end])[0]
            done = end
        cache.add(model.facts["sha256"], key, loss)
    return float(loss)


def logits_of(model: SourceModel) -> Logits:
    """Return a function that computes logits, by the board's runtime for a bundle."""
    if model.bundle:
        backend = model.bundle.backend
        return lambda ids, first: logits_behind(backend, ids, first)
    import torch

    def run(ids: list[int], first: int) -> Iterator[np.ndarray]:
        with torch.no_grad():
            yield model.source.model(input_ids=torch.tensor([ids])).logits[0, first:].float().numpy()

    return run


def metrics_of(documents: Sequence[tuple[float, int, int, int]]) -> dict[str, Metric]:
    """Return the metrics over all documents, with intervals by bootstrap over documents.

    documents: (loss in nats, tokens, words, bytes) of each.
    """
    table = np.array(documents, float)  # [documents, 4]
    random = np.random.default_rng(SEED)
    draws = random.integers(0, len(table), (RESAMPLES, len(table)))
    sums = table[draws].sum(1)  # [RESAMPLES, 4]

    def metric(column: int, of: Callable[[np.ndarray], np.ndarray]) -> Metric:
        total = table.sum(0)
        low, high = np.quantile(of(sums[:, 0] / sums[:, column]), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        interval = (float(low), float(high)) if len(table) >= LEAST_DOCUMENTS else None
        return Metric(value=float(of(total[0] / total[column])), interval=interval, higher_is_better=False)

    return {
        "perplexity": metric(1, np.exp), "word_perplexity": metric(2, np.exp), "byte_perplexity": metric(3, np.exp),
        "bits_per_byte": metric(3, lambda nats: nats / math.log(2)),
    }  # fmt: skip
