"""States in which a power cut may leave a disk, made from a log of what was written to it and when it was flushed.

The log is that of qemu's driver blklogwrites, in the format of Linux's dm-log-writes: a sector of its own data, then
for each write a sector that says where it goes, and the data.
"""

import random
import struct
from pathlib import Path
from typing import NamedTuple

from emulated_machine import copied

FLUSH, DISCARD = 1, 4
START, ENTRY = struct.Struct("<QQQI"), struct.Struct("<QQQQ")
MAGIC = 0x6A736677736872


class Entry(NamedTuple):
    """Bytes from `at` on became those from `data_at` in the log; zeros where that is None. Or all before is flushed."""

    flush: bool
    at: int
    length: int
    data_at: int | None


def read_log(path):
    """The entries, up to the one that was cut short."""
    entries, end = [], path.stat().st_size
    with open(path, "rb") as file:
        magic, version, _, sector = START.unpack(file.read(START.size))
        assert (magic, version) == (MAGIC, 1)
        place = sector
        while place + sector <= end:
            file.seek(place)
            first, count, flags, _ = ENTRY.unpack(file.read(ENTRY.size))
            length, place = count * sector, place + sector
            data_at = None if flags & DISCARD or not length else place
            if data_at is not None:
                place += length
            if place > end or not (flags or length):
                break
            entries.append(Entry(bool(flags & FLUSH), first * sector, length, data_at))
    return entries


def write(disk, entry, log):
    if not entry.length:
        return
    if entry.data_at is not None:
        log.seek(entry.data_at)
        data = log.read(entry.length)
    else:
        data = bytes(entry.length)
    disk.seek(entry.at)
    disk.write(data)


def states(base, log_path, first, folder, start_bytes=0):
    """(name, image) of each state from entry `first` on: at each flush what was written before it, nothing behind it;
    and beside that some of what came until the next flush, in no order. An image is there until the next.

    base: the disk's content from start_bytes on, before the first entry.
    """
    entries, rng = [each._replace(at=each.at - start_bytes) for each in read_log(log_path)], random.Random(7)
    flushes = [number for number, entry in enumerate(entries) if entry.flush and number >= first]
    work, image = folder / "work.img", folder / "state.img"
    copied(base, work)
    done = 0
    with open(log_path, "rb") as log:
        for flush, following in zip(flushes, [*flushes[1:], len(entries)], strict=True):
            with open(work, "r+b") as disk:
                for entry in entries[done:flush]:
                    write(disk, entry, log)
            done = flush
            pending = [entry for entry in entries[flush:following] if not entry.flush]
            for some in ("flushed", "some of the rest"):
                copied(work, image)
                if some != "flushed":
                    with open(image, "r+b") as disk:
                        for entry in rng.sample(pending, rng.randint(0, len(pending))):
                            write(disk, entry, log)
                yield f"flush {flush} of {len(entries)}, {some}", image
    work.unlink()
    image.unlink(missing_ok=True)


def entries_now(path: Path):
    """How many entries a log has while it is being written."""
    return len(read_log(path))
