"""Huge pages by this machine's kernel: what is in memory is moved and stays as it was, what is not is left alone."""

import mmap

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


def smaps_kb(memory, field: str) -> int:
    """Of the mappings that overlap the array's memory, the sum of one field of /proc/self/smaps."""
    start, total, inside = memory.ctypes.data, 0, False
    for line in board.read_text("/proc/self/smaps").splitlines():
        name = line.split()[0]
        if not name.endswith(":"):
            low, high = (int(end, 16) for end in name.split("-"))
            inside = low < start + memory.nbytes and start < high
        elif inside and name == field + ":":
            total += int(line.split()[1])
    return total


@pytest.fixture(autouse=True)
def kernel_has_them():
    if not board.read_text(f"{huge_pages.SETTINGS}/hpage_pmd_size"):
        pytest.skip("this kernel has no transparent huge pages")


def test_what_is_there_moves_and_stays_as_it_was():
    memory = mapping(1.0)
    before_kb = smaps_kb(memory, "Rss")
    if not huge_pages.gather_in_huge_pages():
        pytest.skip("this kernel cannot move memory into huge pages")
    assert smaps_kb(memory, "AnonHugePages") >= (SIZE_MB - 4) * 1024  # all but what is not aligned
    assert smaps_kb(memory, "Rss") == before_kb
    assert (memory.reshape(SIZE_MB, MB) == np.arange(1, SIZE_MB + 1)[:, None]).all()
    assert huge_pages.gather_in_huge_pages() >= (SIZE_MB - 4) * MB  # again: nothing to do, and it says what there is


def test_what_is_not_there_takes_no_memory():
    memory = mapping(0.5)
    before_kb = smaps_kb(memory, "Rss")
    huge_pages.gather_in_huge_pages()
    assert smaps_kb(memory, "Rss") == before_kb


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
