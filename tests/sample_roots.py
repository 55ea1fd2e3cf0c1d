"""Root file systems of boards, disk images of them and packed files, each as small as its reader lets it be."""

import base64
import hashlib
import os
import shutil
import struct
import subprocess
from pathlib import Path

from merino_runtime.delivery.archive import (
    CHECKSUM,
    END,
    Signature,
    checksum_bytes,
    packed_member,
    signature_bytes,
    signed_bytes,
)
from merino_runtime.delivery.manifest import FileEntry, Manifest, WheelSet, manifest_bytes

SECTOR = 512
FAT_AT, FAT_BYTES = 1 << 20, 4 << 20
ROOT_AT = FAT_AT + FAT_BYTES
WHEELS = WheelSet("wheels/cp311", "3.11", "aarch64", "2.28", {"numpy": "2.2.6"}, 10**6)
BIN = "/usr/local/sbin:/usr/sbin:/sbin"
TOOLS = ("sfdisk", "mkfs.vfat", "mke2fs", "debugfs", "e2fsck", "resize2fs")


def tool(name):
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), BIN)))


MISSING = [name for name in TOOLS if not tool(name)]
WHY = f"not here: {', '.join(MISSING)} (Debian: e2fsprogs, fdisk, dosfstools)"


def elf(machine=183, bits=64):
    return b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9) + struct.pack("<HH", 2, machine) + bytes(44)


def make_root(folder, python="3.11", glibc="2.36", machine=183, bits=64):
    """A root file system of Raspberry Pi OS's shape: `lib` is a link, os-release too."""
    for name in ("usr/bin", "usr/lib/systemd", "usr/lib/aarch64-linux-gnu", "etc", "opt", "boot/firmware"):
        (folder / name).mkdir(parents=True)
    (folder / "usr/lib/os-release").write_text('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n')
    (folder / "etc/os-release").symlink_to("../usr/lib/os-release")
    (folder / "etc/issue").write_text("Debian GNU/Linux 12")
    (folder / "lib").symlink_to("usr/lib")
    (folder / f"usr/bin/python{python}").write_bytes(elf(machine, bits))
    (folder / "usr/bin/python3").symlink_to(f"python{python}")
    (folder / "usr/lib/systemd/systemd").write_bytes(elf(machine, bits))
    output = f"\0GNU C Library (Debian GLIBC {glibc}-9+deb12u8) stable release version {glibc}.\n".encode()
    (folder / "usr/lib/aarch64-linux-gnu/libc.so.6").write_bytes(elf(machine, bits) + output)
    return folder


def make_packed(path, name="sample", size_bytes=100_000, wheels=(), key=None, seed=0):
    """NAME.merino; signed by the `key` of `make_key`."""
    weights = hashlib.shake_128(b"%d" % seed).digest(size_bytes)
    files = {"merino.pyz": b"PK the application %d" % seed, "bundles/0/bundle.json": b"{}", "bundles/0/data": weights}
    files.update({f"{each.path}/numpy.whl": b"wheel" for each in wheels})
    entries = tuple(FileEntry(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items())
    manifest = manifest_bytes(Manifest(1, name, "0.1.0", (), ("bundles/0",), tuple(wheels), entries))
    members = {"manifest.json": manifest, CHECKSUM: checksum_bytes(manifest)}
    if key:
        members["manifest.sig"] = signature_bytes(Signature(public_bytes(key), key.sign(signed_bytes(manifest))))
    path.write_bytes(b"".join(packed_member(*member) for member in {**members, **files}.items()) + END)
    return path


def make_key(path):
    """A private key, and its public part at `path`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    path.write_text(f"merino-ed25519 {base64.b64encode(public_bytes(key)).decode()} {path.stem}\n")
    return key


def public_bytes(key):
    return key.public_key().public_bytes_raw()


def ran(name, *arguments, stdin=b"", codes=(0,)):
    assert tool(name), f"no {name}: {WHY}"
    done = subprocess.run([tool(name), *map(str, arguments)], input=stdin, capture_output=True, check=False)
    assert done.returncode in codes, done.stderr
    return done.stdout


def make_image(path, root, label="dos", root_mb=24, spare_mb=0, options=()):
    """FAT + ext4, as systems for boards are published. options: more of mke2fs."""
    kinds = {"dos": ("c", "83"), "gpt": ("U", "L")}[label]
    table = f"label: {label}\nstart={FAT_AT // SECTOR},size={FAT_BYTES // SECTOR},type={kinds[0]}\n" \
            f"start={ROOT_AT // SECTOR},size={(root_mb << 20) // SECTOR},type={kinds[1]}\n"
    with open(path, "wb") as file:
        file.truncate(ROOT_AT + ((root_mb + spare_mb) << 20) + (1 << 20))
    ran("sfdisk", "-q", path, stdin=table.encode())
    ran("mkfs.vfat", "--offset", FAT_AT // SECTOR, "-F", "12", path, FAT_BYTES // 1024)
    fill_ext4(path, root, ROOT_AT, root_mb, options)
    return path


def fill_ext4(path, root, start_bytes, size_mb, options=()):
    ran("mke2fs", "-q", "-F", "-t", "ext4", "-d", root, "-E", f"offset={start_bytes},root_owner=0:0", *options, path,
        f"{size_mb}M")


def ask_debugfs(image, request, start_bytes=ROOT_AT):
    command = [tool("debugfs"), "-R", request, f"{image}?offset={start_bytes}"]
    done = subprocess.run(command, capture_output=True, check=True)
    output = [line for line in done.stderr.decode().splitlines() if not line.startswith("debugfs 1.")]
    assert not output, output
    return done.stdout


def e2fsck(image, start_bytes=ROOT_AT):
    command = [tool("e2fsck"), "-fn", f"{image}?offset={start_bytes}"]
    return subprocess.run(command, capture_output=True, check=False).returncode


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
