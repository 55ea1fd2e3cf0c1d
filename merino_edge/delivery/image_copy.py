"""A disk image's bytes into a new file: copied, or unpacked from .xz. What is zero takes no space on the disk."""

import errno
import lzma
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from merino_runtime.errors import MerinoError

COPIED_AT_ONCE = 4 << 20


def copy_sparse(image: Path, to: BinaryIO) -> None:
    """Copies what the file system has stored of `image`; its holes stay holes. Raises OSError."""
    with open(image, "rb") as source:
        size_bytes = os.fstat(source.fileno()).st_size
        end = 0
        while end < size_bytes:
            try:
                start = os.lseek(source.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole up to the end
                    break
                raise
            end = os.lseek(source.fileno(), start, os.SEEK_HOLE)
            source.seek(start)
            to.seek(start)
            left = end - start
            while left and (data := source.read(min(left, COPIED_AT_ONCE))):
                to.write(data)
                left -= len(data)
        to.truncate(size_bytes)
        to.flush()


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
