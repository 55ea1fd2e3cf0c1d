"""Public keys: their files, and the keys that a board trusts. Private keys never come near a board.

A file NAME.pub is one line, `merino-ed25519 BASE64 COMMENT`. Trusted are the keys in ROOT/trusted and in
/etc/merino/trusted, where a system's image may put them, except those in ROOT/withdrawn.json.
"""
import base64
import binascii
import json
import os
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from merino_runtime.delivery.ed25519 import KEY_BYTES, is_public_key
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json, read_text
from merino_runtime.io.json_shape import integer, listed, problems_in
from merino_runtime.io.lock import raising_machine_faults
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
    name: str = ""  # of its file in ROOT/trusted, for a key that will be trusted


def key_line(key: bytes, comment: str) -> str:
    """Return the content of a public key's file. Raise MerinoError if the comment is not one line of printable text."""
    if not _is_comment(comment):
        raise MerinoError(f"{comment[:80]!r} cannot be a key's comment: allowed are up to {LONGEST_COMMENT} printable "
                          "characters in one line, no space at its ends. Choose another.")
    return f"{KIND} {key_base64(key)} {comment}".rstrip() + "\n"


def read_public_key(path: str) -> PublicKey:
    """Return the key in a file. Raise MerinoError if the file cannot be read, is not a public key, or holds one that
    protects nothing."""
    text = read_text(path, A_KEY, REMEDY, LARGEST_BYTES)
    if "PRIVATE KEY" in text:
        raise MerinoError(f"{path} is a private key, which stays where packages are signed. {REMEDY}")
    words = text.rstrip("\r\n").split(" ", 2)
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
    """Return the 32 bytes of a key; None unless `text` is their canonical base64 form."""
    try:
        key = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return None
    return key if len(key) == KEY_BYTES and key_base64(key) == text else None


def a_key(value: Any) -> Optional[str]:
    """Return what was expected, or None if the value is a public key in base64: a leaf of `json_shape`."""
    return None if isinstance(value, str) and key_of_base64(value) else "a public key, 32 bytes in base64"


def trusted_keys(root: str) -> List[PublicKey]:
    """Return the keys in ROOT/trusted and in the system's folder, each once and without the withdrawn ones, sorted by
    the names of their files. Raise MerinoError if one cannot be read: a key must not lose its effect silently."""
    keys: Dict[bytes, PublicKey] = {}
    withdrawn = withdrawn_keys(root)
    for folder in (os.path.join(root, TRUSTED), SYSTEM_FOLDER):
        for path in _key_files(folder):
            key = read_public_key(path)
            if key.key not in withdrawn:
                keys.setdefault(key.key, key)
    return list(keys.values())


def key_to_trust(root: str, path: str) -> PublicKey:
    """Return the key at `path` for `trust` to store in ROOT: it is read once, so what was checked is what is stored.

    Raise MerinoError if its name cannot be kept, another key has that name, or it was withdrawn.
    """
    key, name, folder = read_public_key(path), os.path.basename(path), os.path.join(root, TRUSTED)
    if not re.match(r"[A-Za-z0-9][\w.-]*\.pub\Z", name, re.ASCII):
        raise MerinoError(f"{name!r} cannot be the name of a trusted key: allowed are letters, digits, '.', '_' and "
                          f"'-', with {SUFFIX} at the end. Rename the file.")
    if key.key in withdrawn_keys(root):
        raise MerinoError(f"{path} holds the key {key_base64(key.key)}, which was withdrawn here. To trust it all the "
                          f"same, remove it from {os.path.join(root, WITHDRAWN)}.")
    for other in _key_files(folder):
        if os.path.basename(other) == name and read_public_key(other).key != key.key:
            raise MerinoError(f"{other} is another key of that name, and trusted already. Rename {path}, or end the "
                              f"trust in the other one: merino.pyz untrust {other}")
    return key._replace(name=name)


def trust(root: str, key: PublicKey) -> None:
    """Store a key in ROOT/trusted, unless it is there under any name. Raise MerinoError if it cannot be written."""
    folder = os.path.join(root, TRUSTED)
    if any(read_public_key(path).key == key.key for path in _key_files(folder)):
        return
    with raising_machine_faults(f"make {folder}"):
        os.makedirs(folder, exist_ok=True)
    write_output(os.path.join(folder, key.name), key_line(key.key, key.comment))


def withdrawn_keys(root: str) -> List[bytes]:
    """Return the keys in ROOT/withdrawn.json. Raise MerinoError if it is not such a file: a withdrawal must not lose
    its effect silently."""
    path = os.path.join(root, WITHDRAWN)
    if not os.path.lexists(path):
        return []
    remedy = 'Write it as {"schema": 1, "keys": [BASE64, ...]}, or remove it and withdraw its keys again.'
    record = read_json(path, remedy)
    problems = problems_in(record, {"schema": integer(1, 1), "keys": [a_key]})
    if problems:
        raise MerinoError(f"{path} is no list of withdrawn keys: {listed(problems)}. {remedy}")
    return [key for key in map(key_of_base64, record["keys"]) if key]


def withdraw(root: str, keys: Sequence[bytes]) -> None:
    """End the trust in these keys, also in those of the system's folder. The caller holds the lock."""
    # The list is written first: then a key whose file cannot be removed has no effect any more.
    withdrawn = withdrawn_keys(root)
    new_keys = [key for key in keys if key not in withdrawn]
    if new_keys:
        texts = sorted(key_base64(key) for key in withdrawn + new_keys)
        write_output(os.path.join(root, WITHDRAWN), json.dumps({"schema": 1, "keys": texts}, indent=1) + "\n")
    for path in _key_files(os.path.join(root, TRUSTED)):
        if read_public_key(path).key in keys:
            with raising_machine_faults(f"remove {path}"):
                os.unlink(path)


def named_key(root: str, name: str) -> bytes:
    """Return the key that a person names by its base64, its file NAME.pub, or its name in ROOT/trusted. Raise
    MerinoError if there is none."""
    key = key_of_base64(name)
    stored = os.path.join(root, TRUSTED, name)
    return key or read_public_key(name if os.path.exists(name) or not os.path.exists(stored) else stored).key


def _key_files(folder: str) -> List[str]:
    with raising_machine_faults(f"read {folder}"):
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            return []
    return [os.path.join(folder, name) for name in names if name.endswith(SUFFIX)]


def _is_comment(comment: str) -> bool:
    return len(comment) <= LONGEST_COMMENT and comment.isprintable() and comment == comment.strip()
