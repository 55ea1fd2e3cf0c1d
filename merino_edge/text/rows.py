"""Pack text as token ids into rows of equal length: training samples, windows of a calibration."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from merino_edge.text.documents import read_documents
from merino_edge.text.tokenizer import separator
from merino_runtime.errors import MerinoError

DOCUMENTS_AT_ONCE = 1000  # an Encoding takes some 100 bytes per token, its ids 4


class PackedTokens(Dataset):
    """The documents' token ids, separated, concatenated and cut into rows of `length`; the incomplete last row is
    dropped.

    `what`: the text's name in messages, `remedy`: how to get more of it. Raise MerinoError if there is no complete row.
    """

    def __init__(
        self, documents: Sequence[str], tokenizer: Tokenizer, length: int, what: str = "the text",
        remedy: str = "give more text",
    ):  # fmt: skip
        encoded: list[np.ndarray] = []
        before = separator(tokenizer)
        for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
            encodings = tokenizer.encode_batch(list(documents[start : start + DOCUMENTS_AT_ONCE]))
            encoded += [np.array([*before, *encoding.ids], np.int32) for encoding in encodings]
        stream = np.concatenate(encoded)
        rows = len(stream) // length
        if rows == 0:
            raise MerinoError(
                f"{what} gives {len(stream)} tokens, fewer than one sequence of {length}: {remedy},"
                " or design with a shorter --context"
            )
        self.rows = torch.from_numpy(stream[: rows * length].reshape(rows, length))  # [rows, length]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index].long()
        return {"input_ids": row, "labels": row}

    @property
    def tokens(self) -> int:
        """Return the number of token ids in all rows."""
        return self.rows.numel()


def spread_rows(text: Path, tokenizer: Tokenizer, length: int, most_tokens: int, option: str) -> torch.Tensor:
    """Return rows of ids [n, length], of `most_tokens` at most, evenly taken from the text. Raise MerinoError if it
    cannot be read, or is shorter than one row."""
    rows = PackedTokens(read_documents([text], option), tokenizer, length, f"{option} {text}").rows
    most = max(1, most_tokens // length)
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(int)] if len(rows) > most else rows
