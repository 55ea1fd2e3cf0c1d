"""A first boot: which files a board's root file system gets, judged before anything is written; and writing them into
a folder, which is a mounted card or one that a build has staged.

The files are the package, its keys and a unit that installs the package. The unit runs this workstation's application
as root. The application in the package runs only after the package is verified.

In a folder, each file is written beside its place, synced and renamed, the unit last: at every moment the board would
install nothing, the package of an earlier flash or the new one, each of them complete.
"""

import os
import re
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from merino_edge.bundles.board_app import board_app
from merino_edge.delivery.root_tree import Entry, FolderTree, RootFacts, RootTree, check_fits, resolve, root_facts
from merino_runtime.delivery.archive import Archive, check_hashes, check_signature, open_archive
from merino_runtime.delivery.keys import key_line, read_public_key
from merino_runtime.delivery.manifest import APP
from merino_runtime.delivery.units import FIRST_BOOT_UNIT, PACKAGE, first_boot_unit
from merino_runtime.errors import MerinoError
from merino_runtime.io import outputs
from merino_runtime.io.board import MB
from merino_runtime.io.lock import raising_machine_faults
from merino_runtime.io.scratch import sweep_folder

ROOT = "/opt/merino"
INCOMING, TRUSTED, CURRENT = f"{ROOT}/incoming", f"{ROOT}/trusted", f"{ROOT}/current"
UNITS = "/etc/systemd/system"
WANTED = f"{UNITS}/multi-user.target.wants"
FOLDER, FILE, LINK = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777  # st_mode of new entries
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFREG: "a file", stat.S_IFLNK: "a link"}
LARGEST_KEY_BYTES = 4096
BLOCK_BYTES = 4096
SPARE_BYTES = MB  # for folders and the maps of files


class Placed(NamedTuple):
    """A folder, file or link of the first boot, owned by root. A file holds `data` or the content of `source`."""

    wanted: str  # path in the root file system
    mode: int  # as st_mode, with the bits of its type
    data: bytes = b""
    source: Path | None = None
    link: str = ""
    path: str = ""  # `wanted` with the links of its folders followed
    before: Entry | None = None  # the entry at `path` today

    @property
    def size_bytes(self) -> int:
        return self.source.stat().st_size if self.source else len(self.data)

    @property
    def is_done(self) -> bool:
        """Whether it stays unchanged: a link, a system folder, or a folder of this project with its mode and owner."""
        if self.before is None or stat.S_ISREG(self.mode):
            return False
        return not f"{self.wanted}/".startswith(f"{ROOT}/") or self.before[:3] == (self.mode, 0, 0)


class Plan(NamedTuple):
    facts: RootFacts
    placed: tuple[Placed, ...]  # in the order of writing
    notes: tuple[str, ...]
    need_bytes: int


def checked_archive(
    path: Path, trust: Sequence[Path], allow_unsigned: bool, report: Callable[[str], None] = lambda _: None,
    boards_decide: bool = False,
) -> Archive:  # fmt: skip
    """Return the package after checking its layout, signature and every hash, as the board will check them.

    trust: files of public keys. report: gets the path of each file in it that is hashed. boards_decide: without
    `trust`, the signature of any key is enough here, because each board decides whether it trusts the key. Raise
    MerinoError.
    """
    archive = open_archive(str(path))
    keys = [read_public_key(str(key)).key for key in trust]
    if boards_decide and archive.signature:
        keys = keys or [archive.signature.key]
    signer = check_signature(archive, keys)
    if signer is None and not allow_unsigned:
        raise MerinoError(
            f"{path} is not signed. Pack it with --sign KEY and give --trust KEY.pub, or give --allow unsigned."
        )
    check_hashes(archive, report)
    return archive


