"""A board whose power is cut at any flush of its disk, whose card is full, that two installers reach at once: it
answers with a known-good release each time. On the emulated machine with systemd, `make test-vm`.

The commands run once. What a power cut leaves is made from a log of what was written to the disk and when it was
flushed (qemu's driver blklogwrites, in the format of Linux's dm-log-writes): at each flush what was written until then,
and beside it a part of what was not flushed yet. In each such state the file system is repaired as at a start, and the
release in use must be a complete one. Some of the states are started.
"""
import json
import random
import shutil
import struct
import subprocess
import zipfile
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from emulated_machine import PARTS, boot, copied, needs_machine, new_root
from packed_files import tree
from sample_roots import ROOT_AT, tool
from test_vm_delivery import GENERATE, INSTALLED, PROMPT, UNTIL_GOOD, edge_ok, ids, make_image

from merino_edge.delivery.wheels import Target, wheels_for
from merino_edge.profiles.reading import load_profile
from merino_runtime.delivery import releases
from merino_runtime.delivery.archive import open_archive
from merino_runtime.io.lock import locked

pytestmark = [pytest.mark.slow, needs_machine]

CPU = "cortex-a72"
STARTED = 2  # states of each command that are started; the rest are looked at
VARYING = ("release.json", "verified.json")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """first.merino and second.merino, signed by fleet.key, which bring no packages; merino.pyz; site, the packages."""
    folder = tmp_path_factory.mktemp("power")
    edge_ok(None, "keygen", "-o", folder / "fleet")
    for name, context in (("first", 32), ("second", 40)):
        edge_ok(None, "export", "embedded", "-o", folder / name, "--context", context)
        edge_ok(None, "pack", folder / name, "-o", folder / f"{name}.merino", "--sign", folder / "fleet.key")
    shutil.copy(folder / "second" / "merino.pyz", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(PARTS.parent))  # wheels stay beside the machine
        wheels = wheels_for(load_profile("raspberry-pi-4").software, Target("3.11", "aarch64", "2.36"))
    for wheel in wheels.files:
        with zipfile.ZipFile(wheel) as file:
            file.extractall(folder / "site")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def expected(place):
    """The ids that this machine generates."""
    return ids(edge_ok(None, "generate", place / "first", PROMPT, *GENERATE))


@pytest.fixture(scope="module")
def images(place, tmp_path_factory):
    """Disks by what is installed: none; first, good; second, good, with first before it. Nobody writes to them."""
    folder = tmp_path_factory.mktemp("images")
    made = {"none": new_root(folder / "none.img")}
    with boot(made["none"], CPU, folder) as machine:
        machine.ssh("mkdir /opt/site")
        with subprocess.Popen(["tar", "c", "-C", place / "site", "."], stdout=subprocess.PIPE) as packages:
            machine.ssh("tar x -C /opt/site", stdin=packages.stdout, timeout_s=1200)
        machine.ssh("echo /opt/site >/usr/lib/python3/dist-packages/site-of-tests.pth; python3 -c 'import onnxruntime'")
        files = [place / name for name in ("first.merino", "second.merino", "fleet.pub", "merino.pyz")]
        machine.send(files, "/root")
        machine.shut_down()
    for name, before in (("first", "none"), ("second", "first")):
        made[name] = folder / f"{name}.img"
        copied(made[before], made[name])
        with boot(made[name], CPU, folder) as machine:
            machine.ssh(INSTALL.format(name), timeout_s=1200)
            machine.ssh(UNTIL_GOOD, timeout_s=1200)
            machine.shut_down()
    yield made
    shutil.rmtree(folder)


INSTALL = "python3 merino.pyz install {}.merino --trust fleet.pub --service"


@pytest.fixture(scope="module")
def whole(images, place, tmp_path_factory):
    """By id: the files of a release that was installed without a fault."""
    with dumped(images["second"], tmp_path_factory.mktemp("whole")) as root:
        releases = {id_of(place, name): files_of(root, id_of(place, name)) for name in ("first", "second")}
    assert all(len(files) > 5 for files in releases.values())
    return releases


