"""Reads a packed file, NAME.merino, that anyone may have written: layout, signature, hashes, unpacking.

It is a POSIX tar of one canonical form (docs/formats.md): regular files alone, and each header follows from its path
and size. So the manifest determines every byte of the file except the contents, and a reader compares headers instead
of interpreting them: a link, a device, a second name or a false size makes a header that differs. Nothing is
compressed, so nothing expands. `tarfile` is not used: that of Python 3.6 follows links and paths of an archive.
"""
import base64
import binascii
import contextlib
import hashlib
import os
import re
import stat
from typing import BinaryIO, Callable, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.delivery import ed25519
from merino_runtime.delivery.manifest import (
    LARGEST_MANIFEST_BYTES,
    NAME,
    REMEDY,
    FileEntry,
    Manifest,
    canonical,
    parse_manifest,
    release_id,
)
from merino_runtime.errors import MerinoError
from merino_runtime.io.machine_faults import machine_fault

BLOCK = 512  # bytes; headers and contents of a tar begin at multiples of it
END = bytes(2 * BLOCK)
CHECKSUM = "manifest.sha256"  # against accidents: a file without a signature has it too
SIGNATURE = "manifest.sig"
SIGNED = b"merino manifest 1\n"  # before the manifest's bytes, so that a key signs nothing else by mistake
LARGEST_MEMBER_BYTES = 8 ** 11 - 1  # 11 octal digits
COPIED_AT_ONCE = 1 << 20


class Signature(NamedTuple):
    key: bytes  # 32: the public key
    value: bytes  # 64


class Archive(NamedTuple):
    path: str
    manifest: Manifest
    manifest_bytes: bytes
    id: str
    signature: Optional[Signature]
    offsets: Dict[str, int]  # of the contents, in the file
    bytes: int


def header(path: str, size_bytes: int) -> bytes:
    """The 512 bytes before a member: a POSIX ustar header with mode 0644, owner 0, time 0 and no names.

    Raises ValueError for a path that no such header can hold.
    """
    name, prefix = _split(path)
    if not 0 <= size_bytes <= LARGEST_MEMBER_BYTES:
        raise ValueError(f"{path} has {size_bytes:,} bytes, allowed are {LARGEST_MEMBER_BYTES:,}")
    numbers = b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size_bytes + b"%011o\0" % 0
    before = name.ljust(100, b"\0") + numbers
    after = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + prefix.ljust(155, b"\0") + bytes(12)
    checksum = sum(before) + 8 * ord(" ") + sum(after)
    return before + b"%06o\0 " % checksum + after


def _split(path: str) -> Tuple[bytes, bytes]:
    """-> (name of at most 100 bytes, prefix of at most 155), the name as long as it can be."""
    encoded = path.encode("ascii")
    if len(encoded) <= 100:
        return encoded, b""
    cut = encoded.find(b"/", len(encoded) - 101)
    if cut < 1 or cut > 155:
        raise ValueError(f"the path {path} is too long for the archive")
    return encoded[cut + 1:], encoded[:cut]


