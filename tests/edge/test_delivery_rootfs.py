"""A first boot in a folder: what is written where, links that lead out, refusals, and a process killed at any point."""

import ctypes
import errno
import itertools
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from few_examples import examples
from hypothesis import example, given
from hypothesis import strategies as st
from sample_roots import WHEELS, digest, elf, make_key, make_packed, make_root

from merino_edge.bundles.board_app import board_app
from merino_edge.delivery.first_boot import flash_rootfs
from merino_edge.delivery.root_tree import FolderTree, resolve
from merino_runtime.delivery.archive import check_hashes, open_archive
from merino_runtime.errors import MerinoError

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to a board's root")
UNIT = "etc/systemd/system/merino-install.service"
WANTED = "etc/systemd/system/multi-user.target.wants/merino-install.service"
INCOMING = "opt/merino/incoming"


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "root")


@pytest.fixture
def packed(tmp_path):
    return make_packed(tmp_path / "sample.merino")


def contents(folder):
    """(mode, owner, link or digest) of everything below a folder."""
    results = {}
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        held = os.readlink(path) if path.is_symlink() else digest(path) if path.is_file() else ""
        results[str(path.relative_to(folder))] = (oct(seen.st_mode), seen.st_uid, seen.st_gid, held)
    return results


def armed(root):
    """The packed file that the first boot would install; None where the unit is not wanted."""
    if not (root / WANTED).is_file():
        return None
    command = r"^ExecStart(?:Pre)?=/usr/bin/python3 (?:-I )?/(\S+) install /(\S+) "
    app, archive = re.search(command, (root / UNIT).read_text(), re.MULTILINE).groups()
    assert (root / app).read_bytes() == board_app(), "this workstation's: the packed file holds another"
    check_hashes(open_archive(str(root / archive)))
    return root / archive


@AS_ROOT
def test_all_files_of_a_first_boot_with_mode_and_owner_whatever_the_umask(root, tmp_path):
    key = make_key(tmp_path / "us.pub")
    packed = make_packed(tmp_path / "any name.merino", "odd name/1", key=key, wheels=[WHEELS])
    before = contents(root)
    previous = os.umask(0o077)
    try:
        steps = flash_rootfs(packed, root, trust=[tmp_path / "us.pub"])
    finally:
        os.umask(previous)
    made = contents(root)
    assert {path: made.pop(path) for path in before} == before
    units = ["etc/systemd", os.path.dirname(UNIT), os.path.dirname(WANTED)]
    folders = ["opt/merino", INCOMING, "opt/merino/trusted", *units]
    files = [f"{INCOMING}/package.merino", f"{INCOMING}/merino.pyz", "opt/merino/trusted/us.pub", UNIT]
    assert sorted(made) == sorted([*folders, *files, WANTED])
    assert {made[path][:3] for path in folders} == {("0o40755", 0, 0)}
    assert {made[path][:3] for path in files} == {("0o100644", 0, 0)}
    assert made[WANTED] == ("0o120777", 0, 0, "../merino-install.service")
    assert digest(armed(root)) == digest(packed) and "--allow=unsigned" not in (root / UNIT).read_text()
    assert any(f"write /{INCOMING}/package.merino" in step for step in steps)


@AS_ROOT
def test_a_second_flash_takes_the_place_of_the_first_and_a_third_of_the_same_changes_nothing(root, packed, tmp_path):
    flash_rootfs(packed, root, allow_unsigned=True)
    second = make_packed(tmp_path / "second.merino", seed=1)
    steps = flash_rootfs(second, root, allow_unsigned=True)
    assert any(f"replace /{INCOMING}/package.merino" in step for step in steps)
    assert digest(armed(root)) == digest(second)
    assert len(list((root / INCOMING).iterdir())) == 2
    after = contents(root)
    flash_rootfs(second, root, allow_unsigned=True)
    assert contents(root) == after


def test_a_dry_run_says_all_of_it_and_writes_nothing(root, packed):
    before = contents(root)
    steps = flash_rootfs(packed, root, allow_unsigned=True, dry_run=True)
    assert contents(root) == before
    text = "\n".join(steps)
    assert "Debian GNU/Linux 12 (bookworm): aarch64, Python 3.11, glibc 2.36" in text
    for path in (UNIT, WANTED, f"{INCOMING}/merino.pyz"):
        assert f"/{path} " in text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_than_root_is_refused_with_a_remedy_and_writes_nothing(root, packed):
    before = contents(root)
    os.seteuid(65534)
    try:
        with pytest.raises(MerinoError, match="with sudo"):
            flash_rootfs(packed, root, allow_unsigned=True)
    finally:
        os.seteuid(0)
    assert contents(root) == before


