"""A disk image's bytes into a new file: copied, or unpacked from .xz. What is zero takes no space on the disk."""

import errno
import lzma
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from merino_runtime.bundle import sha256_of
from merino_runtime.errors import MerinoError

COPIED_AT_ONCE = 4 << 20


def copy_sparse(image: Path, to: BinaryIO) -> None:
    """Copies what the file system has stored of `image`; its holes stay holes. Raises OSError, and MerinoError where
    the copy then has another SHA-256 than the image.

    Holes are looked up by moving the file's position, which a buffered reader does not notice: so data is read by its
    place.
    """
    with open(image, "rb", buffering=0) as source:
        handle, end = source.fileno(), 0
        size_bytes = os.fstat(handle).st_size
        while end < size_bytes:
            try:
                start = os.lseek(handle, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole up to the end
                    break
                raise
            end = os.lseek(handle, start, os.SEEK_HOLE)
            to.seek(start)
            while start < end and (data := os.pread(handle, min(end - start, COPIED_AT_ONCE), start)):
                to.write(data)
                start += len(data)
        to.truncate(size_bytes)
        to.flush()
    if sha256_of(str(image)) != sha256_of(to.name):
        raise MerinoError(
            f"the copy of {image} differs from it: the image was written to meanwhile, or a disk is faulty. Unmount "
            "the image, stop what writes to it, and run the command again."
        )


def unpack_xz(image: Path, to: BinaryIO) -> None:
    """Unpacks `image`. Raises MerinoError where it is damaged, or would be larger than the free space beside `to`."""
    free = shutil.disk_usage(os.path.dirname(to.name)).free
    size_bytes = 0
    try:
        with lzma.open(image) as source:
            while data := source.read(COPIED_AT_ONCE):
                size_bytes += len(data)
                if size_bytes > free:
                    raise MerinoError(
                        f"{image} unpacks to more than the {free / 2**20:.0f} MB that are free there. Free space on "
                        "that disk, or copy it to another one."
                    )
                if data.strip(b"\0"):
                    to.write(data)
                else:
                    to.seek(len(data), os.SEEK_CUR)
    except (lzma.LZMAError, EOFError) as error:
        raise MerinoError(f"{image} is damaged or not an .xz file: {error}. Fetch it again.") from error
    to.truncate(size_bytes)
    to.flush()
