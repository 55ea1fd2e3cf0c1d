"""Writes the tokenizer of the house example: `make_tokenizer.py train.jsonl tokenizer.json --vocab 1536`.

Names are copied: from the list of the house, by way of the sentence, to the answer. In GPT-2's words the space belongs
to the word behind it, so a name would have other tokens at the beginning of a line and behind a quotation mark than
behind a space: "cellar" would be "ce", "ll", "ar", and " cellar" would be " c", "ell", "ar". Here the space belongs to
the word before it, so each name begins with the same tokens wherever it stands. Digits are tokens of their own.
"""

import argparse
from pathlib import Path

from tokenizers import Tokenizer

from merino_edge.jobs.make import WORDS
from merino_edge.text.tokenizer import train_tokenizer
from merino_edge.training.sources import read_sources, text_of


def trained(data: Path, vocab: int) -> Tokenizer:
    """On the text that `merino-edge train` would train a tokenizer on."""
    return train_tokenizer(text_of(read_sources([data]), None), vocab, WORDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocab", type=int, required=True)
    given = parser.parse_args()
    trained(given.data, given.vocab).save(str(given.out))


if __name__ == "__main__":
    main()
