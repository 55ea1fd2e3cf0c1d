"""Disks: what speaks against writing to one, and one that is a file of ours. No other disk is ever written to.

Refusals by the nodes of this machine are asked for as a dry run, which would write nothing if they failed.
"""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
from sample_roots import MISSING, WHY, digest, make_image, make_root, tool

from merino_edge.delivery.block_device import flash_device, unused_disk, users_of
from merino_runtime.errors import MerinoError

pytestmark = pytest.mark.skipif(not os.path.isdir("/sys/class/block"), reason="disks are looked at as Linux shows them")
MB = 1 << 20


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "board.img"
    path.write_bytes(os.urandom(3 * MB + 512) + bytes(MB))
    return path


def disks_in_use():
    sources = [line.split()[0] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return sorted({source for source in sources if source.startswith("/dev/") and Path(source).is_block_device()})


def refused(image, node, message):
    with pytest.raises(MerinoError, match=message) as caught:
        flash_device(image, Path(node), confirm=None, dry_run=True)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not disks_in_use(), reason="no disk of this machine is mounted")
def test_the_disks_that_this_machine_runs_on_are_refused(image):
    for node in disks_in_use():
        refused(image, node, "is in use|is a partition of a disk|is made of other disks")


@pytest.mark.parametrize(("node", "message"), [
    ("/dev/null", "is not a disk"), ("/dev/no-such-disk", "cannot find"), ("/dev", "is not a disk"),
])  # fmt: skip
def test_what_is_no_disk_is_refused(node, message, image):
    refused(image, node, message)


def test_a_file_is_no_disk_and_a_folder_no_image(image, tmp_path):
    refused(image, image, "is not a disk")
    refused(tmp_path, "/dev/null", "is not an image")


