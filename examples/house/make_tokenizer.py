"""Writes the tokenizer of the house example: `make_tokenizer.py train.jsonl tokenizer.json --vocab 1536`.

Names are copied: from the list of the house, by way of the sentence, to the answer. In GPT-2's words the space belongs
to the word behind it, so a name would have other tokens at the beginning of a line and behind a quotation mark than
behind a space: "cellar" would be "ce", "ll", "ar", and " cellar" would be " c", "ell", "ar". Here the space belongs to
the word before it, so each name begins with the same tokens wherever it stands. Digits are tokens of their own.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from merino_edge.text.tokenizer import train_tokenizer

WORDS = r"'s ?|\p{L}+ ?|\p{N} ?|[^\s\p{L}\p{N}]+ ?|\s"
MOST_SAMPLES = 30_000


def texts(data: Path) -> Iterator[str]:
    """Of samples of make_data.py, with one sentence or several."""
    with data.open(encoding="utf-8") as lines:
        for line in islice(lines, MOST_SAMPLES):
            sample = json.loads(line)
            for part in (sample["prompt"], sample["completion"]):
                yield from [part] if isinstance(part, str) else part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocab", type=int, required=True)
    given = parser.parse_args()
    train_tokenizer(texts(given.data), given.vocab, WORDS).save(str(given.out))


if __name__ == "__main__":
    main()
