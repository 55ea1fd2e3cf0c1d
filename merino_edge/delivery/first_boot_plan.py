"""The changes that a flash makes to one root file system, judged before anything is written."""

import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from merino_edge.delivery.root_tree import Entry, RootFacts, RootTree, check_fits, resolve, root_facts
from merino_edge.delivery.staged import CURRENT, INCOMING, ROOT, TRUSTED, Staged, first_boot
from merino_runtime.delivery.archive import Archive
from merino_runtime.errors import MerinoError
from merino_runtime.io.board import MB

BLOCK_BYTES = 4096
SPARE_BYTES = MB  # folders and the maps of files
LARGEST_KEY_BYTES = 4096
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFREG: "a file", stat.S_IFLNK: "a link"}


class Placed(NamedTuple):
    staged: Staged
    path: str  # where it lies, links of folders followed
    before: Entry | None  # what stands there

    @property
    def is_done(self) -> bool:
        """Whether it is left as it is: a link, a folder of the system, or this project's folder with mode and owner."""
        staged, before = self.staged, self.before
        if before is None or stat.S_ISREG(staged.mode):
            return False
        own = f"{staged.path}/".startswith(f"{ROOT}/")
        return not own or (before.mode, before.uid, before.gid) == (staged.mode, staged.uid, staged.gid)


class Plan(NamedTuple):
    facts: RootFacts
    placed: tuple[Placed, ...]  # in the order of writing
    stale: tuple[str, ...]  # packed files of earlier flashes, to be removed
    notes: tuple[str, ...]
    need_bytes: int


def make_plan(tree: RootTree, archive: Archive, trust: Sequence[Path]) -> Plan:
    """Raises MerinoError where the packed file cannot be put into this root file system, space aside."""
    facts = root_facts(tree)
    notes = check_fits(tree, facts, archive.manifest)
    if resolve_last(tree, CURRENT).before:
        raise MerinoError(
            f"{tree.name} has an installed release, {CURRENT}, whose board decides what it takes next. Install on the "
            "running board: flash --ssh HOST. Or remove that link, and the card starts anew"
        )
    placed = tuple(resolve_last(tree, each.path, each) for each in first_boot(archive, trust))
    for each in placed:
        _check_kind(tree, each)
        _check_key(tree, each)
    sizes = [-(-each.staged.size_bytes // BLOCK_BYTES) * BLOCK_BYTES for each in placed]
    return Plan(facts, placed, _stale(tree, placed), tuple(notes), sum(sizes) + SPARE_BYTES)


def resolve_last(tree: RootTree, path: str, staged: Staged | None = None) -> Placed:
    """The place of a path. The links of its folders are followed, a last one is kept: it would be replaced. A folder's
    last link is followed."""
    staged = staged or Staged(path, stat.S_IFLNK)
    if stat.S_ISDIR(staged.mode):
        resolved = resolve(tree, path)
        return Placed(staged, resolved.path, resolved.entry)
    folder, _, name = path.rpartition("/")
    parent = resolve(tree, folder)
    place = f"{parent.path.rstrip('/')}/{name}"
    return Placed(staged, place, tree.entry(place) if parent.entry else None)


def steps_of(plan: Plan) -> list[str]:
    """One line for each change, and for what is left as it is."""
    facts = plan.facts
    glibc = f"glibc {facts.glibc}" if facts.glibc else "no glibc"
    lines = [f"system {facts.system}: {facts.architecture}, Python {facts.python}, {glibc}", *plan.notes]
    for each in plan.placed:
        staged = each.staged
        owner = f"mode {stat.S_IMODE(staged.mode):04o}, owner {staged.uid}:{staged.gid}"
        if each.is_done:
            continue
        if stat.S_ISDIR(staged.mode):
            lines.append(f"{'set' if each.before else 'make'} folder {each.path} ({owner})")
        elif stat.S_ISLNK(staged.mode):
            lines.append(f"link {each.path} -> {staged.link}")
        else:
            verb = "replace" if each.before else "write"
            lines.append(f"{verb} {each.path} ({owner}, {staged.size_bytes / MB:.1f} MB)")
    return lines + [f"remove {path}" for path in plan.stale]


def _check_kind(tree: RootTree, placed: Placed) -> None:
    """Raises MerinoError where the entry in the place is of another kind, or a link that leads to another target."""
    staged, before = placed.staged, placed.before
    if before is None:
        return
    required, present = stat.S_IFMT(staged.mode), stat.S_IFMT(before.mode)
    shown = KINDS.get(present, "a device or pipe")
    if required != present:
        raise MerinoError(f"{tree.name}: {placed.path} is {shown} in place of {KINDS[required]}. Move it away.")
    if staged.link:
        unit = resolve(tree, f"{staged.path.rpartition('/')[0]}/{staged.link}").path
        target = tree.link(placed.path)
        start = "" if target.startswith("/") else f"{staged.path.rpartition('/')[0]}/"
        if resolve(tree, start + target).path != unit:
            raise MerinoError(f"{tree.name}: {placed.path} leads to {target!r}, not to {unit}. Remove that link.")


def _check_key(tree: RootTree, placed: Placed) -> None:
    """A trusted key is not replaced by another key of its name, since files that it signed would then be refused."""
    is_key = placed.staged.path.startswith(f"{TRUSTED}/") and placed.before is not None
    if is_key and tree.read(placed.path, LARGEST_KEY_BYTES) != placed.staged.data:
        raise MerinoError(
            f"{tree.name}: {placed.path} is another key, and trusted there. Rename yours, or remove that one."
        )


def _stale(tree: RootTree, placed: Sequence[Placed]) -> tuple[str, ...]:
    kept = {each.path for each in placed}
    incoming = next(each for each in placed if each.staged.path == INCOMING)
    if incoming.before is None:
        return ()
    names = (name for name in tree.names(incoming.path) if re.fullmatch(r"[A-Za-z0-9._-]+\.merino", name))
    paths = (f"{incoming.path}/{name}" for name in names)
    return tuple(
        path for path in paths
        if path not in kept and (entry := tree.entry(path)) and stat.S_ISREG(entry.mode)
    )  # fmt: skip
