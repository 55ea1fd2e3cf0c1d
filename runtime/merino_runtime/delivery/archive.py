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
import io
import os
import re
import stat
from typing import BinaryIO, Callable, Dict, Iterator, NamedTuple, Optional, Sequence

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
from merino_runtime.errors import MerinoError, machine_fault

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
    """Return the 512 bytes before a member: a POSIX ustar header with mode 0644, owner 0, time 0 and no names. Raise
    ValueError if no such header can hold the path."""
    # 1. The path: a name of at most 100 bytes, as long as possible, and a prefix of at most 155.
    name, prefix = path.encode("ascii"), b""
    if len(name) > 100:
        cut = name.find(b"/", len(name) - 101)
        if cut < 1 or cut > 155:
            raise ValueError(f"the path {path} is too long for the archive")
        name, prefix = name[cut + 1:], name[:cut]
    if not 0 <= size_bytes <= LARGEST_MEMBER_BYTES:
        raise ValueError(f"{path} has {size_bytes:,} bytes, allowed are {LARGEST_MEMBER_BYTES:,}")
    # 2. The fields before and after the checksum.
    numbers = b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size_bytes + b"%011o\0" % 0
    before = name.ljust(100, b"\0") + numbers
    after = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + prefix.ljust(155, b"\0") + bytes(12)
    checksum = sum(before) + 8 * ord(" ") + sum(after)
    return before + b"%06o\0 " % checksum + after


def padded(size_bytes: int) -> int:
    """Return the bytes that a member's content takes, padding included."""
    return -(-size_bytes // BLOCK) * BLOCK


def packed_member(path: str, data: bytes) -> bytes:
    """Return a small member as the file holds it."""
    return header(path, len(data)) + data.ljust(padded(len(data)), b"\0")


def checksum_bytes(manifest_data: bytes) -> bytes:
    """Return the contents of manifest.sha256, as sha256sum writes them."""
    return f"{hashlib.sha256(manifest_data).hexdigest()}  {NAME}\n".encode("ascii")


def open_archive(path: str) -> Archive:
    """Read the manifest and the signature, and check that the file has the layout that follows from them. Hash nothing.
    Raise MerinoError that names the wrong entry."""
    with _opened(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        data = _first_member(file, path)
        manifest = parse_manifest(data, path)
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
    return Archive(path, manifest, manifest_bytes=data, id=release_id(data), signature=signature, offsets=offsets,
                   bytes=size_bytes)


def signature_bytes(signature: Signature) -> bytes:
    """Return the content of manifest.sig, whose length is fixed."""
    return canonical({"algorithm": "ed25519", "key": base64.b64encode(signature.key).decode("ascii"),
                      "signature": base64.b64encode(signature.value).decode("ascii")})


def signed_bytes(manifest_data: bytes) -> bytes:
    """Return the bytes that a signature covers."""
    return SIGNED + manifest_data


def check_signature(archive: Archive, trusted: Sequence[bytes]) -> Optional[bytes]:
    """Return the key in `trusted` (public keys of 32 bytes) that signed the manifest; None if the file has no
    signature.

    Raise MerinoError if another key made the signature, or if it covers other bytes.
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
    """Hash every file in the archive. Raise MerinoError that names the first one that differs. report: receives each
    path."""
    with _opened(archive.path) as file:
        for entry in archive.manifest.files:
            report(entry.path)
            _copy(file, archive, entry, None)


def read_member(archive: Archive, path: str, largest_bytes: int = 64 * 2 ** 20) -> bytes:
    """Return the content of a small file of the archive. Raise MerinoError if its hash differs, or if it is larger."""
    entry = _entry(archive, path)
    if entry.bytes > largest_bytes:
        raise MerinoError(f"{archive.path}: {path} has {entry.bytes:,} bytes, allowed are {largest_bytes:,}. {REMEDY}.")
    content = io.BytesIO()
    with _opened(archive.path) as file:
        _copy(file, archive, entry, content)
    return content.getvalue()


def extract(archive: Archive, path: str, to: str) -> None:
    """Write one file of the archive to `to`, where nothing may exist yet, and sync it. Its folder is made if needed.
    Raise MerinoError if the hash differs; the caller then discards `to`."""
    entry = _entry(archive, path)
    with _opened(archive.path) as file:
        try:
            os.makedirs(os.path.dirname(to), exist_ok=True)
            with os.fdopen(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as output:
                _copy(file, archive, entry, output)
                output.flush()
                os.fsync(output.fileno())
        except OSError as error:
            raise machine_fault(f"write {to}", error) from error


def _entry(archive: Archive, path: str) -> FileEntry:
    entries = [entry for entry in archive.manifest.files if entry.path == path]
    if not entries:
        raise MerinoError(f"{archive.path} holds no {path}. {REMEDY}.")
    return entries[0]


def _copy(file: BinaryIO, archive: Archive, entry: FileEntry, to: Optional[BinaryIO]) -> None:
    """Copy the content of one entry to `to`, if given. Raise MerinoError if its hash differs or its padding is not
    zero."""
    digest, left = hashlib.sha256(), entry.bytes
    file.seek(archive.offsets[entry.path])
    while left:
        data = file.read(min(left, COPIED_AT_ONCE))
        if not data:
            break  # another process cut the file; the hash then differs
        digest.update(data)
        left -= len(data)
        if to:
            to.write(data)
    padding = file.read(padded(entry.bytes) - entry.bytes)
    if left or digest.hexdigest() != entry.sha256 or padding.strip(b"\0"):
        raise MerinoError(f"{archive.path}: {entry.path} is damaged: its bytes are not those of {NAME}. {REMEDY}.")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """Open a packed file for reading. Raise MerinoError if it cannot be read."""
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
    """Return the manifest's bytes. Its size is the only one that is read from a header."""
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
    """Return the signature at `position`; None if another member is there."""
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
    if file.read(BLOCK) != expected:
        raise MerinoError(f"{path}: another entry, or none, is in place of {entry.path} with {entry.bytes:,} bytes. "
                          f"{REMEDY}.")
