"""Huge pages by this machine's kernel: what is in memory is moved and stays as it was, what is not is left alone."""

import mmap
import re

import numpy as np
import pytest

from merino_runtime import board, huge_pages

MB = 2**20
SIZE_MB = 16


def mapping(touched_of_each: float):
    """Anonymous memory of which only so much of each MB was ever written."""
    memory = np.frombuffer(mmap.mmap(-1, SIZE_MB * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    memory.reshape(SIZE_MB, MB)[:, : int(touched_of_each * MB)] = np.arange(1, SIZE_MB + 1)[:, None]
    return memory


def huge_mb() -> float:
    """Of this process, in huge pages."""
    return sum(int(kb) for kb in re.findall(r"AnonHugePages:\s*(\d+)", board.read_text("/proc/self/smaps"))) / 1024


def resident_pages(memory) -> int:
    """Of the array's own: its mapping may have grown together with a neighbour's."""
    first, last = memory.ctypes.data // mmap.PAGESIZE, (memory.ctypes.data + memory.nbytes) // mmap.PAGESIZE
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(8 * first)
        entries = np.frombuffer(pagemap.read(8 * (last - first)), np.uint64)
    return int((entries >> np.uint64(63)).sum())


@pytest.fixture(autouse=True)
def kernel_has_them():
    if not board.read_text(f"{huge_pages.SETTINGS}/hpage_pmd_size"):
        pytest.skip("this kernel has no transparent huge pages")


def test_what_is_there_moves_and_stays_as_it_was():
    memory = mapping(1.0)
    if not huge_pages.gather_in_huge_pages():
        pytest.skip("this kernel cannot move memory into huge pages")
    assert huge_mb() >= SIZE_MB - 4  # all but what is not aligned
    assert resident_pages(memory) == SIZE_MB * MB // mmap.PAGESIZE
    assert (memory.reshape(SIZE_MB, MB) == np.arange(1, SIZE_MB + 1)[:, None]).all()
    assert huge_pages.gather_in_huge_pages() >= (SIZE_MB - 4) * MB  # again: nothing to do, and it says what there is


def test_what_is_not_there_takes_no_memory():
    memory = mapping(0.5)
    before = resident_pages(memory)
    if before > 0.6 * SIZE_MB * MB / mmap.PAGESIZE:
        pytest.skip("this kernel gives huge pages at the first touch")
    huge_pages.gather_in_huge_pages()
    assert resident_pages(memory) == before


@pytest.mark.parametrize("settings", [{}, {"hpage_pmd_size": "2097152\n", "enabled": "always madvise [never]\n"}])
def test_nothing_is_moved_where_the_kernel_has_none_or_its_owner_wants_none(tmp_path, monkeypatch, settings):
    for name, text in settings.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(huge_pages, "SETTINGS", str(tmp_path))
    assert huge_pages.gather_in_huge_pages() == 0


def test_a_kernel_that_refuses_is_no_error(monkeypatch):
    monkeypatch.setattr(huge_pages, "MADV_COLLAPSE", 12345)
    mapping(1.0)
    assert huge_pages.gather_in_huge_pages() == 0
