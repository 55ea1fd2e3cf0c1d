"""The files of a first boot, for folder and image alike: the packed file, its keys, a unit that installs it.

The unit runs this workstation's application as root. The application in the packed file runs once it is verified.

The packed file's name holds its release id. So a later flash puts its file beside the one before, and the unit, which
names one of them, changes from the old one to the new in one step.
"""

import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from merino_edge.bundles.board_app import board_app
from merino_runtime.delivery.archive import Archive, check_hashes, check_signature, open_archive
from merino_runtime.delivery.keys import key_line, read_public_key
from merino_runtime.delivery.manifest import APP
from merino_runtime.delivery.service import FIRST_BOOT_UNIT, first_boot_unit
from merino_runtime.errors import MerinoError

ROOT = "/opt/merino"
INCOMING = f"{ROOT}/incoming"
TRUSTED = f"{ROOT}/trusted"
CURRENT = f"{ROOT}/current"
UNITS = "/etc/systemd/system"
WANTED = f"{UNITS}/multi-user.target.wants"
FOLDER_MODE = stat.S_IFDIR | 0o755
FILE_MODE = stat.S_IFREG | 0o644
LINK_MODE = stat.S_IFLNK | 0o777
LONGEST_NAME = 64  # of a model, in the name of its file


class Staged(NamedTuple):
    """A folder, file or link of the board's root file system. A file holds `data`, or what the file `source` holds."""

    path: str
    mode: int  # as st_mode, with the bits of its type
    data: bytes = b""
    source: Path | None = None
    link: str = ""
    uid: int = 0
    gid: int = 0

    @property
    def size_bytes(self) -> int:
        return self.source.stat().st_size if self.source else len(self.data)


def checked_archive(
    path: Path, trust: Sequence[Path], allow_unsigned: bool, report: Callable[[str], None] = lambda _: None
) -> Archive:
    """The packed file, its layout, signature and every hash checked, as the board will check them.

    trust: files of public keys. report: gets the path of each file in it that is hashed. Raises MerinoError.
    """
    archive = open_archive(str(path))
    signer = check_signature(archive, [read_public_key(str(key)).key for key in trust])
    if signer is None and not allow_unsigned:
        raise MerinoError(
            f"{path} is not signed. Pack it with --sign KEY and give --trust KEY.pub, or give --allow-unsigned."
        )
    check_hashes(archive, report)
    return archive


def first_boot(archive: Archive, trust: Sequence[Path]) -> list[Staged]:
    """In the order of writing: a folder before what lies in it, the unit after what it names, its link last.

    Raises MerinoError where a key's file has a name that cannot be kept.
    """
    name = archive_name(archive)
    unit = first_boot_unit(ROOT, name, archive.signature is None)
    folders = ["/opt", ROOT, TRUSTED, INCOMING, "/etc/systemd", UNITS, WANTED]
    keys = {key_name(key): key_line(*read_public_key(str(key))).encode() for key in trust}
    return [
        *(Staged(path, FOLDER_MODE) for path in folders),
        *(Staged(f"{TRUSTED}/{key}", FILE_MODE, data) for key, data in sorted(keys.items())),
        Staged(f"{INCOMING}/{APP}", FILE_MODE, board_app()),
        Staged(f"{INCOMING}/{name}", FILE_MODE, source=Path(archive.path)),
        Staged(f"{UNITS}/{FIRST_BOOT_UNIT}", FILE_MODE, unit.encode()),
        Staged(f"{WANTED}/{FIRST_BOOT_UNIT}", LINK_MODE, link=f"../{FIRST_BOOT_UNIT}"),
    ]


def archive_name(archive: Archive) -> str:
    """The packed file's name on the board, without characters that are special to systemd or a shell."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '-', archive.manifest.name)[:LONGEST_NAME]}-{archive.id}.merino"


def key_name(path: Path) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.pub", path.name):
        raise MerinoError(
            f"the key's file is named {path.name!r}; allowed are NAME.pub with ASCII letters, digits and ._- in NAME. "
            "Rename it."
        )
    return path.name
