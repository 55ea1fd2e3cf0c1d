"""Tokenizers of training and evaluation: a byte-level BPE trained on text, or one from a tokenizer.json.

`merino_runtime.generation.text` reads a tokenizer.json on the board.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from merino_edge.text.documents import END_OF_TEXT
from merino_runtime.errors import MerinoError

# The trainer's time grows with the square of a word's length: 300 kB without a space took 25 s, in pieces 0.2 s (x86).
LONGEST_WORD_BYTES = 1000
END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")  # as published tokenizers call it


def train_tokenizer(
    documents: Iterable[str], vocab: int, words: str | None = None, special: Sequence[str] = ()
) -> Tokenizer:
    """Train a byte-level BPE of exactly `vocab` entries. `<|endoftext|>` is id 0 and precedes each text. `words`: the
    regular expression of a word, from which no token reaches into the next one; by default GPT-2's. `special`: further
    tokens, such as those of a chat template, with the ids from 1 on.

    Words longer than LONGEST_WORD_BYTES are cut, for training only. Raise MerinoError if `vocab` is less than 257, or
    more than the text can fill.
    """
    tokenizer, characters = largest_tokenizer(documents, vocab, words, special)
    entries = tokenizer.get_vocab_size()
    if entries != vocab:
        raise too_large(vocab, entries, characters)
    return tokenizer


def too_large(vocab: int, entries: int, characters: int) -> MerinoError:
    return MerinoError(
        f"a vocabulary of {vocab} was requested, and the text ({characters:,} characters) gives a BPE of {entries}"
        f" entries at most, one for each of its words: design with --data, which chooses a vocabulary for the text, or"
        f" with --vocab {entries} or fewer; or give more text, or a --tokenizer that has its {vocab} entries from other"
        " text"
    )


def largest_tokenizer(
    documents: Iterable[str], vocab: int, words: str | None = None, special: Sequence[str] = ()
) -> tuple[Tokenizer, int]:
    """Train as `train_tokenizer` does. Return (a tokenizer of `vocab` entries, or of as many as the text can fill; the
    number of characters of the text)."""
    named = [END_OF_TEXT, *special]
    least = len(pre_tokenizers.ByteLevel.alphabet()) + len(named)
    if vocab < least:
        others = f", {', '.join(special)}" if special else ""
        raise MerinoError(
            f"a vocabulary of {vocab} is too small, allowed: {least}, for 256 bytes and {END_OF_TEXT}{others}, or more"
        )
    tokenizer = Tokenizer(models.BPE())
    cut: pre_tokenizers.PreTokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if words:
        split = pre_tokenizers.Split(Regex(words), "isolated")
        cut = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.FixedLength(LONGEST_WORD_BYTES)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=named,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    characters, marks = 0, re.compile("|".join(map(re.escape, named)))

    def counted() -> Iterator[str]:
        nonlocal characters
        for document in documents:
            characters += len(document)
            yield from marks.split(document) if special else [document]

    tokenizer.train_from_iterator(counted(), trainer)
    tokenizer.pre_tokenizer = cut
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    return tokenizer, characters


def load_tokenizer(source: Path | str) -> Tokenizer:
    """Load a tokenizer.json, from a path or its text. Truncation and padding, with which many are published, are
    switched off: they would cut a long document and fill a short one.

    Raise MerinoError if it is not a tokenizer.json.
    """
    try:
        tokenizer = Tokenizer.from_file(str(source)) if isinstance(source, Path) else Tokenizer.from_str(source)
    except Exception as error:  # `tokenizers` raises plain Exception, whatever is wrong
        name = source if isinstance(source, Path) else "the source's tokenizer"
        raise MerinoError(f"{name} is not a tokenizer.json: {error}. Copy it again, or give another") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def end_id(tokenizer: Tokenizer) -> int | None:
    """Return the token between two documents, from which a model learns where a text ends: the last that the tokenizer
    itself puts around a text, else the vocabulary's end-of-text token; None if it has neither."""
    own = own_ids(tokenizer)
    in_vocabulary = (tokenizer.token_to_id(name) for name in END_TOKENS)
    return own[-1] if own else next((token_id for token_id in in_vocabulary if token_id is not None), None)


def own_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the special tokens that the tokenizer puts around a text, such as `<s>`; GPT-2's puts none."""
    empty = tokenizer.encode("")
    return [token_id for token_id, special in zip(empty.ids, empty.special_tokens_mask, strict=True) if special]


def around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids before and behind each document: those that the tokenizer itself puts around a text, else a
    separator before it."""
    encoding = tokenizer.encode("a")
    text = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    before, after = encoding.ids[: text[0]], encoding.ids[text[-1] + 1 :]
    return [*separator(tokenizer), *before], after


def prefix_id(name: str, tokenizer: Tokenizer, tokens: Mapping[str, str], stop_ids: Sequence[int]) -> int:
    """Return the token before a text whose first token is scored: the one that the tokenizer itself puts there, else
    the model's token for the beginning of a text, else one at which texts end.

    `tokens`: the special tokens of its chat template. Raise MerinoError if there is none.
    """
    own, begin = own_ids(tokenizer), tokenizer.token_to_id(tokens.get("bos_token") or "")
    candidates = (*own[:1], begin, *stop_ids, end_id(tokenizer))
    prefix = next((token_id for token_id in candidates if token_id is not None), None)
    if prefix is None:
        raise MerinoError(
            f"{name} has no token that stands before a text, so a text's first token cannot be scored: its tokenizer"
            f" puts none there and has none of {', '.join(END_TOKENS)}. Take a tokenizer with such a token"
        )
    return prefix


def separator(tokenizer: Tokenizer) -> list[int]:
    """Return the ids to put before each document if the tokenizer itself separates none."""
    end = end_id(tokenizer)
    return [] if end is None or own_ids(tokenizer) else [end]


def check_separates(tokenizer: Tokenizer, documents: int) -> None:
    """Raise MerinoError if no token would separate so many documents: a model would learn no end."""
    if documents > 1 and end_id(tokenizer) is None:
        raise MerinoError(
            f"the tokenizer has no token that ends a text ({', '.join(END_TOKENS)}), so {documents:,} documents"
            " cannot be distinguished, and the model would learn no end: give a tokenizer that has one of these"
        )


def check_fits(tokenizer: Tokenizer, vocab: int) -> None:
    """Raise MerinoError if the tokenizer has more than `vocab` entries."""
    if tokenizer.get_vocab_size() > vocab:
        raise MerinoError(
            f"the tokenizer has {tokenizer.get_vocab_size()} entries, the design's vocabulary {vocab}:"
            f" design again with --vocab {tokenizer.get_vocab_size()}"
        )


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of the tokenizer.json."""
    return hashlib.sha256(tokenizer.to_str().encode("utf-8")).hexdigest()
