"""Key pairs of Ed25519, made and used here; boards hold public keys alone (`merino_runtime.delivery.keys`)."""

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from merino_edge.storage.atomic import make_parent
from merino_edge.storage.extras import import_extra
from merino_runtime.delivery.keys import SUFFIX, key_line
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_text
from merino_runtime.io.outputs import write_new

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PRIVATE_SUFFIX = ".key"
PRIVATE_MODE = 0o600
KEPT = "no key is overwritten: choose another -o, or move it away"
OTHERS = 0o077
LARGEST_BYTES = 2**16
A_KEY = "a private key of Ed25519 in PEM, without a password"
REMEDY = "Give the NAME.key that `merino-edge keygen -o NAME` wrote."
SERIALIZATION = "cryptography.hazmat.primitives.serialization"
ED25519 = "cryptography.hazmat.primitives.asymmetric.ed25519"


def make_key(name: Path) -> tuple[Path, Path]:
    """Make a pair -> (NAME.key, NAME.pub). Raise MerinoError if one of them is there: no key is overwritten, not
    even one that another process makes at the same time."""
    if name.name in ("", ".."):
        raise MerinoError(f"-o {str(name)!r} names a folder or nothing: give a name, such as -o fleet")
    private, public = (name.with_name(name.name + suffix) for suffix in (PRIVATE_SUFFIX, SUFFIX))
    for path in (private, public):
        if os.path.lexists(path):
            raise MerinoError(f"{path} is there, and {KEPT}")
    serialization = import_extra(SERIALIZATION)
    key = import_extra(ED25519).Ed25519PrivateKey.generate()
    line = key_line(key.public_key().public_bytes_raw(), name.name)
    make_parent(private)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_new(str(private), pem, KEPT, PRIVATE_MODE)
    try:
        write_new(str(public), line.encode(), KEPT)
    except BaseException:
        private.unlink()
        raise
    return private, public


def own_key(say: Callable[[str], None]) -> tuple[Path, Path]:
    """Return the files of this user's key pair, private and public, which is made at the first use. Its name is random,
    so that a board can trust those of several workstations."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "merino_edge"
    there = sorted(home.glob(f"deploy-*{PRIVATE_SUFFIX}"))
    if there:
        return there[0], there[0].with_suffix(SUFFIX)
    private, public = make_key(home / f"deploy-{secrets.token_hex(4)}")
    say(f"made a key that signs your packages: {private} stays secret, boards get {public}")
    return private, public


def read_private_key(path: Path) -> "Ed25519PrivateKey":
    """Raise MerinoError if it cannot be read, is of another kind, or, as ssh has it, others may read it."""
    text = read_text(str(path), A_KEY, REMEDY, LARGEST_BYTES)
    if "PRIVATE KEY" in text and stat.S_IMODE(path.stat().st_mode) & OTHERS:
        raise MerinoError(f"{path} can be read by other users, who could sign with it. Run: chmod 600 {path}")
    unsupported = import_extra("cryptography.exceptions").UnsupportedAlgorithm
    try:
        key = import_extra(SERIALIZATION).load_pem_private_key(text.encode(), password=None)
    except (ValueError, TypeError, unsupported) as error:  # TypeError: it has a password
        raise MerinoError(f"{path} is not {A_KEY}. {REMEDY}") from error
    if not isinstance(key, import_extra(ED25519).Ed25519PrivateKey):
        raise MerinoError(f"{path} is not {A_KEY}, but of another algorithm. {REMEDY}")
    return key
