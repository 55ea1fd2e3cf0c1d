"""Texts that an export tokenizes with its source's tokenizer: `--calibrate`, for GPTQ, SmoothQuant and the scales of a
KV cache, and `--text`, on which a bundle's perplexity is measured."""

from pathlib import Path

import torch
from tokenizers import Tokenizer

from merino_edge.export.source import Source
from merino_edge.text.perplexity import MOST_TOKENS
from merino_edge.text.rows import first_rows, spread_rows
from merino_edge.text.tokenizer import load_tokenizer
from merino_runtime.errors import MerinoError


def text_rows(source: Source, text: Path, length: int, tokens: int) -> torch.Tensor:
    """Rows of ids [n, length], `tokens` ids at most, sampled evenly from the text.

    Raises MerinoError where the text cannot be read, is too short, or the source has no tokenizer.
    """
    check_has_tokenizer(source, text, "--calibrate", "Export without --calibrate")
    return spread_rows(text, tokenizer_of(source), length, tokens, "--calibrate")


def check_text(source: Source, text: Path, context: int, remedy: str) -> None:
    """Raises MerinoError where the perplexity of a bundle of this context could not be measured on the text."""
    check_has_tokenizer(source, text, "--text", remedy)
    first_rows(text, tokenizer_of(source), context, MOST_TOKENS, "--text")


def check_has_tokenizer(source: Source, text: Path, option: str, remedy: str) -> None:
    if source.tokenizer is None:
        raise MerinoError(f"{option} {text}: {source.name} has no tokenizer. {remedy}")


def tokenizer_of(source: Source) -> Tokenizer:
    """The tokenizer of a source; the source must have one."""
    assert source.tokenizer is not None, source.name
    return load_tokenizer(source.tokenizer)
