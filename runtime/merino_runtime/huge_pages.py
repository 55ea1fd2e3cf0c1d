"""Moves the weights into huge pages with MADV_COLLAPSE of madvise(2), on Linux 6.1 and later.

Decode reads every weight once per token. In pages of 4 KB a float32 decoder took 7 % longer, and its speed varied more
from process to process, because physical pages are scattered (docs/decisions/huge-pages.md).

Only memory that was mapped while the sessions opened is moved: never what a host application, or an earlier bundle,
had before. What other threads of the process map meanwhile cannot be told apart; its contents stay as they are.
"""
import contextlib
import errno
import os
import time
from typing import Iterator, List, Tuple

from merino_runtime import board

SETTINGS = "/sys/kernel/mm/transparent_hugepage"
SWITCH = "MERINO_HUGE_PAGES"  # environment variable; "0" switches them off
MADV_COLLAPSE = 25
LONGEST_S = 1.0  # 200 MB took 0.06 s; a machine that must compact its memory first would take longer
SMALL_PAGE_BYTES = 4096  # with pages of 16 KB (Raspberry Pi 5) a huge page has 32 MB: no board has been measured so
# The last byte of a little-endian entry of /proc/self/pagemap (pagemap.rst of the kernel): bit 63 present, bit 56
# mapped by this process alone. The shared page of zeros behind memory that was only read is present and not exclusive.
OWN_PAGE = 0x81

Ranges = List[Tuple[int, int]]  # (start, end), sorted, without overlap


@contextlib.contextmanager
def new_memory_in_huge_pages(wanted: bool = True) -> Iterator[None]:
    """Moves what the body maps, as far as every small page of a huge one is in memory already: memory does not grow.
    Does nothing where the kernel has no huge pages, its owner or the user wants none, or pages are not of 4 KB."""
    active = wanted and os.environ.get(SWITCH) != "0" and _huge_page_bytes() > 0
    before = anonymous_mappings(board.read_text("/proc/self/maps")) if active else []
    yield
    if active:
        after = anonymous_mappings(board.read_text("/proc/self/maps"))
        _collapse(difference(after, before), _huge_page_bytes(), time.perf_counter() + LONGEST_S)


def _huge_page_bytes() -> int:
    """0 if they are not to be used."""
    if "[never]" in board.read_text(os.path.join(SETTINGS, "enabled")):
        return 0
    if not hasattr(os, "sysconf") or os.sysconf("SC_PAGE_SIZE") != SMALL_PAGE_BYTES:
        return 0
    return int(board.read_text(os.path.join(SETTINGS, "hpage_pmd_size")) or 0)


def anonymous_mappings(maps: str) -> Ranges:
    """Writable anonymous mappings in the text of /proc/self/maps: heaps and what allocators map."""
    found: Ranges = []
    for line in maps.splitlines():
        fields = line.split(None, 5)
        name = fields[5] if len(fields) > 5 else ""
        if fields[1].startswith("rw") and fields[4] == "0" and (not name or name[0] == "[" and name != "[stack]"):
            start, end = fields[0].split("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def difference(ranges: Ranges, without: Ranges) -> Ranges:
    """The parts of `ranges` that no range of `without` covers."""
    left: Ranges = []
    for start, end in ranges:
        for taken_start, taken_end in without:
            if taken_start < end and taken_end > start:
                if taken_start > start:
                    left.append((start, taken_start))
                start = taken_end
        if start < end:
            left.append((start, end))
    return left


def _collapse(ranges: Ranges, size: int, deadline: float) -> int:
    """Returns the bytes in huge pages of `size` bytes. Stops at the deadline, of time.perf_counter()."""
    try:
        import ctypes  # some small builds of Python have none

        madvise = ctypes.CDLL(None, use_errno=True).madvise
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    except (ImportError, OSError, AttributeError, TypeError):
        return 0
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    collapsed = 0
    try:
        for start, end in ranges:
            for address in range(-(-start // size) * size, end - size + 1, size):
                if time.perf_counter() > deadline:
                    return collapsed
                if not _all_own(pagemap, address, size):
                    continue
                if madvise(address, size, MADV_COLLAPSE) == 0:
                    collapsed += size
                elif ctypes.get_errno() in (errno.ENOMEM, errno.EBUSY):  # no free huge page; other errors: this range
                    return collapsed
    except OSError:
        pass
    finally:
        os.close(pagemap)
    return collapsed


def _all_own(pagemap: int, address: int, size: int) -> bool:
    """Whether every small page is in memory, was written, and belongs to this process alone."""
    length = size // SMALL_PAGE_BYTES * 8
    entries = os.pread(pagemap, length, address // SMALL_PAGE_BYTES * 8)
    return len(entries) == length and all(last & OWN_PAGE == OWN_PAGE for last in set(entries[7::8]))
