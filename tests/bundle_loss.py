"""The mean loss of a bundle on a text, step by step in the board's runtime."""

from pathlib import Path

from merino_edge.text.documents import read_documents
from merino_edge.text.rows import PackedTokens
from merino_edge.text.scoring import log_likelihood
from merino_edge.text.tokenizer import load_tokenizer
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle


def mean_loss(folder, text, most_tokens=20_000):
    """(nats per predicted token, how many) of the text's first tokens, in rows as long as the context."""
    bundle = load_bundle(str(folder), verify=False)
    packed = PackedTokens(read_documents([text]), load_tokenizer(Path(folder) / "tokenizer.json"), bundle.context)
    rows = packed.rows[: max(1, most_tokens // bundle.context)].tolist()
    backend, total = open_backend(bundle), 0.0
    for row in rows:
        backend.truncate(0)
        total -= log_likelihood((backend.step(token)[None] for token in row[:-1]), row[1:])[0]
    backend.close()
    tokens = len(rows) * (bundle.context - 1)
    return total / tokens, tokens
