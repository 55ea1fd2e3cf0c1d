"""Text files, and the documents in them. Loads no torch, so that a file's faults are reported at once."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from merino_runtime.errors import MerinoError

END_OF_TEXT = "<|endoftext|>"  # separates documents in a file; in the token ids it precedes each document


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
            why = "is a folder" if path.is_dir() else "is a device or a pipe" if path.exists() else "does not exist"
            raise MerinoError(f"{option} {path} {why}: give the path of a file")


def read_texts(paths: Sequence[Path], option: str = "--data") -> tuple[list[str], list[TextFile]]:
    """The documents of UTF-8 text files, split at `<|endoftext|>`, and the files. Without it a file is one document.

    `option`: where the user gave the paths. Raises MerinoError for a file that cannot be read or decoded, and where
    there is no text at all.
    """
    documents: list[str] = []
    files: list[TextFile] = []
    for path in paths:
        text, file = read_file(path, option)
        files.append(file)
        documents += [document.strip() for document in text.split(END_OF_TEXT) if document.strip()]
    if not documents:
        raise MerinoError(f"no text in {', '.join(map(str, paths))}: {option} takes plain text files")
    return documents, files


def read_file(path: Path, option: str) -> tuple[str, TextFile]:
    """The text of a UTF-8 file. Raises MerinoError where it cannot be read or decoded."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise MerinoError(f"cannot read {path}: {error.strerror}. {option} takes plain text files") from error
    except UnicodeDecodeError as error:
        raise MerinoError(f"{option} {path} is not UTF-8 text (byte {error.start}): convert it first") from error
    return text, TextFile(name=path.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def read_documents(paths: Sequence[Path], option: str = "--data") -> list[str]:
    """The documents of `read_texts` alone."""
    return read_texts(paths, option)[0]