def id_of(place, name):
    return open_archive(str(place / f"{name}.merino")).id


def files_of(root, release_id):
    return {
        path: data for path, data in tree(releases.release_folder(str(root), release_id)).items()
        if path not in VARYING and "__pycache__" not in path
    }  # fmt: skip


@contextmanager
def dumped(disk, folder):
    """/opt/merino of a disk after a start has repaired the file system. An empty folder where there is none."""
    copy = folder / "opt"
    done = subprocess.run([tool("e2fsck"), "-p", disk], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # the journal was replayed; nothing else was wrong
    copy.mkdir()
    subprocess.run([tool("debugfs"), "-R", f"rdump /opt/merino {copy}", disk], capture_output=True, check=True)
    (copy / "merino").mkdir(exist_ok=True)
    yield copy / "merino"
    shutil.rmtree(copy)


def check_state(root, allowed, whole):
    """The release in use is complete, and one of these; so is the one that is there after the next command repaired
    what was cut short. -> (id in use, id before it) by then"""
    for repaired in (False, True):
        if repaired and (root / releases.RELEASES).is_dir():
            with locked(str(root), "test"):
                releases.recover(str(root))
        now = releases.links(str(root))
        assert now.current in allowed, now
        for each in {*now} - {None}:
            files = files_of(root, each)
            assert {path: files.get(path) for path in whole[each]} == whole[each], each
    return now


def cut_everywhere(image, command, allowed, whole, tmp_path, start_bytes=0, partition=""):
    """Runs the command on the machine, with the log of its disk, and looks at each state that a power cut may have left
    since then. -> images of some of them, without what lies before start_bytes: e2fsck replays no journal behind it"""
    log, disk = tmp_path / "log", tmp_path / "disk.img"
    copied(image, disk)
    with boot(disk, CPU, tmp_path, partition, log) as machine:
        first = len(read_log(log)) if command else 0  # while it is being written
        if command:
            machine.ssh(command, timeout_s=1200)
        machine.ssh(UNTIL_GOOD, timeout_s=1200)
        machine.shut_down()
    seen, kept, base = {}, [], image
    if start_bytes:
        base = tmp_path / "base.img"
        call = ["dd", f"if={image}", f"of={base}", "bs=1M", f"skip={start_bytes}", "iflag=skip_bytes", "conv=sparse"]
        subprocess.run(call, capture_output=True, check=True)
    for number, (name, state) in enumerate(states(base, log, first, tmp_path, start_bytes)):
        try:
            with dumped(state, tmp_path) as root:
                outcome = check_state(root, allowed, whole)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
        if outcome not in seen or random.Random(number).random() < 0.02:
            kept.append(copied(state, tmp_path / f"kept-{number}.img"))
        seen[outcome] = name
    log.unlink()
    disk.unlink()
    assert number > 20 and len(seen) > 1, "too few flushes to show anything"
    return random.Random(1).sample(kept, min(STARTED, len(kept)))


def check_answers(image, tmp_path, expected, installed=True):
    """At its next start the board has a good release in use, which generates what this machine does."""
    with boot(image, CPU, tmp_path) as machine:
        if not installed:
            assert machine.ssh(f"test -e {INSTALLED}", check=False).returncode == 1
            machine.ssh(INSTALL.format("second"), timeout_s=1200)
        machine.ssh(UNTIL_GOOD, timeout_s=1200)
        status = json.loads(machine.ssh(f"{INSTALLED} status --json").stdout)
        assert status["current"]["good"], status
        assert ids(machine.ssh(f"{INSTALLED} generate installed '{PROMPT}' {' '.join(GENERATE)}").stdout) == expected
    image.unlink()


COMMANDS = {  # what is installed before, the command, what may be in use meanwhile
    "install": ("none", INSTALL.format("first"), {None, "first"}),
    "upgrade": ("first", INSTALL.format("second"), {"first", "second"}),
    "rollback": ("second", f"{INSTALLED} rollback && systemctl restart --no-block merino.service", {"first", "second"}),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_power_is_cut_at_any_flush(command, images, whole, place, expected, tmp_path):
    before, line, names = COMMANDS[command]
    allowed = {name and id_of(place, name) for name in names}
    for image in cut_everywhere(images[before], line, allowed, whole, tmp_path):
        with dumped(image, tmp_path) as root:
            installed = releases.links(str(root)).current is not None
        check_answers(image, tmp_path, expected, installed=installed)


def test_power_is_cut_at_any_flush_of_a_first_start(images, whole, place, expected, tmp_path):
    card = make_image(tmp_path / "card.img", tmp_path, images["none"])
    edge_ok(None, "flash", place / "first.merino", "--image", card, "--trust", place / "fleet.pub")
    allowed = {None, id_of(place, "first")}
    for image in cut_everywhere(card, "", allowed, whole, tmp_path, ROOT_AT, "2"):
        check_answers(image, tmp_path, expected)


def test_a_full_card_keeps_the_release_in_use_and_answers_at_the_next_start(images, expected, place, tmp_path):
    """Filled to its last block, root's reserve too."""
    image = copied(images["first"], tmp_path / "full.img")
    fill = "for size in 1M 512; do dd if=/dev/zero of=/filler.$size bs=$size; done; sync; df --output=avail / | tail -1"
    with boot(image, CPU, tmp_path) as machine:
        assert machine.ssh(fill, timeout_s=1200).stdout.strip() == "0"
        done = machine.ssh(INSTALL.format("second"), check=False, timeout_s=1200)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert json.loads(machine.ssh(f"{INSTALLED} status --json").stdout)["current"]["id"] == id_of(place, "first")
        machine.cut_power()
    with boot(image, CPU, tmp_path) as machine:
        machine.ssh(UNTIL_GOOD, timeout_s=1200)
        assert ids(machine.ssh(f"{INSTALLED} generate installed '{PROMPT}' {' '.join(GENERATE)}").stdout) == expected
        machine.ssh("rm /filler.* && " + INSTALL.format("second"), timeout_s=1200)
        machine.ssh("sync")
        machine.cut_power()
    check_answers(image, tmp_path, expected)


def test_a_new_release_that_lost_half_of_its_application_is_left_and_can_be_installed_again(
    images, place, expected, tmp_path
):
    first, second = id_of(place, "first"), id_of(place, "second")
    image = copied(images["first"], tmp_path / "half.img")
    with boot(image, CPU, tmp_path) as machine:
        machine.ssh(INSTALL.format("second").replace(" --service", ""), timeout_s=1200)
        machine.ssh("cd /opt/merino/current/; truncate -s $(($(stat -c %s merino.pyz) / 2)) merino.pyz; sync")
        machine.cut_power()
    with boot(image, CPU, tmp_path) as machine:
        machine.ssh(UNTIL_GOOD, timeout_s=1200)
        status = json.loads(machine.ssh(f"{INSTALLED} status --json").stdout)
        assert (status["current"]["id"], status["previous"]["id"]) == (first, second)
        assert status["previous"]["gave_up"] and not status["previous"]["good"]
        assert f"back to {first}" in machine.ssh("journalctl -u merino.service -o cat").stdout
        machine.ssh(INSTALL.format("second"), timeout_s=1200)
        machine.ssh(UNTIL_GOOD, timeout_s=1200)
        assert json.loads(machine.ssh(f"{INSTALLED} status --json").stdout)["current"]["id"] == second
        machine.shut_down()
    check_answers(image, tmp_path, expected)


def test_two_installers_at_once_leave_one_release_in_use_that_answers(images, expected, tmp_path):
    image = copied(images["none"], tmp_path / "two.img")
    both = f"({INSTALL.format('first')}; echo $? >one) & {INSTALL.format('second')}; echo $? >two; wait; cat one two"
    with boot(image, CPU, tmp_path) as machine:
        done = machine.ssh(both, timeout_s=1200)
        codes = done.stdout.split()[-2:]
        assert "0" in codes and set(codes) <= {"0", "1"} and "Traceback" not in done.stderr, done.stderr
        assert "1" not in codes or "another" in done.stderr, done.stderr
        machine.ssh("sync")
        machine.cut_power()
    check_answers(image, tmp_path, expected)


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
