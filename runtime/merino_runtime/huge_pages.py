"""Moves the weights into huge pages with MADV_COLLAPSE of madvise(2), on Linux 6.1 and later.

Decode reads every weight once per token. In pages of 4 KB a float32 decoder took 7 % longer, and its speed varied more
from process to process, because physical pages are scattered (docs/decisions).
"""
import errno
import os
from typing import Iterator, Tuple

from merino_runtime import board

SETTINGS = "/sys/kernel/mm/transparent_hugepage"
MADV_COLLAPSE = 25
PRESENT = 0x80  # bit 63 of a little-endian entry of /proc/self/pagemap, in its last byte (pagemap.rst of the kernel)


def gather_in_huge_pages() -> int:
    """Call when the weights are packed. Only ranges whose small pages are all present are collapsed, so memory does not
    grow. Returns the number of bytes in huge pages; 0 if the kernel offers none."""
    size = int(board.read_text(os.path.join(SETTINGS, "hpage_pmd_size")) or 0)
    if not size or "[never]" in board.read_text(os.path.join(SETTINGS, "enabled")):
        return 0
    try:
        import ctypes  # some small builds of Python have none

        madvise = ctypes.CDLL(None, use_errno=True).madvise
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    except (ImportError, OSError, AttributeError, TypeError):
        return 0
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    gathered = 0
    try:
        for start, end in _own_mappings(board.read_text("/proc/self/maps")):
            for address in range(-(-start // size) * size, end - size + 1, size):
                if not _all_present(pagemap, address, size):
                    continue
                if madvise(address, size, MADV_COLLAPSE) == 0:
                    gathered += size
                elif ctypes.get_errno() in (errno.ENOMEM, errno.EBUSY):  # no free huge page; other errors: this range
                    return gathered
    except OSError:
        pass
    finally:
        os.close(pagemap)
    return gathered


def _own_mappings(maps: str) -> Iterator[Tuple[int, int]]:
    """(start, end) of writable anonymous mappings: heaps and what allocators map."""
    for line in maps.splitlines():
        fields = line.split(None, 5)
        name = fields[5] if len(fields) > 5 else ""
        if fields[1].startswith("rw") and fields[4] == "0" and (not name or name[0] == "[" and name != "[stack]"):
            start, end = fields[0].split("-")
            yield int(start, 16), int(end, 16)


def _all_present(pagemap: int, address: int, size: int) -> bool:
    page = os.sysconf("SC_PAGE_SIZE")
    length = size // page * 8
    entries = os.pread(pagemap, length, address // page * 8)
    return len(entries) == length and min(entries[7::8]) >= PRESENT
