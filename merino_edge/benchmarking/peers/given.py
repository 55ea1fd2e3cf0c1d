"""A GGUF that the user names: what llama.cpp reads of it per token."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

TABLE, HEAD = "token_embd.weight", "output.weight"


class GivenFile(NamedTuple):
    """`matrices`, `table`: types of most of the matrices, and of the embedding."""

    path: Path
    matrices: str
    table: str
    decode_weight_bytes: int


def given_file(path: Path) -> GivenFile:
    """Raises MerinoError for a file that is no GGUF, is damaged, or has no embedding."""
    from merino_edge.families.gguf.file import open_gguf
    from merino_runtime.errors import MerinoError

    tensors = open_gguf(path).tensors
    kinds = Counter(place.kind.name for name, place in tensors.items() if len(place.shape) == 2 and name != TABLE)
    if TABLE not in tensors or not kinds:
        raise MerinoError(f"{path} has no {TABLE} and matrices: it holds no model that generates text")
    unread = tensors[TABLE].nbytes if HEAD in tensors else 0  # but for one row
    read = sum(place.nbytes for place in tensors.values()) - unread
    return GivenFile(path, kinds.most_common(1)[0][0], tensors[TABLE].kind.name, read)
