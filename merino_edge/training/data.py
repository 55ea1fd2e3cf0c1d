"""From text files to documents and a byte-level BPE. Loads no torch: what is wrong with a file is said at once."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from merino_runtime.errors import MerinoError

END_OF_TEXT = "<|endoftext|>"  # separates documents in a file; in the token ids it precedes each document
HELD_OUT_SHARE = 0.02
# The trainer's time grows with the square of a word's length: 300 kB without a space took 25 s, in pieces 0.2 s (x86).
LONGEST_WORD_BYTES = 1000


class TextFile(BaseModel):
    """A text file in the record of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bytes: int
    sha256: str

    def same_text(self, other: "TextFile") -> bool:
        """Whatever the files are called."""
        return (self.bytes, self.sha256) == (other.bytes, other.sha256)


def check_files(paths: Sequence[Path], option: str) -> None:
    """Raises MerinoError for a path that is no file, before anything is read. `option`: where the user gave it."""
    for path in paths:
        if not path.is_file():
            why = "is a folder" if path.is_dir() else "does not exist"
            raise MerinoError(f"{option} {path} {why}: give the path of a file")


def read_texts(paths: Sequence[Path], option: str = "--data") -> tuple[list[str], list[TextFile]]:
    """The documents of UTF-8 text files, split at `<|endoftext|>`, and the files. Without it a file is one document.

    `option`: where the user gave the paths. Raises MerinoError for a file that cannot be read or decoded, and where
    there is no text at all.
    """
    documents: list[str] = []
    files: list[TextFile] = []
    for path in paths:
        try:
            content = path.read_bytes()
            text = content.decode("utf-8")
        except OSError as error:
            raise MerinoError(f"cannot read {path}: {error.strerror}. {option} takes plain text files") from error
        except UnicodeDecodeError as error:
            raise MerinoError(f"{option} {path} is not UTF-8 text (byte {error.start}): convert it first") from error
        files.append(TextFile(name=path.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()))
        documents += [document.strip() for document in text.split(END_OF_TEXT) if document.strip()]
    if not documents:
        raise MerinoError(f"no text in {', '.join(map(str, paths))}: {option} takes plain text files")
    return documents, files


def read_documents(paths: Sequence[Path], option: str = "--data") -> list[str]:
    """The documents of `read_texts` alone."""
    return read_texts(paths, option)[0]


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

    Words longer than LONGEST_WORD_BYTES are cut for training, and only there. Raises MerinoError where `vocab` is less
    than 257, or more than the text has pieces for.
    """
    least = len(pre_tokenizers.ByteLevel.alphabet()) + 1
    if vocab < least:
        raise MerinoError(f"a vocabulary of {vocab} is too small: 256 bytes and {END_OF_TEXT} need {least}")
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.FixedLength(LONGEST_WORD_BYTES)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.pre_tokenizer = words
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    found = tokenizer.get_vocab_size()
    if found != vocab:
        raise MerinoError(
            f"a vocabulary of {vocab} was asked for, and the text ({sum(map(len, documents)):,} characters) gives a BPE"
            f" of {found} entries at most, one for each of its words: design with --vocab {found} or fewer, give"
            f" more text, or give a --tokenizer that has its {vocab} entries from other text"
        )
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Raises MerinoError where `path` is not a tokenizer.json."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # `tokenizers` raises plain Exception, whatever is wrong
        raise MerinoError(f"{path} is not a tokenizer.json: {error}") from error


def tokenizer_for(vocab: int, documents: Sequence[str], given: Path | None) -> Tokenizer:
    """The tokenizer in the file `given`, or one trained on the documents.

    Raises MerinoError where it has more than `vocab` entries.
    """
    tokenizer = load_tokenizer(given) if given else train_tokenizer(documents, vocab)
    if tokenizer.get_vocab_size() > vocab:
        raise MerinoError(
            f"the tokenizer has {tokenizer.get_vocab_size()} entries, the design's vocabulary {vocab}:"
            f" design again with --vocab {tokenizer.get_vocab_size()}"
        )
    return tokenizer


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of its tokenizer.json."""
    return hashlib.sha256(tokenizer.to_str().encode("utf-8")).hexdigest()
