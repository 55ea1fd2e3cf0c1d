"""Perplexity of a bundle on a text, by the runtime that a board runs: graph, cache and format as they will be used."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from merino_edge.training.data import PackedTokens, load_tokenizer, read_documents
from merino_runtime.backends import open_backend
from merino_runtime.bundle import file_path, load_bundle
from merino_runtime.errors import MerinoError

MOST_TOKENS = 20_000  # of the text's beginning: enough for differences of a tenth of a percent between formats


class Perplexity(NamedTuple):
    perplexity: float
    loss: float  # nats per token
    tokens: int


def bundle_perplexity(folder: Path, text: Path, most_tokens: int = MOST_TOKENS) -> Perplexity:
    """Token by token through decode steps, in rows as long as the context, each from an empty cache."""
    bundle = load_bundle(str(folder), verify=False)
    tokenizer_file = file_path(bundle, "tokenizer.json")
    if tokenizer_file is None:
        raise MerinoError(f"{folder} has no tokenizer.json, so no text can be read with it: its weights are random")
    rows = PackedTokens(read_documents([text]), load_tokenizer(Path(tokenizer_file)), bundle.context).rows.numpy()
    rows = rows[: max(1, most_tokens // bundle.context)]
    backend = open_backend(bundle)
    losses: list[float] = []
    try:
        for row in rows:
            backend.truncate(0)
            for token, target in zip(row[:-1], row[1:], strict=True):
                losses.append(surprise(backend.step(int(token)), int(target)))
    finally:
        backend.close()
    loss = float(np.mean(losses))
    return Perplexity(math.exp(loss), loss, len(losses))


def surprise(logits: np.ndarray, target: int) -> float:
    """-log softmax(logits)[target], in float64; logits [vocab]."""
    shifted = logits.astype(np.float64) - logits.max()
    return float(np.log(np.exp(shifted).sum()) - shifted[target])