def make_plan(tree: RootTree, archive: Archive, trust: Sequence[Path]) -> Plan:
    """Raise MerinoError if the package cannot be put into this root file system. Free space is not checked."""
    facts = root_facts(tree)
    notes = check_fits(tree, facts, archive.manifest)
    if located(tree, Placed(CURRENT, LINK)).before:
        raise MerinoError(
            f"{tree.name} has an installed release, {CURRENT}, whose board decides what it takes next. Install on the "
            "running board: flash --ssh HOST. Or remove that link, and the card starts anew"
        )
    placed = tuple(located(tree, new) for new in first_boot(archive, trust))
    for new in placed:
        check_kind(tree, new)
        # Another key of the same name is not replaced: files that it signed would then be refused.
        is_key = new.wanted.startswith(f"{TRUSTED}/") and new.before is not None
        if is_key and tree.read(new.path, LARGEST_KEY_BYTES) != new.data:
            raise MerinoError(f"{tree.name}: {new.path} is another key, and trusted there. Rename yours, or remove that"
                              " one.")  # fmt: skip
    blocks = sum(-(-new.size_bytes // BLOCK_BYTES) for new in placed)
    return Plan(facts, placed, tuple(notes), blocks * BLOCK_BYTES + SPARE_BYTES)


def first_boot(archive: Archive, trust: Sequence[Path]) -> list[Placed]:
    """List all entries in the order of writing: a folder before its files, the unit after what it names, its link last.

    Raise MerinoError if a key's file has a name that cannot be kept.
    """
    unit = first_boot_unit(ROOT, archive.signature is None)
    keys = []
    for key in sorted(trust, key=lambda path: path.name):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.pub", key.name):
            raise MerinoError(
                f"the key's file is named {key.name!r}; allowed are NAME.pub with ASCII letters, digits and ._- in"
                " NAME. Rename it."
            )
        keys.append(Placed(f"{TRUSTED}/{key.name}", FILE, key_line(*read_public_key(str(key))[:2]).encode()))
    return [
        *(Placed(path, FOLDER) for path in ("/opt", ROOT, TRUSTED, INCOMING, "/etc/systemd", UNITS, WANTED)),
        *keys,
        Placed(f"{INCOMING}/{APP}", FILE, board_app()),
        Placed(f"{INCOMING}/{PACKAGE}", FILE, source=Path(archive.path)),
        Placed(f"{UNITS}/{FIRST_BOOT_UNIT}", FILE, unit.encode()),
        Placed(f"{WANTED}/{FIRST_BOOT_UNIT}", LINK, link=f"../{FIRST_BOOT_UNIT}"),
    ]


def located(tree: RootTree, new: Placed) -> Placed:
    """Follow the links of its folders. A last link is followed only for a folder: another entry would be replaced."""
    if stat.S_ISDIR(new.mode):
        resolved = resolve(tree, new.wanted)
        return new._replace(path=resolved.path, before=resolved.entry)
    folder, _, name = new.wanted.rpartition("/")
    parent = resolve(tree, folder)
    path = f"{parent.path.rstrip('/')}/{name}"
    return new._replace(path=path, before=tree.entry(path) if parent.entry else None)


def check_kind(tree: RootTree, new: Placed) -> None:
    """Raise MerinoError if the entry at its path is of another kind, or a link to another target."""
    if new.before is None:
        return
    required, present = stat.S_IFMT(new.mode), stat.S_IFMT(new.before.mode)
    if required != present:
        shown = KINDS.get(present, "a device or pipe")
        raise MerinoError(f"{tree.name}: {new.path} is {shown} in place of {KINDS[required]}. Move it away.")
    if new.link:
        folder = new.wanted.rpartition("/")[0]
        unit, target = resolve(tree, f"{folder}/{new.link}").path, tree.link(new.path)
        if resolve(tree, target if target.startswith("/") else f"{folder}/{target}").path != unit:
            raise MerinoError(f"{tree.name}: {new.path} leads to {target!r}, not to {unit}. Remove that link.")


def steps_of(plan: Plan) -> list[str]:
    """Describe the system, and each change in one line."""
    facts = plan.facts
    glibc = f"glibc {facts.glibc}" if facts.glibc else "no glibc"
    lines = [f"system {facts.system}: {facts.architecture}, Python {facts.python}, {glibc}", *plan.notes]
    for new in plan.placed:
        owner = f"mode {stat.S_IMODE(new.mode):04o}, owner 0:0"
        if new.is_done:
            continue
        if stat.S_ISDIR(new.mode):
            lines.append(f"{'set' if new.before else 'make'} folder {new.path} ({owner})")
        elif new.link:
            lines.append(f"link {new.path} -> {new.link}")
        else:
            verb = "replace" if new.before else "write"
            lines.append(f"{verb} {new.path} ({owner}, {new.size_bytes / MB:.1f} MB)")
    return lines


def flash_rootfs(
    archive_path: Path, rootfs: Path, *, trust: Sequence[Path] = (), allow_unsigned: bool = False,
    dry_run: bool = False, report: Callable[[str], None] = lambda _: None,
) -> list[str]:  # fmt: skip
    """Put the package, its keys and a unit that installs it into the root file system in the folder `rootfs`.

    trust: files of public keys, which become trusted on the board. dry_run: nothing is written. report: gets the
    current step. Returns the steps. Raise MerinoError before anything is written, except if the disk itself fails.
    """
    if not dry_run and os.geteuid() != 0:
        raise MerinoError(
            f"the files in {rootfs} will belong to the board's root, which only root can write. Run the same command "
            "with sudo, or write into an image: --image FILE"
        )
    tree = FolderTree(checked_root(rootfs))
    archive = checked_archive(archive_path, trust, allow_unsigned, lambda path: report(f"hashing {path}"))
    plan = make_plan(tree, archive, trust)
    free = tree.free_bytes()
    if free < plan.need_bytes:
        raise MerinoError(
            f"{rootfs}: {plan.need_bytes / MB:.1f} MB are needed and {free / MB:.1f} MB are free there. Free "
            f"{(plan.need_bytes - free) / MB:.1f} MB, or enlarge its file system."
        )
    steps = steps_of(plan)
    if not dry_run:
        for new in plan.placed:
            if not new.is_done:
                report(f"writing {new.path}")
                write_entry(tree, new)
        sweep_folder(str(tree.here(resolve(tree, INCOMING).path)))  # of killed flashes
    return steps


def checked_root(rootfs: Path) -> Path:
    if not rootfs.is_dir():
        raise MerinoError(f"{rootfs} is not a folder. Mount the board's root file system and name where it is mounted.")
    if os.path.samefile(rootfs, "/"):
        raise MerinoError(
            f"{rootfs} is the root file system of this machine. Name that of the board, or install here: python3 "
            "merino.pyz install NAME.merino"
        )
    return rootfs.resolve()


def write_entry(tree: FolderTree, new: Placed) -> None:
    place = tree.here(new.path)
    with raising_machine_faults(f"write {place}"):
        if new.link:
            os.symlink(new.link, place)
        elif not stat.S_ISDIR(new.mode):
            with outputs.open_output(str(place), new.size_bytes) as file:
                if new.source:
                    with open(new.source, "rb") as source:
                        shutil.copyfileobj(source, file, MB)
                else:
                    file.write(new.data)
        elif not new.before:
            os.mkdir(place)
        os.chown(place, 0, 0, follow_symlinks=False)
        if not new.link:
            os.chmod(place, stat.S_IMODE(new.mode))  # the umask narrowed a new file's mode, an old one kept its own
