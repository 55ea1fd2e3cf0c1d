"""Huge pages by this machine's kernel: what is mapped meanwhile moves and stays as it was, all else is left."""
import mmap
import re
import sys

import numpy as np
import pytest

from merino_runtime import board, huge_pages
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.huge_pages import anonymous_mappings, difference, new_memory_in_huge_pages

MB = 2**20
HUGE = 2 * MB
SIZE = 16 * MB


def mapping():
    """Anonymous memory of which nothing was touched, aligned to huge pages, in a mapping of its own."""
    if not sys.platform.startswith("linux"):
        pytest.skip("Linux's")
    memory = np.frombuffer(mmap.mmap(-1, SIZE + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    start = -memory.ctypes.data % HUGE
    return memory[start:start + SIZE]


def written(memory):
    memory.reshape(16, MB)[:] = np.arange(1, 17)[:, None]
    return memory


def huge_bytes(memory):
    """Of the array's own memory, by /proc/self/smaps of the mappings that lie within it or around it."""
    first, last, found, inside = memory.ctypes.data, memory.ctypes.data + memory.nbytes, 0, False
    for line in board.read_text("/proc/self/smaps").splitlines():
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if bounds:
            inside = int(bounds.group(1), 16) < last and int(bounds.group(2), 16) > first
        elif inside and line.startswith("AnonHugePages:"):
            found += 1024 * int(line.split()[1])
    return found


@pytest.fixture
def collapsing():
    """Skips where this kernel cannot collapse: older than 6.1, never, or other small pages."""
    memory = written(mapping())
    if not huge_pages._huge_page_bytes() or huge_bytes(memory):
        pytest.skip("no huge pages here, or they are given at the first touch")
    if huge_pages._collapse([(memory.ctypes.data, memory.ctypes.data + SIZE)], HUGE, 1e99) != SIZE:
        pytest.skip("this kernel cannot collapse")


@pytest.mark.usefixtures("collapsing")
def test_what_was_mapped_meanwhile_moves_and_stays_as_it_was():
    with new_memory_in_huge_pages():
        memory = written(mapping())
    assert huge_bytes(memory) >= SIZE
    assert (memory.reshape(16, MB) == np.arange(1, 17)[:, None]).all()


@pytest.mark.usefixtures("collapsing")
def test_memory_of_before_is_left_alone():
    memory = written(mapping())
    with new_memory_in_huge_pages():
        written(mapping())
    assert huge_bytes(memory) == 0


@pytest.mark.usefixtures("collapsing")
@pytest.mark.parametrize("touch", ["nothing", "read", "written in half"])
def test_memory_that_is_not_all_there_does_not_grow(touch):
    with new_memory_in_huge_pages():
        memory = mapping()
        if touch == "read":
            assert memory[::4096].max() == 0
        if touch == "written in half":
            memory.reshape(8, HUGE)[:, :MB] = 1
    assert huge_bytes(memory) == 0


@pytest.mark.usefixtures("collapsing")
def test_opening_a_second_bundle_leaves_the_first_ones_cache_alone(bundle_dirs):
    bundle = load_bundle(str(bundle_dirs["portable"]))
    first = open_backend(bundle)
    memory = mapping()
    assert memory.sum() == 0  # read as a graph reads an empty cache
    first.cache["past_key_values.0.key"] = memory
    second = open_backend(bundle)
    assert huge_bytes(memory) == 0
    first.close()
    second.close()


@pytest.mark.usefixtures("collapsing")
@pytest.mark.parametrize("switch", ["argument", "environment", "page size", "setting", "no such file", "no time"])
def test_there_is_a_switch_and_a_bound(switch, monkeypatch, tmp_path):
    if switch == "environment":
        monkeypatch.setenv("MERINO_HUGE_PAGES", "0")
    elif switch == "page size":
        monkeypatch.setattr(huge_pages, "SMALL_PAGE_BYTES", 16384)
    elif switch in ("setting", "no such file"):
        if switch == "setting":
            (tmp_path / "hpage_pmd_size").write_text(f"{HUGE}\n")
            (tmp_path / "enabled").write_text("always madvise [never]\n")
        monkeypatch.setattr(huge_pages, "SETTINGS", str(tmp_path))
    elif switch == "no time":
        monkeypatch.setattr(huge_pages, "LONGEST_S", -1.0)
    with new_memory_in_huge_pages(switch != "argument"):
        memory = written(mapping())
    assert huge_bytes(memory) == 0


def test_a_kernel_that_refuses_is_no_error(monkeypatch):
    monkeypatch.setattr(huge_pages, "MADV_COLLAPSE", 12345)
    with new_memory_in_huge_pages():
        memory = written(mapping())
    assert (memory.reshape(16, MB) == np.arange(1, 17)[:, None]).all()


@pytest.mark.parametrize("ranges, without, left", [
    ([(0, 10)], [], [(0, 10)]), ([(0, 10)], [(0, 10)], []), ([(0, 10)], [(3, 5), (7, 8)], [(0, 3), (5, 7), (8, 10)]),
    ([(0, 10), (20, 30)], [(5, 25)], [(0, 5), (25, 30)]), ([(5, 10)], [(0, 5), (10, 12)], [(5, 10)])])
def test_ranges_are_subtracted(ranges, without, left):
    assert difference(ranges, without) == left


def test_mappings_are_writable_memory_of_no_file_and_no_stack():
    maps = ("1000-2000 rw-p 00000000 00:00 0 \n2000-3000 r--p 00000000 00:00 0 \n"
            "3000-4000 rw-p 00000000 08:01 77 /lib/x.so\n4000-5000 rw-p 00000000 00:00 0 [heap]\n"
            "5000-6000 rw-p 00000000 00:00 0 [stack]\n6000-7000 rw-s 00000000 00:05 9 /dev/zero (deleted)\n")
    assert anonymous_mappings(maps) == [(0x1000, 0x2000), (0x4000, 0x5000)]
