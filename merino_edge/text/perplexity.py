"""Perplexity of a bundle on a text, computed by the board's runtime: it includes what the graph, the KV cache and the
weight format change."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from merino_edge.text.rows import first_rows
from merino_edge.text.tokenizer import load_tokenizer
from merino_runtime.backends import open_backend
from merino_runtime.bundle import file_path, load_bundle
from merino_runtime.errors import MerinoError

MOST_TOKENS = 20_000  # enough to tell formats apart whose perplexities differ by a tenth of a percent


class Perplexity(NamedTuple):
    """`loss`: mean over `tokens` predicted tokens, in nats; `perplexity` is its exponential."""

    perplexity: float
    loss: float
    tokens: int


def bundle_perplexity(folder: Path, text: Path, most_tokens: int = MOST_TOKENS) -> Perplexity:
    """Of the text's first `most_tokens`, cut into rows as long as the context. Each row begins with an empty cache and
    goes through decode steps, one per token.

    Raises MerinoError where the bundle has no tokenizer, or the text is shorter than one row.
    """
    bundle = load_bundle(str(folder), verify=False)
    tokenizer_file = file_path(bundle, "tokenizer.json")
    if tokenizer_file is None:
        raise MerinoError(f"{folder} has no tokenizer.json, so no text can be read with it: export a trained model")
    tokenizer = load_tokenizer(Path(tokenizer_file))
    rows = first_rows(text, tokenizer, bundle.context, most_tokens, "--text")
    backend = open_backend(bundle)
    losses: list[float] = []
    try:
        for row in rows:
            backend.truncate(0)
            for token, target in zip(row[:-1], row[1:], strict=True):
                losses.append(cross_entropy(backend.step(int(token)), int(target)))
    finally:
        backend.close()
    loss = float(np.mean(losses))
    return Perplexity(math.exp(loss), loss, len(losses))


def cross_entropy(logits: np.ndarray, target: int) -> float:
    """-log softmax(logits)[target] in nats, computed in float64; logits [vocab]."""
    shifted = logits.astype(np.float64) - logits.max()
    return float(np.log(np.exp(shifted).sum()) - shifted[target])