@contextlib.contextmanager
def loop(path, size_bytes, *options):
    """A disk whose content is a file of ours."""
    with open(path, "ab") as file:
        file.truncate(size_bytes)
    command = [tool("losetup") or "losetup", "--find", "--show", *options, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        pytest.skip("losetup is not here")
    node = done.stdout.strip()
    if done.returncode or not Path(node).is_block_device():
        pytest.skip(f"no loop devices here: {done.stderr.strip()}")
    try:
        yield Path(node)
    finally:
        subprocess.run([command[0], "--detach", node], check=True)


def test_an_image_is_written_after_the_disk_is_named_and_read_back(image, tmp_path):
    backing = tmp_path / "card"
    backing.write_bytes(os.urandom(6 * MB))
    calls = []
    with loop(backing, 6 * MB) as node:
        rest = backing.read_bytes()[image.stat().st_size :]
        before = digest(backing)
        assert flash_device(image, node, confirm=None, dry_run=True)[0].startswith("write 4 MB to ")
        for answer in ("yes", "", node.name, f"{node}x"):
            with pytest.raises(MerinoError, match="nothing was written"):
                flash_device(image, node, confirm=lambda text, answer=answer: calls.append(text) or answer)
        assert digest(backing) == before and f"Type {node} to go on" in calls[0]
        flash_device(image, node, confirm=lambda text: f"{node}\n" if "6 MB" in text else "")
    assert backing.read_bytes() == image.read_bytes() + rest


def test_a_smaller_or_empty_or_read_only_disk_is_refused(image, tmp_path):
    with loop(tmp_path / "card", 2 * MB) as node:
        refused(image, node, "has 2 MB, .* has 4 MB. Take a larger card")
    with loop(tmp_path / "large", 8 * MB, "--read-only") as node:
        refused(image, node, "is read-only")
    empty = [path for path in Path("/sys/class/block").iterdir() if (path / "size").read_text() == "0\n"]
    for path in empty[:1]:
        if not path.name.startswith(("zram", "ram")):
            refused(image, f"/dev/{path.name}", "has no size")


def test_a_disk_that_is_opened_exclusively_is_left_to_its_holder(image, tmp_path):
    with loop(tmp_path / "card", 8 * MB) as node:
        before = digest(tmp_path / "card")
        holder = os.open(node, os.O_RDONLY | os.O_EXCL)
        try:
            with pytest.raises(MerinoError, match="cannot open .* busy"):
                flash_device(image, node, confirm=None)
        finally:
            os.close(holder)
        assert digest(tmp_path / "card") == before


@pytest.mark.skipif(bool(MISSING), reason=WHY)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_mounted_disk_and_its_partitions_are_refused(image, tmp_path):
    card = make_image(tmp_path / "card", make_root(tmp_path / "root"))
    place = tmp_path / "mounted"
    place.mkdir()
    with loop(card, card.stat().st_size, "--offset", str(5 * MB)) as node:
        if subprocess.run(["mount", "-o", "ro", node, place], capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted here")
        try:
            refused(image, node, f"{node.name} is mounted at {place}")
        finally:
            subprocess.run(["umount", place], check=True)
    with loop(card, card.stat().st_size, "--partscan") as node:
        second = Path(f"{node}p2")
        if not second.is_block_device():
            pytest.skip("no partitions of loop devices here")
        refused(image, second, f"is a partition of a disk. An image takes a whole disk: {node}")
        subprocess.run(["mount", "-o", "ro", second, place], check=True)
        try:
            refused(image, node, f"{second.name} is mounted at {place}")
        finally:
            subprocess.run(["umount", place], check=True)


def system_with(folder, name="sdz", mounts="", swaps="", holders=()):
    """/proc and /sys of a machine with a disk of two partitions."""
    block = folder / "sys/class/block"
    for number, each in enumerate((name, f"{name}1", f"{name}2")):
        place = block / name / each if number else block / name
        (place / "holders").mkdir(parents=True)
        (place / "dev").write_text(f"8:{400 + number}\n")
        if number:
            (place / "partition").write_text(f"{number}\n")
            (block / each).symlink_to(place)
    for each, holder in holders:
        (block / each / "holders" / holder).mkdir()
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/mountinfo").write_text(mounts)
    (folder / "proc/swaps").write_text("Filename Type Size Used Priority\n" + swaps)
    return folder


@pytest.mark.parametrize(("options", "expected"), [
    ({}, []),
    ({"mounts": "36 35 8:402 / /mnt rw - ext4 /dev/root rw\n"}, ["sdz2 is mounted at /mnt"]),
    ({"mounts": "36 35 0:53 / /mnt rw shared:1 - btrfs /dev/sdz1 rw\n"}, ["sdz1 is mounted at /mnt"]),
    ({"mounts": "36 35 8:1 / / rw - ext4 /dev/sda1 rw\n"}, []),
    ({"swaps": "/dev/sdz2 partition 1 0 -2\n"}, ["sdz2 is swap"]),
    ({"swaps": "/swapfile file 1 0 -2\n"}, []),
    ({"holders": [("sdz1", "dm-0"), ("sdz", "md127")]}, ["sdz is part of md127", "sdz1 is part of dm-0"]),
])  # fmt: skip
def test_what_uses_a_disk_is_found_in_proc_and_sys(options, expected, tmp_path):
    assert users_of("sdz", system_with(tmp_path, **options)) == expected


def test_a_card_that_turns_a_bit_is_found_out(image, tmp_path):
    """A byte is changed between writing and reading back."""
    backing = tmp_path / "card"
    with loop(backing, 6 * MB) as node:

        def turn(text):
            if text.startswith("reading"):
                with open(node, "rb+", buffering=0) as file:
                    file.seek(MB)
                    byte = file.read(1)[0]
                    file.seek(MB)
                    file.write(bytes([byte ^ 1]))

        with pytest.raises(MerinoError, match="does not hold what was written"):
            flash_device(image, node, confirm=None, report=turn)
        flash_device(image, node, confirm=None)
        assert unused_disk(node).size_bytes == 6 * MB