def spoil(root, how):
    unit, expected, incoming = root / UNIT, root / WANTED, root / INCOMING
    unit.parent.mkdir(parents=True)
    incoming.mkdir(parents=True)
    python, libc = root / "usr/bin/python3.11", root / "usr/lib/aarch64-linux-gnu/libc.so.6"
    actions = {
        "no os-release": lambda: (root / "etc/os-release").unlink() or (root / "usr/lib/os-release").unlink(),
        "no systemd": lambda: (root / "usr/lib/systemd/systemd").unlink(),
        "no Python": lambda: (root / "usr/bin/python3").unlink(),
        "32 bits": lambda: python.write_bytes(elf(40, 32)),
        "another CPU": lambda: python.write_bytes(elf(243)),
        "a script": lambda: python.write_bytes(b"#!/bin/sh\n"),
        "Python 3.5": lambda: python.rename(root / "usr/bin/python3.5") and relink(root, "python3.5"),
        "another Python": lambda: python.rename(root / "usr/bin/python3.13") and relink(root, "python3.13"),
        "an older glibc": lambda: libc.write_bytes(libc.read_bytes().replace(b"2.36", b"2.27")),
        "no glibc": libc.unlink,
        "a masked unit": lambda: unit.symlink_to("/dev/null"),
        "a folder for the unit": unit.mkdir,
        "an installed release": lambda: (root / "opt/merino/current").symlink_to("releases/1"),
        "a link for the packed files": lambda: incoming.rmdir() or incoming.symlink_to("/tmp"),
        "a circle": lambda: incoming.rmdir() or incoming.symlink_to("incoming"),
        "a file for a folder": lambda: incoming.rmdir() or incoming.write_text(""),
        "a pipe": lambda: os.mkfifo(incoming / "merino.pyz"),
        "a wanted unit of another": lambda: expected.parent.mkdir() or expected.symlink_to("/etc/x.service"),
    }  # fmt: skip
    actions[how]()


def relink(root, target):
    (root / "usr/bin/python3").unlink()
    (root / "usr/bin/python3").symlink_to(target)


@pytest.mark.parametrize(("how", "message"), [
    ("no os-release", "is not a root file system"),
    ("no systemd", "has no systemd"),
    ("no Python", "has no /usr/bin/python3"),
    ("32 bits", "32-bit system"),
    ("another CPU", "ELF machine 243"),
    ("a script", "not a program of Linux"),
    ("Python 3.5", "the oldest allowed is 3.6"),
    ("another Python", "this is Python 3.13"),
    ("an older glibc", "with glibc 2.27"),
    ("no glibc", "with another C library"),
    ("a masked unit", "merino-install.service is a link in place of a file"),
    ("a folder for the unit", "merino-install.service is a folder in place of a file"),
    ("an installed release", "has an installed release, /opt/merino/current"),
    ("a link for the packed files", "is a link to '/tmp', which is not there"),
    ("a circle", "lead in a circle"),
    ("a file for a folder", "incoming is a file in place of a folder"),
    ("a pipe", "is a device or pipe in place of a file"),
    ("a wanted unit of another", "leads to '/etc/x.service'"),
])  # fmt: skip
def test_what_cannot_boot_it_is_refused_in_one_line_before_anything_is_written(how, message, root, tmp_path):
    packed = make_packed(tmp_path / "sample.merino", wheels=[WHEELS])
    spoil(root, how)
    before = contents_of_links(root)
    with pytest.raises(MerinoError) as caught:
        flash_rootfs(packed, root, allow_unsigned=True, dry_run=os.geteuid() != 0)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert contents_of_links(root) == before


def contents_of_links(root):
    return sorted((str(path), path.lstat().st_mode, path.lstat().st_mtime_ns) for path in root.rglob("*"))


@pytest.mark.parametrize("there, message", [("/", "root file system of this machine"), ("missing", "is not a folder")])
def test_this_machine_and_what_is_no_folder_are_refused(there, message, packed):
    with pytest.raises(MerinoError, match=message):
        flash_rootfs(packed, Path(there), allow_unsigned=True, dry_run=True)


def test_signatures_are_asked_for_before_anything_is_written(root, packed, tmp_path):
    own, others = make_key(tmp_path / "ours.pub"), make_key(tmp_path / "others.pub")
    signed = make_packed(tmp_path / "signed.merino", key=own)
    assert others
    for file, options, output in (
        (packed, {}, "is not signed"),
        (signed, {}, "not trusted here"),
        (signed, {"trust": [tmp_path / "others.pub"]}, "not trusted here"),
        (signed, {"allow_unsigned": True}, "not trusted here"),
    ):
        with pytest.raises(MerinoError, match=output):
            flash_rootfs(file, root, dry_run=True, **options)
    damaged = bytearray(packed.read_bytes())
    damaged[-2000] ^= 1
    packed.write_bytes(damaged)
    with pytest.raises(MerinoError, match="bundles/0/data is damaged"):
        flash_rootfs(packed, root, allow_unsigned=True, dry_run=True)


@AS_ROOT
def test_another_key_of_a_trusted_name_is_not_replaced(root, tmp_path):
    first = make_packed(tmp_path / "a.merino", key=make_key(tmp_path / "us.pub"))
    flash_rootfs(first, root, trust=[tmp_path / "us.pub"])
    second = make_packed(tmp_path / "b.merino", key=make_key(tmp_path / "us.pub"))
    before = contents(root)
    with pytest.raises(MerinoError, match="us.pub is another key"):
        flash_rootfs(second, root, trust=[tmp_path / "us.pub"])
    assert contents(root) == before


