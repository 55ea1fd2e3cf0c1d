"""Perplexity of any source on a text: per token, per word and per byte, with an interval over its documents.

Each document is scored from its first token on, behind the token that stands before a text. A document longer than the
context is scored in windows that overlap by half the context, so that each token behind the first window is predicted
from at least half a context. Figures per word and per byte are comparable between models with different tokenizers.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from merino_edge.evaluation.answers import Answers, hashed
from merino_edge.evaluation.models import Scored, opened
from merino_edge.evaluation.run import Progress, Say, circumstances
from merino_edge.records.evaluation import Evaluation, Metric
from merino_edge.text.documents import check_files, read_texts
from merino_edge.text.scoring import log_likelihood, logits_behind, slow_words
from merino_edge.text.tokenizer import prefix_id
from merino_runtime.errors import MerinoError

TASK = "perplexity"
LEAST_DOCUMENTS = 5  # for an interval
RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
Logits = Callable[[list[int], int], Iterator[np.ndarray]]  # ids, first -> [m, vocab] after each from ids[first] on


class Document(NamedTuple):
    """`loss`: of the whole document, in nats."""

    loss: float
    tokens: int
    words: int
    bytes: int


def evaluate_text(
    sources: Sequence[str], text: Path, limit: int | None, answers: Answers, progress: Progress = lambda *_: None,
    say: Say = lambda _: None,
) -> Iterator[Evaluation]:  # fmt: skip
    """A row per source. Raises MerinoError for a source or a text that cannot be read, and where a tokenizer does not
    give back the text."""
    check_files([text], "--perplexity")
    documents, (file,) = read_texts([text], "--perplexity")
    chosen = documents[:limit]
    for what in sources:
        with opened(what, say) as model:
            start = time.monotonic()
            ids = [ids_of(model, document, number) for number, document in enumerate(chosen, 1)]
            if model.bundle:
                note = slow_words(model.bundle, sum(map(len, ids)))
                if note:
                    say(f"note: {note}")
            scored = []
            try:
                for number, (document, each) in enumerate(zip(chosen, ids, strict=True), 1):
                    loss = loss_of(model, each, answers)
                    scored.append(Document(loss, len(each), len(document.split()), len(document.encode())))
                    progress(number, len(chosen), f"documents, {model.name}")
            finally:
                answers.write()
            yield Evaluation(
                **model.facts, task=TASK, task_version=None, metrics=metrics_of(scored), items=len(chosen),
                of_items=len(documents), scored_tokens=sum(each.tokens for each in scored), few_shot=0,
                chat_template=False, truncated=0, seconds=round(time.monotonic() - start, 1), **circumstances(file),
            )  # fmt: skip


def ids_of(model: Scored, document: str, number: int) -> list[int]:
    """Raises MerinoError where the ids do not decode to the text, whose words and bytes are counted."""
    ids: list[int] = model.tokenizer.encode(document, add_special_tokens=False).ids
    back = model.tokenizer.decode(ids, skip_special_tokens=False)
    if back != document:
        place = next((at for at, (one, other) in enumerate(zip(back, document, strict=False)) if one != other),
                     min(len(back), len(document)))  # fmt: skip
        raise MerinoError(
            f"the tokenizer of {model.name} does not give back document {number} of --perplexity: at character"
            f" {place + 1} {document[place : place + 20]!r} becomes {back[place : place + 20]!r}, so a figure per byte"
            " would be of another text. Change the text there, or compare on text that it keeps"
        )
    return ids


def loss_of(model: Scored, ids: list[int], answers: Answers) -> float:
    key = hashed(TASK, [ids])
    loss = answers.get(model.facts["sha256"], key)
    if loss is None:
        loss = document_loss(logits_of(model), whole_ids(model, ids), model.context)
        answers.keep(model.facts["sha256"], key, loss)
    return float(loss)


def whole_ids(model: Scored, ids: list[int]) -> list[int]:
    return [prefix_id(model.name, model.tokenizer, model.tokens, model.stop_ids), *ids]


def logits_of(model: Scored) -> Logits:
    if model.bundle:
        backend = model.bundle.backend
        return lambda ids, first: logits_behind(backend, ids, first)
    import torch

    def run(ids: list[int], first: int) -> Iterator[np.ndarray]:
        with torch.no_grad():
            yield model.source.model(input_ids=torch.tensor([ids])).logits[0, first:].float().numpy()

    return run


def document_loss(logits: Logits, ids: list[int], context: int) -> float:
    """Loss of all ids but the first, each predicted once."""
    total, done, stride = 0.0, 0, max(1, context // 2)
    targets = ids[1:]
    while done < len(targets):
        end = min(len(targets), context if not done else done + stride)
        start = max(0, end - context)
        total -= log_likelihood(logits(ids[start:end], done - start), targets[done:end])[0]
        done = end
    return total


def metrics_of(documents: Sequence[Document]) -> dict[str, Metric]:
    """Interval: bootstrap over documents."""
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
