"""From text files to training samples: documents, a byte-level BPE, token ids packed into rows of equal length."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import Dataset

from merino_runtime.bundle import sha256_of
from merino_runtime.errors import MerinoError

END_OF_TEXT = "<|endoftext|>"  # separates documents in a file; in the token ids it precedes each document
HELD_OUT_SHARE = 0.02


def read_documents(paths: Sequence[Path]) -> list[str]:
    """The documents of UTF-8 text files, split at `<|endoftext|>`; a file without it is one document.

    Raises MerinoError for a file that cannot be read or decoded, and where there is no text at all.
    """
    documents: list[str] = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise MerinoError(f"cannot read {path}: {error.strerror}. --data takes plain text files") from error
        except UnicodeDecodeError as error:
            raise MerinoError(f"{path} is not UTF-8 text (byte {error.start}): convert it first") from error
        documents += [document.strip() for document in text.split(END_OF_TEXT) if document.strip()]
    if not documents:
        raise MerinoError(f"no text in {', '.join(map(str, paths))}: --data takes plain text files")
    return documents


def split_held_out(documents: list[str], share: float = HELD_OUT_SHARE) -> tuple[list[str], list[str]]:
    """(training documents, held-out documents): the last `share` of the documents, at least one, is held out. A single
    document is cut instead, at the same share of its characters."""
    if len(documents) == 1:
        text = documents[0]
        cut = len(text) - max(1, round(len(text) * share))
        return [text[:cut]], [text[cut:]]
    cut = len(documents) - max(1, round(len(documents) * share))
    return documents[:cut], documents[cut:]


def train_tokenizer(documents: Sequence[str], vocab: int) -> Tokenizer:
    """A byte-level BPE, as GPT-2's, of exactly `vocab` entries. `<|endoftext|>` is id 0 and is put before each text.

    Raises MerinoError where `vocab` is less than 257, or more than the text has pieces for.
    """
    least = len(pre_tokenizers.ByteLevel.alphabet()) + 1
    if vocab < least:
        raise MerinoError(f"a vocabulary of {vocab} is too small: 256 bytes and {END_OF_TEXT} need {least}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    if tokenizer.get_vocab_size() != vocab:
        raise MerinoError(
            f"the text holds only {tokenizer.get_vocab_size()} different pieces, a vocabulary of {vocab} was asked"
            " for: give more text, or design with a smaller --vocab"
        )
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Raises MerinoError where `path` is not a tokenizer.json."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # `tokenizers` raises plain Exception, whatever is wrong
        raise MerinoError(f"{path} is not a tokenizer.json: {error}") from error


class PackedTokens(Dataset):
    """The documents' token ids, concatenated and cut into rows of `length`; the incomplete last row is dropped.

    Raises MerinoError where there is no complete row.
    """

    def __init__(self, documents: Sequence[str], tokenizer: Tokenizer, length: int):
        pieces = [np.array(encoding.ids, np.int32) for encoding in tokenizer.encode_batch(list(documents))]
        stream = np.concatenate(pieces)
        rows = len(stream) // length
        if rows == 0:
            raise MerinoError(
                f"the text gives {len(stream)} tokens, fewer than one sequence of {length}: give more text,"
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


def describe_files(paths: Sequence[Path]) -> list[dict[str, str | int]]:
    """Name, bytes and SHA-256 of each file, for the record of a training run."""
    return [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(str(path))} for path in paths
    ]
