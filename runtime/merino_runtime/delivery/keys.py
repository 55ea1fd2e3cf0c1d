"""Public keys: their files, and the keys that a board trusts. Private keys never come near a board.

A file NAME.pub is one line, `merino-ed25519 BASE64 COMMENT`. Trusted are the keys in ROOT/trusted and in
/etc/merino/trusted, where a system's image may put them.
"""
import base64
import binascii
import os
import re
from typing import List, NamedTuple, Optional

from merino_runtime.delivery.ed25519 import KEY_BYTES, is_public_key
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_text
from merino_runtime.io.machine_faults import machine_fault
from merino_runtime.io.outputs import write_output

KIND = "merino-ed25519"
SUFFIX = ".pub"
TRUSTED = "trusted"  # in the root of the releases
SYSTEM_FOLDER = "/etc/merino/trusted"
LARGEST_BYTES = 4096
LONGEST_COMMENT = 200  # characters
A_KEY = "a public key of merino"
REMEDY = "Give the NAME.pub that `merino-edge keygen -o NAME` wrote."


class PublicKey(NamedTuple):
    key: bytes  # [32 bytes]
    comment: str


def key_line(key: bytes, comment: str) -> str:
    """The content of a public key's file. Raises MerinoError for a comment that is no single line of printable text."""
    if not _is_comment(comment):
        raise MerinoError(f"{comment[:80]!r} cannot be a key's comment: allowed are up to {LONGEST_COMMENT} printable "
                          "characters in one line, no space at its ends. Choose another.")
    return f"{KIND} {base64.b64encode(key).decode('ascii')} {comment}".rstrip() + "\n"


def read_public_key(path: str) -> PublicKey:
    """Raises MerinoError where the file cannot be read, is no public key, or holds one that protects nothing."""
    text = read_text(path, A_KEY, REMEDY, LARGEST_BYTES)
    if "PRIVATE KEY" in text:
        raise MerinoError(f"{path} is a private key, which stays where packages are signed. {REMEDY}")
    words = text.rstrip("\n").split(" ", 2)
    key = key_of_base64(words[1]) if len(words) > 1 and words[0] == KIND else None
    comment = words[2] if len(words) > 2 else ""
    if key is None or not _is_comment(comment):
        raise MerinoError(f"{path} is not {A_KEY}: expected one line, `{KIND} BASE64 COMMENT`. {REMEDY}")
    if not is_public_key(key):
        raise MerinoError(f"{path} holds a key that protects nothing: it is no point of the curve, or one of small "
                          f"order. {REMEDY}")
    return PublicKey(key, comment)


def key_of_base64(text: str) -> Optional[bytes]:
    """The 32 bytes of a key; None for anything but their one base64 form."""
    try:
        key = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return None
    return key if len(key) == KEY_BYTES and base64.b64encode(key).decode("ascii") == text else None


def trusted_keys(root: str) -> List[PublicKey]:
    """The keys in ROOT/trusted and in the system's folder, sorted by the names of their files, each key once.

    Raises MerinoError where one cannot be read: a key must not stop to count in silence.
    """
    found: List[PublicKey] = []
    for folder in (os.path.join(root, TRUSTED), SYSTEM_FOLDER):
        for path in _key_files(folder):
            read = read_public_key(path)
            if all(read.key != other.key for other in found):
                found.append(read)
    return found


def trust(root: str, path: str) -> PublicKey:
    """Copies the key at `path` into ROOT/trusted. Raises MerinoError where another key has its name there."""
    read = read_public_key(path)
    folder, name = os.path.join(root, TRUSTED), os.path.basename(path)
    if not re.match(r"[A-Za-z0-9][\w.-]*\.pub\Z", name, re.ASCII):
        raise MerinoError(f"{name!r} cannot be the name of a trusted key: allowed are letters, digits, '.', '_' and "
                          f"'-', with {SUFFIX} at the end. Rename the file.")
    for other in _key_files(folder):
        same_key = read_public_key(other).key == read.key
        if os.path.basename(other) == name and not same_key:
            raise MerinoError(f"{other} is another key of that name, and trusted already. Rename {path}, or remove "
                              f"{other} if it is to be trusted no more.")
        if same_key:
            return read
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise machine_fault(f"make {folder}", error) from error
    write_output(os.path.join(folder, name), key_line(read.key, read.comment))
    return read


def _key_files(folder: str) -> List[str]:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise machine_fault(f"read {folder}", error) from error
    return [os.path.join(folder, name) for name in names if name.endswith(SUFFIX)]


def _is_comment(comment: str) -> bool:
    return len(comment) <= LONGEST_COMMENT and comment.isprintable() and comment == comment.strip()