@AS_ROOT
def test_a_full_file_system_is_refused_by_how_much(root, tmp_path):
    packed = make_packed(tmp_path / "large.merino", size_bytes=3 << 20)
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2M", "none", small]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        shutil.copytree(root, small / "root", symlinks=True)
        before = contents(small)
        with pytest.raises(MerinoError, match=r"4\.\d MB are needed and 2\.\d MB are free there. Free 2\.\d MB"):
            flash_rootfs(packed, small / "root", allow_unsigned=True)
        assert contents(small) == before
    finally:
        subprocess.run(["umount", small], check=True)


FLASH = """
import os, signal, sys
from pathlib import Path
from merino_edge.delivery.first_boot import flash_rootfs
print("ready", flush=True)
flash_rootfs(Path(sys.argv[1]), Path(sys.argv[2]), allow_unsigned=True, report=lambda text: print(text, flush=True))
"""


@AS_ROOT
@pytest.mark.slow
def test_killed_at_any_point_the_first_boot_installs_the_old_file_or_the_new_one(root, tmp_path, nightly):
    """Within 10 ms of each line that is told; each fifth time when it has ended, however slow the machine."""
    files = [make_packed(tmp_path / f"{seed}.merino", seed=seed, size_bytes=5 << 20) for seed in range(2)]
    digests = {digest(file) for file in files}
    flash_rootfs(files[0], root, allow_unsigned=True)
    chance, ends, result = random.Random(1), set(), []
    for turn in range(40 if nightly else 20):
        process = subprocess.Popen([sys.executable, "-c", FLASH, files[(turn + 1) % 2], root], stdout=subprocess.PIPE)
        *_, last = itertools.islice(process.stdout, 3 + turn % 5 if turn % 5 < 4 else None)
        time.sleep(chance.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        ends.add(last)
        result.append(digest(armed(root)))
    assert set(result) == digests, "both the old and the new were met"
    assert len(ends) >= 5
    flash_rootfs(files[0], root, allow_unsigned=True)
    assert digest(armed(root)) == digest(files[0])
    assert sorted(path.suffix for path in (root / INCOMING).iterdir()) == [".merino", ".pyz"], "leavings are swept"


# Paths by the kernel's own reading in a root: openat2(2) with RESOLVE_IN_ROOT.
RESOLVE_IN_ROOT, SYS_OPENAT2 = 0x10, 437


def kernels(root, path):
    """-> (path in the root, None), or (None, errno)"""
    how = (ctypes.c_uint64 * 3)(os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT)
    folder = os.open(root, os.O_PATH)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        handle = library.syscall(SYS_OPENAT2, folder, path.encode(), ctypes.byref(how), ctypes.sizeof(how))
        if handle < 0:
            return None, ctypes.get_errno()
        try:
            return os.path.join("/", os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), root)), None
        finally:
            os.close(handle)
    finally:
        os.close(folder)


PATHS = st.lists(st.sampled_from(["a", "b", "c", "..", "."]), min_size=1, max_size=5).map("/".join)
TARGETS = st.one_of(PATHS, PATHS.map(lambda path: f"/{path}"), st.just("/"))
FORESTS = st.lists(st.tuples(PATHS, st.one_of(st.just(None), st.just(""), TARGETS)), max_size=12)


@pytest.mark.skipif(sys.platform != "linux", reason="openat2 is Linux's")
@examples(300)
@given(forest=FORESTS, paths=st.lists(PATHS, min_size=1, max_size=6))
@example(forest=[("a", "/b"), ("b", None)], paths=["a/../c"])
@example(forest=[("a", "a")], paths=["a"])
def test_paths_lead_where_the_kernel_says_that_they_lead_in_a_root(forest, paths, tmp_path_factory):
    root = Path(os.path.realpath(tmp_path_factory.mktemp("forest"))) / "root"
    root.mkdir()
    for path, held in forest:
        place = root / os.path.normpath(f"/{path}").lstrip("/")
        if place.parent.is_dir() and root in place.parent.resolve().parents or place.parent == root:
            try:
                place.mkdir() if held is None else place.write_text("") if held == "" else place.symlink_to(held)
            except (FileExistsError, IsADirectoryError, FileNotFoundError, NotADirectoryError, OSError):
                continue
    if kernels(root, "/")[1] == errno.ENOSYS:
        pytest.skip("this kernel has no openat2")
    for path in paths:
        expected, fault = kernels(root, path)
        if fault == errno.ENOENT and ".." in path:
            continue  # what is missing has no parent either: the kernel ends there, a plan never asks
        if expected is None:
            try:
                result = resolve(FolderTree(root), f"/{path}")
            except MerinoError:
                continue
            assert fault == errno.ENOENT and result.entry is None, (path, fault, result)
        else:
            result = resolve(FolderTree(root), f"/{path}")
            assert result.path == os.path.normpath(expected)
            assert stat.S_IFMT(result.entry.mode) == stat.S_IFMT(os.lstat(root / expected.lstrip("/")).st_mode)
