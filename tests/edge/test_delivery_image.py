"""A first boot in a disk image: what is in it after, by e2fsprogs; refusals; faults, after which it is whole."""

import contextlib
import lzma
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from sample_roots import (
    FAT_AT,
    MISSING,
    ROOT_AT,
    WHY,
    ask_debugfs,
    digest,
    e2fsck,
    fill_ext4,
    make_image,
    make_key,
    make_packed,
    make_root,
    ran,
    tool,
)

from merino_edge.bundles.board_app import board_app
from merino_edge.delivery import ext4
from merino_edge.delivery.image import finished_image, flash_image
from merino_runtime.delivery.units import PACKAGE
from merino_runtime.errors import MerinoError

pytestmark = pytest.mark.skipif(bool(MISSING), reason=WHY)
UNIT = "/etc/systemd/system/merino-install.service"
WANTED = "/etc/systemd/system/multi-user.target.wants/merino-install.service"
INCOMING = "/opt/merino/incoming"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One image of each label, made once; nobody writes to it."""
    folder = tmp_path_factory.mktemp("images")
    root = make_root(folder / "root")
    for label in ("dos", "gpt"):
        make_image(folder / f"{label}.img", root, label)
    make_packed(folder / "sample.merino")
    return folder


def copied(image, to):
    """Its holes stay holes."""
    subprocess.run(["cp", "--sparse=always", image, to], check=True)
    return to


BOTH = pytest.mark.parametrize("image", ["dos", "gpt"], indirect=True)


@pytest.fixture(params=["dos", pytest.param("gpt", marks=pytest.mark.nightly)])
def image(request, made, tmp_path):
    return copied(made / f"{request.param}.img", tmp_path / "board.img")


@pytest.fixture
def packed(made):
    return made / "sample.merino"


def listed(image, folder):
    """name -> (mode, uid, gid)"""
    lines = re.findall(r"^/\d+/(\d+)/(\d+)/(\d+)/([^/]+)/\d*/$", ask_debugfs(image, f"ls -p {folder}").decode(), re.M)
    return {name: (mode, int(uid), int(gid)) for mode, uid, gid, name in lines if name not in (".", "..")}


def check_flashed(image, packed, unsigned=True):
    """The image is clean and its first boot installs `packed`."""
    assert e2fsck(image) == 0
    assert listed(image, INCOMING) == {PACKAGE: ("100644", 0, 0), "merino.pyz": ("100644", 0, 0)}
    assert ask_debugfs(image, f"cat {INCOMING}/{PACKAGE}") == packed.read_bytes()
    assert ask_debugfs(image, f"cat {INCOMING}/merino.pyz") == board_app(), "the packed file holds another"
    unit = ask_debugfs(image, f"cat {UNIT}").decode()
    assert f" install {INCOMING}/{PACKAGE} --root /opt/merino --service" in unit
    assert ("--allow=unsigned" in unit) == unsigned
    assert listed(image, os.path.dirname(UNIT)) == {
        "merino-install.service": ("100644", 0, 0), "multi-user.target.wants": ("040755", 0, 0),
    }  # fmt: skip
    assert listed(image, os.path.dirname(WANTED)) == {"merino-install.service": ("120777", 0, 0)}
    assert 'Fast link dest: "../merino-install.service"' in ask_debugfs(image, f"stat {WANTED}").decode()
    assert set(listed(image, "/opt/merino").values()) == {("040755", 0, 0)}


def outside(image):
    """The bytes before the root file system: partition table, boot partition."""
    return image.read_bytes()[:ROOT_AT]


@BOTH
def test_all_files_are_in_it_and_the_boot_partition_is_as_it_was(image, tmp_path):
    key = make_key(tmp_path / "us.pub")
    packed = make_packed(tmp_path / "a name with 'quotes'.merino", key=key, size_bytes=3 << 20)
    before, size = outside(image), image.stat().st_size
    steps = flash_image(packed, image, trust=[tmp_path / "us.pub"])
    check_flashed(image, packed, unsigned=False)
    assert ask_debugfs(image, "cat /opt/merino/trusted/us.pub") == (tmp_path / "us.pub").read_bytes()
    assert outside(image) == before and image.stat().st_size == size
    assert "partition 1 stays as it is" in steps
    assert any(step.startswith("partition 2 (ext4, 24 MB, ") for step in steps)
    assert sorted(os.listdir(tmp_path)) == ["a name with 'quotes'.merino", "board.img", "us.pub"]


@BOTH
def test_a_second_flash_takes_the_place_of_the_first(image, packed, tmp_path):
    flash_image(packed, image, allow_unsigned=True)
    second = make_packed(tmp_path / "second.merino", seed=1)
    steps = flash_image(second, image, allow_unsigned=True)
    assert any(f"replace {INCOMING}/package.merino" in step for step in steps)
    check_flashed(image, second)


def test_a_packed_image_is_kept_and_unpacked_beside(image, packed, tmp_path):
    source = tmp_path / "system.img.xz"
    source.write_bytes(lzma.compress(image.read_bytes(), preset=0))
    before = digest(source)
    assert finished_image(source) == tmp_path / "system.img"
    steps = flash_image(packed, source, allow_unsigned=True, dry_run=True)
    assert f"unpack {source} to {tmp_path / 'system.img'}" in steps
    assert sorted(os.listdir(tmp_path)) == ["board.img", "system.img.xz"]
    assert flash_image(packed, source, allow_unsigned=True) == steps
    check_flashed(tmp_path / "system.img", packed)
    assert digest(source) == before and outside(tmp_path / "system.img") == outside(image)
    with pytest.raises(MerinoError, match="is there already. Name it instead, or remove it first"):
        flash_image(packed, source, allow_unsigned=True)
    flash_image(packed, tmp_path / "system.img", allow_unsigned=True)
    (tmp_path / "system.img").unlink()
    flash_image(packed, source, allow_unsigned=True)


def test_a_bare_file_system_is_taken_as_well(packed, tmp_path):
    image = tmp_path / "root.img"
    fill_ext4(image, make_root(tmp_path / "root"), 0, 24)
    flash_image(packed, image, allow_unsigned=True)
    assert e2fsck(image, 0) == 0
    assert f"/{PACKAGE}/" in ask_debugfs(image, f"ls -p {INCOMING}", 0).decode()


def test_a_dry_run_changes_nothing_and_says_the_same(image, packed, tmp_path):
    before = digest(image), image.stat().st_mtime_ns
    steps = flash_image(packed, image, allow_unsigned=True, dry_run=True)
    assert (digest(image), image.stat().st_mtime_ns) == before and os.listdir(tmp_path) == ["board.img"]
    assert flash_image(packed, image, allow_unsigned=True) == steps


def test_holes_stay_holes_and_names_are_no_commands(made, packed, tmp_path):
    folder = tmp_path / "a?offset=1&b 'c"
    folder.mkdir()
    image = folder / "x?offset=7.img"
    copied(made / "dos.img", image)
    flash_image(packed, image, allow_unsigned=True)
    shutil.copy(image, tmp_path / "plain.img")
    check_flashed(tmp_path / "plain.img", packed)
    assert image.stat().st_blocks * 512 < image.stat().st_size / 2


def flashed_and_refused(packed, image, message, **options):
    """The message; the image is as it was, and nothing lies beside it."""
    before, beside = digest(image), sorted(os.listdir(image.parent))
    with pytest.raises(MerinoError, match=message) as caught:
        flash_image(packed, image, allow_unsigned=True, **options)
    assert digest(image) == before and sorted(os.listdir(image.parent)) == beside
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_a_small_file_system_is_refused(label, tmp_path):
    image = make_image(tmp_path / "a board's.img", make_root(tmp_path / "root"), label, root_mb=8)
    packed = make_packed(tmp_path / "big.merino", size_bytes=40 << 20)
    message = r"is too small by 3\d\.\d MB \(41\.\d MB needed, \d\.\d MB free\). Enlarge partition 2"
    flashed_and_refused(packed, image, message)


def poke(image, at, data):
    with open(image, "rb+") as file:
        file.seek(at)
        file.write(data)


def edited(image, *commands):
    ran("debugfs", "-w", "-f", "-", f"{image}?offset={ROOT_AT}", stdin="\n".join([*commands, ""]).encode())


def needs_recovery(image):
    at = ROOT_AT + 1024 + 96
    flags = int.from_bytes(image.read_bytes()[at : at + 4], "little")
    block = re.search(rb"\d+", ask_debugfs(image, "blocks /etc/issue")).group().decode()
    (image.parent / "block").write_bytes(b"written back".ljust(4096, b"\0"))
    edited(image, "jo -c", f"jw -b {block} {image.parent / 'block'}", "jc")
    (image.parent / "block").unlink()
    assert int.from_bytes(image.read_bytes()[at : at + 4], "little") == flags | 4


def unclean(image):
    edited(image, "sif /usr/bin/python3.11 links_count 7")


@pytest.mark.parametrize(("spoil", "message"), [
    (needs_recovery, "was not unmounted: its ext4 journal has changes"),
    (unclean, "is not clean"),
])  # fmt: skip
def test_a_file_system_that_needs_repair_is_refused(spoil, message, image, packed):
    spoil(image)
    flashed_and_refused(packed, image, message)


def two_roots(image):
    size_mb = 24
    with open(image, "rb+") as file:
        file.truncate(ROOT_AT + ((2 * size_mb + 2) << 20))
    second_at = ROOT_AT + (size_mb << 20)
    ran("sfdisk", "-q", "--append", image, stdin=f"start={second_at // 512},size={size_mb}M\n".encode())
    poke(image, second_at, image.read_bytes()[ROOT_AT:second_at])


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda image: os.truncate(image, ROOT_AT + (9 << 20)), "cut off"),
    (lambda image: poke(image, 0, bytes(FAT_AT)), "cannot be read as a disk image"),
    (lambda image: os.truncate(image, 0), "cannot be read as a disk image"),
    (lambda image: poke(image, ROOT_AT, bytes(1 << 16)), "no ext4 partition with a root .*1 other, 2 other"),
    (lambda image: edited(image, "rm /usr/lib/os-release"), "no ext4 partition"),
    (two_roots, "root file systems in partitions 2 and 3"),
])  # fmt: skip
def test_what_is_no_image_of_a_board_is_refused(spoil, message, image, packed):
    spoil(image)
    flashed_and_refused(packed, image, message)


def test_an_image_whose_links_hold_commands_is_refused(image, packed):
    edited(image, "rmdir /opt", 'mkdir "a b"', 'symlink opt "/a b"')
    flashed_and_refused(packed, image, "only one of letters, digits")


def test_disks_and_what_is_no_file_are_refused(packed, tmp_path):
    disks = [path for path in Path("/dev").iterdir() if path.is_block_device()]
    for path, output in ((tmp_path, "not a regular file"), (tmp_path / "none.img", "cannot read"), *(
        (disk, "a disk, not an image of one") for disk in disks[:1]
    )):
        with pytest.raises(MerinoError, match=output):
            flash_image(packed, path, allow_unsigned=True, dry_run=True)


@pytest.mark.parametrize("spoil", [
    lambda data: data[: len(data) // 2], lambda data: data[:100] + b"xx" + data[102:], lambda data: data[1:],
])  # fmt: skip
def test_a_damaged_xz_is_refused(spoil, image, packed, tmp_path):
    source = tmp_path / "s.img.xz"
    source.write_bytes(spoil(lzma.compress(image.read_bytes(), preset=0)))
    flashed_and_refused(packed, source, "is damaged or not an .xz file")


def test_an_xz_that_grows_beyond_the_disk_is_refused(packed, tmp_path):
    with small_disk(tmp_path / "disk", "8M") as disk:
        source = disk / "bomb.img.xz"
        source.write_bytes(lzma.compress(bytes(64 << 20)))
        flashed_and_refused(packed, source, r"unpacks to more than the \d MB that are free")


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("moment", ["copying", "writing the files", "checking"])
def test_a_disk_that_is_full_at_any_moment_leaves_the_image(moment, image, tmp_path):
    packed = make_packed(tmp_path / "sample.merino", size_bytes=4 << 20)
    with small_disk(tmp_path / "disk", "40M") as disk:
        inner = copied(image, disk / "board.img")

        def fill(text):
            if text.startswith(moment):
                with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
                    while file.write(bytes(4096)):
                        pass

        before = digest(inner)
        if moment == "checking":  # everything has its place by then
            flash_image(packed, inner, allow_unsigned=True, report=fill)
            check_flashed(inner, packed)
            return
        with pytest.raises(MerinoError):
            flash_image(packed, inner, allow_unsigned=True, report=fill)
        assert digest(inner) == before and sorted(os.listdir(disk)) == ["board.img", "filler"]
        (disk / "filler").unlink()
        flash_image(packed, inner, allow_unsigned=True)
        check_flashed(inner, packed)


# debugfs ends with 0 whatever happens: it complains, does half of it in silence, or the disk turns a bit.
LIES = {
    "complains": 'echo "sif: could not write" >&2; exit 0',
    "does nothing": "exit 0",
    "does the first command": 'head -n 1 | "{real}" "$@"',
    "sets another mode": 'sed s/0100644/0100600/ | "{real}" "$@"',
    "makes another link": 'sed "s/^symlink .*/&.d/" | "{real}" "$@"',
    "dies": "kill -9 $$",
    "turns bits": '"{real}" "$@"; "{real}" -w -R "zap_block -f /opt/merino/incoming/merino.pyz -p 85 0" "$4"',
    "breaks the map of blocks": '"{real}" "$@"; "{real}" -w -R "freeb 100 500" "$4"',
}  # fmt: skip


@pytest.mark.parametrize("lie", [
    lie if lie in ("complains", "does the first command", "turns bits") else
    pytest.param(lie, marks=pytest.mark.nightly) for lie in sorted(LIES)
])  # fmt: skip
def test_a_debugfs_that_lies_leaves_the_image(lie, image, packed, tmp_path, monkeypatch):
    programs = tmp_path / "programs"
    programs.mkdir()
    real = tool("debugfs")
    body = LIES[lie].replace("{real}", real)
    script = f'#!/bin/bash\nif [ "$1" = -w ]; then {body}; else exec "{real}" "$@"; fi\n'
    (programs / "debugfs").write_text(script)
    (programs / "debugfs").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        flashed_and_refused(packed, image, "stays as it was|is not clean")
    flash_image(packed, image, allow_unsigned=True)
    check_flashed(image, packed)


def test_missing_programs_are_named_with_their_packages(image, packed, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(ext4, "SYSTEM_FOLDERS", ())
    flashed_and_refused(packed, image, "debugfs and e2fsck and sfdisk, not installed.*apt-get install e2fsprogs fdisk")


@pytest.mark.slow
@examples(60, by_day=20)
@given(data=st.data())
def test_garbage_in_the_tables_or_the_file_system_is_refused_or_harmless(data, made, tmp_path_factory):
    """Bytes of the partition table, the GPT's header and entries, or the first blocks of ext4 are drawn anew."""
    folder = tmp_path_factory.mktemp("garbage")
    image = copied(made / data.draw(st.sampled_from(["dos.img", "gpt.img"])), folder / "board.img")
    places = st.one_of(st.integers(440, 511), st.integers(512, 1600), st.integers(ROOT_AT + 1024, ROOT_AT + 1300),
                       st.integers(ROOT_AT + 1024, ROOT_AT + (1 << 17)))  # fmt: skip
    changes = st.lists(st.tuples(places, st.binary(min_size=1, max_size=16)), min_size=1, max_size=4)
    for place, garbage in data.draw(changes):
        poke(image, place, garbage)
    before = digest(image)
    try:
        flash_image(made / "sample.merino", image, allow_unsigned=True)
    except MerinoError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500
        assert digest(image) == before
    else:
        check_flashed(image, made / "sample.merino")
    assert os.listdir(folder) == ["board.img"]
    shutil.rmtree(folder)
