"""Documents as training samples: token ids, packed into rows of equal length."""

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from merino_runtime.errors import MerinoError

DOCUMENTS_AT_ONCE = 1000  # an Encoding takes some 100 bytes per token, its ids 4


class PackedTokens(Dataset):
    """The documents' token ids, concatenated and cut into rows of `length`; the incomplete last row is dropped.

    `what`: how a message calls the text, `remedy` what gives more of it. Raises MerinoError where there is no complete
    row.
    """

    def __init__(
        self, documents: Sequence[str], tokenizer: Tokenizer, length: int, what: str = "the text",
        remedy: str = "give more text",
    ):  # fmt: skip
        pieces: list[np.ndarray] = []
        for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
            encodings = tokenizer.encode_batch(list(documents[start : start + DOCUMENTS_AT_ONCE]))
            pieces += [np.array(encoding.ids, np.int32) for encoding in encodings]
        stream = np.concatenate(pieces)
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
        """Token ids in all rows."""
        return self.rows.numel()
