"""Pack text as token ids into rows of equal length, such as the windows of a calibration."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from merino_edge.text.documents import read_texts
from merino_edge.text.tokenizer import separator
from merino_runtime.errors import MerinoError

DOCUMENTS_AT_ONCE = 1000  # an Encoding takes some 100 bytes per token, its ids 4


def packed_rows(documents: Sequence[str], tokenizer: Tokenizer, length: int, what: str = "the text") -> torch.Tensor:
    """Return the documents' token ids, separated, concatenated and cut into rows [n, length]; the incomplete last row
    is dropped.

    `what`: the text's name in messages. Raise MerinoError if there is no complete row.
    """
    encoded: list[np.ndarray] = []
    before = separator(tokenizer)
    for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
        encodings = tokenizer.encode_batch(list(documents[start : start + DOCUMENTS_AT_ONCE]))
        encoded += [np.array([*before, *encoding.ids], np.int32) for encoding in encodings]
    stream = np.concatenate(encoded)
    rows = len(stream) // length
    if rows == 0:
        raise MerinoError(
            f"{what} gives {len(stream)} tokens, fewer than one sequence of {length}: give more text,"
            " or design with a shorter --context"
        )
    return torch.from_numpy(stream[: rows * length].reshape(rows, length))


def spread_rows(text: Path, tokenizer: Tokenizer, length: int, most_tokens: int, option: str) -> torch.Tensor:
    """Return rows of ids [n, length], of `most_tokens` at most, evenly taken from the text. Raise MerinoError if it
    cannot be read, or is shorter than one row."""
    rows = packed_rows(read_texts([text], option)[0], tokenizer, length, f"{option} {text}")
    most = max(1, most_tokens // length)
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(int)] if len(rows) > most else rows
