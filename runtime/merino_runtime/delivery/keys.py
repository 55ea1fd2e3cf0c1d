"""Public keys: their files, and the keys that a board trusts. Private keys never come near a board.

A file NAME.pub is one line, `merino-ed25519 BASE64 COMMENT`. Trusted are the keys in ROOT/trusted and in
/etc/merino/trusted, where a system's image may put them, except those in ROOT/withdrawn.json.
"""
import base64
import binascii
import json
import os
import re
from typing import Any, List, NamedTuple, Optional, Sequence

from merino_runtime.delivery.ed25519 import KEY_BYTES, is_public_key
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json, read_text
from merino_runtime.io.json_shape import integer, listed, problems_in
from merino_runtime.io.machine_faults import machine_fault
from merino_runtime.io.outputs import write_output

KIND = "merino-ed25519"
SUFFIX = ".pub"
TRUSTED, WITHDRAWN = "trusted", "withdrawn.json"  # in the root of the releases
SYSTEM_FOLDER = "/etc/merino/trusted"
LARGEST_BYTES = 4096
LONGEST_COMMENT = 200  # characters
A_KEY = "a public key of merino"
REMEDY = "Give the NAME.pub that `merino-edge keygen -o NAME` wrote."


class PublicKey(NamedTuple):
    key: bytes  # [32 bytes]
    comment: str


class NamedKey(NamedTuple):
    """A key to trust, read once: what was checked is what is stored."""
    name: str  # of its file in ROOT/trusted
    key: bytes
    comment: str


def key_line(key: bytes, comment: str) -> str:
    """The content of a public key's file. Raises MerinoError for a comment that is no single line of printable text."""
    if not _is_comment(comment):
        raise MerinoError(f"{comment[:80]!r} cannot be a key's comment: allowed are up to {LONGEST_COMMENT} printable "
                          "characters in one line, no space at its ends. Choose another.")
    return f"{KIND} {key_base64(key)} {comment}".rstrip() + "\n"


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


def key_base64(key: bytes) -> str:
    return base64.b64encode(key).decode("ascii")


def key_of_base64(text: str) -> Optional[bytes]:
    """The 32 bytes of a key; None for anything but their one base64 form."""
    try:
        key = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return None
    return key if len(key) == KEY_BYTES and key_base64(key) == text else None


def a_key(value: Any) -> Optional[str]:
    """A leaf of `json_shape`."""
    return None if isinstance(value, str) and key_of_base64(value) else "a public key, 32 bytes in base64"


def trusted_keys(root: str) -> List[PublicKey]:
    """The keys in ROOT/trusted and in the system's folder, sorted by the names of their files, each key once, without
    the withdrawn ones.

    Raises MerinoError where one cannot be read: a key must not lose its effect silently.
    """
    keys: List[PublicKey] = []
    withdrawn = withdrawn_keys(root)
    for folder in (os.path.join(root, TRUSTED), SYSTEM_FOLDER):
        for path in _key_files(folder):
            read = read_public_key(path)
            if read.key not in withdrawn and all(read.key != other.key for other in keys):
                keys.append(read)
    return keys


def key_to_trust(root: str, path: str) -> NamedKey:
    """The key at `path`, which `trust` can store in ROOT. Raises MerinoError where its name cannot be kept, another key
    has that name, or it was withdrawn: for before anything is installed."""
    read, name, folder = read_public_key(path), os.path.basename(path), os.path.join(root, TRUSTED)
    if not re.match(r"[A-Za-z0-9][\w.-]*\.pub\Z", name, re.ASCII):
        raise MerinoError(f"{name!r} cannot be the name of a trusted key: allowed are letters, digits, '.', '_' and "
                          f"'-', with {SUFFIX} at the end. Rename the file.")
    if read.key in withdrawn_keys(root):
        raise MerinoError(f"{path} holds the key {key_base64(read.key)}, which was withdrawn here. To trust it all the "
                          f"same, remove it from {os.path.join(root, WITHDRAWN)}.")
    for other in _key_files(folder):
        if os.path.basename(other) == name and read_public_key(other).key != read.key:
            raise MerinoError(f"{other} is another key of that name, and trusted already. Rename {path}, or end the "
                              f"trust in the other one: merino.pyz untrust {other}")
    return NamedKey(name, *read)


def trust(root: str, new: NamedKey) -> None:
    """Stores a key in ROOT/trusted, unless it is there by any name. Raises MerinoError where it cannot be written."""
    folder = os.path.join(root, TRUSTED)
    if any(read_public_key(other).key == new.key for other in _key_files(folder)):
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise machine_fault(f"make {folder}", error) from error
    write_output(os.path.join(folder, new.name), key_line(new.key, new.comment))


def withdrawn_keys(root: str) -> List[bytes]:
    """The keys in ROOT/withdrawn.json. Raises MerinoError where it is not such a file: a withdrawal must not lose
    its effect silently."""
    path = os.path.join(root, WITHDRAWN)
    if not os.path.lexists(path):
        return []
    remedy = 'Write it as {"schema": 1, "keys": [BASE64, ...]}, or remove it and withdraw its keys again.'
    record = read_json(path, remedy)
    problems = problems_in(record, {"schema": integer(1, 1), "keys": [a_key]})
    if problems:
        raise MerinoError(f"{path} is no list of withdrawn keys: {listed(problems)}. {remedy}")
    keys = [key_of_base64(each) for each in record["keys"]]
    return [key for key in keys if key]


def withdraw(root: str, keys: Sequence[bytes]) -> None:
    """Ends the trust in these keys, also in those of the system's folder. The list is written first: a key whose file
    then cannot be removed counts no more. Needs the lock."""
    known = withdrawn_keys(root)
    new = [key for key in keys if key not in known]
    if new:
        texts = sorted(key_base64(key) for key in known + new)
        write_output(os.path.join(root, WITHDRAWN), json.dumps({"schema": 1, "keys": texts}, indent=1) + "\n")
    for path in _key_files(os.path.join(root, TRUSTED)):
        if read_public_key(path).key in keys:
            try:
                os.unlink(path)
            except OSError as error:
                raise machine_fault(f"remove {path}", error) from error


def named_key(root: str, name: str) -> bytes:
    """The key that a person names: its base64, its file NAME.pub, or the name of one in ROOT/trusted. Raises
    MerinoError where there is none."""
    key = key_of_base64(name)
    stored = os.path.join(root, TRUSTED, name)
    return key or read_public_key(name if os.path.exists(name) or not os.path.exists(stored) else stored).key


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