def padded(size_bytes: int) -> int:
    """The bytes that a member's contents take."""
    return -(-size_bytes // BLOCK) * BLOCK


def packed_member(path: str, data: bytes) -> bytes:
    """A small member as it lies in the file."""
    return header(path, len(data)) + data.ljust(padded(len(data)), b"\0")


def checksum_bytes(manifest_data: bytes) -> bytes:
    """The contents of manifest.sha256, as sha256sum writes them."""
    return f"{hashlib.sha256(manifest_data).hexdigest()}  {NAME}\n".encode("ascii")


def open_archive(path: str) -> Archive:
    """Reads the manifest and the signature and checks that the file has the layout that follows from them. Hashes
    nothing. Raises MerinoError that names the entry."""
    with _opened(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        data = _first_member(file, path)
        manifest = parse_manifest(data, path)
        identity = release_id(data)
        position = BLOCK + padded(len(data))
        file.seek(position)
        checksum = packed_member(CHECKSUM, checksum_bytes(data))
        if file.read(len(checksum)) != checksum:
            raise MerinoError(f"{path}: {CHECKSUM} is not that of {NAME}: one of the two was changed. {REMEDY}.")
        position += len(checksum)
        signature = _signature_at(file, path, position)
        if signature:
            position += BLOCK + padded(len(signature_bytes(signature)))
        offsets = {}
        for entry in manifest.files:
            _check_header(file, path, position, entry)
            offsets[entry.path] = position + BLOCK
            position += BLOCK + padded(entry.bytes)
        file.seek(position)
        if file.read(len(END)) != END or size_bytes != position + len(END):
            raise MerinoError(f"{path} has {size_bytes:,} bytes, its manifest gives {position + len(END):,}, or its "
                              f"end is not zeros. {REMEDY}.")
    return Archive(path, manifest, data, identity, signature, offsets, size_bytes)


def signature_bytes(signature: Signature) -> bytes:
    """The contents of manifest.sig, always as many bytes."""
    return canonical({"algorithm": "ed25519", "key": base64.b64encode(signature.key).decode("ascii"),
                      "signature": base64.b64encode(signature.value).decode("ascii")})


def signed_bytes(manifest_data: bytes) -> bytes:
    """The bytes that a signature covers."""
    return SIGNED + manifest_data


def check_signature(archive: Archive, trusted: Sequence[bytes]) -> Optional[bytes]:
    """The key of `trusted`, public keys of 32 bytes, that signed the manifest; None where the file has no signature.

    Raises MerinoError where the signature is of another key, or of other bytes.
    """
    signature = archive.signature
    if signature is None:
        return None
    if not ed25519.verify(signature.key, signed_bytes(archive.manifest_bytes), signature.value):
        raise MerinoError(f"{archive.path}: {SIGNATURE} is not a signature of {NAME}: one of the two was "
                          f"changed. {REMEDY}.")
    if signature.key not in trusted:
        key = base64.b64encode(signature.key).decode("ascii")
        raise MerinoError(f"{archive.path} is signed by the key {key}, which is not trusted here. If the key is yours, "
                          "trust it: --trust NAME.pub")
    return signature.key


def check_hashes(archive: Archive, report: Callable[[str], None] = lambda _: None) -> None:
    """Hashes every file in the archive. MerinoError names the first that differs. report: gets each path."""
    with _opened(archive.path) as file:
        for entry in archive.manifest.files:
            report(entry.path)
            _copy(file, archive, entry, None)


def read_member(archive: Archive, path: str, largest_bytes: int = 64 * 2 ** 20) -> bytes:
    """A small file of the archive, its hash checked. Raises MerinoError where it differs, or has more bytes."""
    entry = _entry(archive, path)
    if entry.bytes > largest_bytes:
        raise MerinoError(f"{archive.path}: {path} has {entry.bytes:,} bytes, allowed are {largest_bytes:,}. {REMEDY}.")
    with _opened(archive.path) as file:
        file.seek(archive.offsets[path])
        data = file.read(entry.bytes)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise _damaged(archive, path)
    return data


def extract(archive: Archive, path: str, to: str) -> None:
    """Writes one file of the archive to `to`, where nothing may be yet, and syncs it. Its hash is checked meanwhile;
    where it differs, MerinoError is raised and `to` is left for the caller to discard."""
    entry = _entry(archive, path)
    with _opened(archive.path) as file:
        try:
            with os.fdopen(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as made:
                _copy(file, archive, entry, made)
                made.flush()
                os.fsync(made.fileno())
        except OSError as error:
            raise machine_fault(f"write {to}", error) from error


def _entry(archive: Archive, path: str) -> FileEntry:
    entries = [entry for entry in archive.manifest.files if entry.path == path]
    if not entries:
        raise MerinoError(f"{archive.path} holds no {path}. {REMEDY}.")
    return entries[0]


def _copy(file: BinaryIO, archive: Archive, entry: FileEntry, to: Optional[BinaryIO]) -> None:
    digest, left = hashlib.sha256(), entry.bytes
    file.seek(archive.offsets[entry.path])
    while left:
        data = file.read(min(left, COPIED_AT_ONCE))
        if not data:
            raise _damaged(archive, entry.path)  # it became shorter meanwhile
        digest.update(data)
        left -= len(data)
        if to:
            to.write(data)
    if digest.hexdigest() != entry.sha256:
        raise _damaged(archive, entry.path)
    padding = file.read(padded(entry.bytes) - entry.bytes)
    if padding.strip(b"\0"):
        raise _damaged(archive, entry.path)


def _damaged(archive: Archive, path: str) -> MerinoError:
    return MerinoError(f"{archive.path}: {path} is damaged: its bytes are not those of {NAME}. {REMEDY}.")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """Raises MerinoError where the file cannot be read."""
    try:
        # O_NONBLOCK: a pipe without a writer does not keep this waiting.
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise MerinoError(f"cannot read {path}: {reason}. Name a file that `merino-edge pack` wrote.") from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise MerinoError(f"{path} is not a regular file. Name a file that `merino-edge pack` wrote.")
        try:
            yield file
        except OSError as error:
            raise machine_fault(f"read {path}", error) from error


def _first_member(file: BinaryIO, path: str) -> bytes:
    """The manifest's bytes. Its size is the only one that is read from a header."""
    head = file.read(BLOCK)
    size = re.match(br"[0-7]{11}\Z", head[124:135])
    size_bytes = int(size.group(0), 8) if size else 0
    if len(head) < BLOCK or size_bytes > LARGEST_MANIFEST_BYTES or head != header(NAME, size_bytes):
        raise MerinoError(f"{path} is not a packed file: it does not begin with {NAME} of at most "
                          f"{LARGEST_MANIFEST_BYTES:,} bytes. Name a file that `merino-edge pack` wrote.")
    block = file.read(padded(size_bytes))
    if len(block) < padded(size_bytes) or block[size_bytes:].strip(b"\0"):
        raise MerinoError(f"{path}: {NAME} is cut off. {REMEDY}.")
    return block[:size_bytes]


def _signature_at(file: BinaryIO, path: str, position: int) -> Optional[Signature]:
    """None where another member stands there."""
    size_bytes = len(signature_bytes(Signature(bytes(32), bytes(64))))
    file.seek(position)
    if file.read(BLOCK) != header(SIGNATURE, size_bytes):
        return None
    block = file.read(padded(size_bytes))
    match = re.match(br'{"algorithm":"ed25519","key":"([^"]+)","signature":"([^"]+)"}\n', block)
    try:
        key, value = (base64.b64decode(part, validate=True) for part in match.groups()) if match else (b"", b"")
    except binascii.Error:
        key = value = b""
    signature = Signature(key, value)
    if (len(key), len(value)) != (32, 64) or block != signature_bytes(signature).ljust(padded(size_bytes), b"\0"):
        raise MerinoError(f"{path}: {SIGNATURE} is not a signature. {REMEDY}.")
    return signature


def _check_header(file: BinaryIO, path: str, position: int, entry: FileEntry) -> None:
    try:
        expected = header(entry.path, entry.bytes)
    except ValueError as error:
        raise MerinoError(f"{path}: {error}. {REMEDY}.") from error
    file.seek(position)
    block = file.read(BLOCK)
    if block != expected:
        raise MerinoError(f"{path}: in place of {entry.path} with {entry.bytes:,} bytes stands {_described(block)}. "
                          f"{REMEDY}.")


KINDS = {b"1": "a hard link", b"2": "a link", b"3": "a character device", b"4": "a block device", b"5": "a folder",
         b"6": "a pipe", b"x": "an extended header", b"g": "an extended header", b"L": "a long name",
         b"S": "a sparse file"}


def _described(block: bytes) -> str:
    """A header that is not the right one, for a message."""
    if len(block) < BLOCK:
        return "the end of the file"
    if not block.strip(b"\0"):
        return "the end of the archive"
    name = block[:100].split(b"\0")[0]
    kind = KINDS.get(block[156:157], "another entry")
    return f"{kind} named {ascii(name.decode('latin-1'))}"
