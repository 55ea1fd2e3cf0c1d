"""The text of `--calibrate`, as ids that the source's model reads."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from merino_edge.export.source import Source
from merino_edge.training.data import read_documents
from merino_edge.training.rows import PackedTokens
from merino_runtime.errors import MerinoError

OPTION = "--calibrate"


def text_rows(source: Source, text: Path, length: int, tokens: int) -> torch.Tensor:
    """Rows of ids [n, length], of `tokens` at most, evenly taken from the text.

    Raises MerinoError where the text cannot be read, is too short, or the source has no tokenizer to read it with.
    """
    if source.tokenizer is None:
        raise MerinoError(f"{OPTION} {text}: {source.name} has no tokenizer to read it with. Export without {OPTION}")
    rows = PackedTokens(read_documents([text], OPTION), tokenizer_of(source), length, f"{OPTION} {text}").rows
    most = max(1, tokens // length)
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(int)] if len(rows) > most else rows


def tokenizer_of(source: Source) -> Tokenizer:
    """Of a source that has one."""
    assert source.tokenizer is not None, source.name
    given = source.tokenizer if isinstance(source.tokenizer, str) else source.tokenizer.read_text("utf-8")
    return Tokenizer.from_str(given)
