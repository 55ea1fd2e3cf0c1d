"""The folder of installed releases: what lies where, the lock, and the swap of `current` that a kill cannot tear.

    ROOT/releases/ID/           one release, complete: it got this name by a rename
    ROOT/releases/ID.partial/   what is being made, or being removed
    ROOT/current, previous      links to releases/ID
    ROOT/swap.json              the links before and after, while they are being changed

Each command that changes something takes the lock (`lock`) and calls `recover` first. So a state that a kill or a power
cut left is completed or dropped by the next command, and by no reader. No time is compared: a board may start in 1970.
Standard library only.
"""
import contextlib
import json
import os
import re
import shutil
import sys
from typing import List, NamedTuple, Optional

from merino_runtime.errors import MerinoError
from merino_runtime.io import scratch
from merino_runtime.io.json_file import read_json
from merino_runtime.io.lock import faults_told, hold, in_use
from merino_runtime.io.outputs import move_folder, replace_link, sync_folder, write_output

SCHEMA = 1
SYSTEM_ROOT = "/opt/merino"
RELEASES, CURRENT, PREVIOUS, JOURNAL = "releases", "current", "previous", "swap.json"
INSTALLED = "installed"  # as BUNDLE
PARTIAL, OLD = ".partial", ".old"
APP, LAUNCHER, BUNDLE, ENVIRONMENT, RECORD = "merino.pyz", "merino", "bundle", "env", "release.json"
ID = re.compile(r"[0-9a-f]{16}\Z")
INSTALL_FIRST = "Install one: python3 merino.pyz install NAME.merino"


class Links(NamedTuple):
    """Ids of the releases that `current` and `previous` lead to; None where there is no link."""
    current: Optional[str]
    previous: Optional[str]


def default_root() -> str:
    """The folder in which the running application is installed; else root's, or this user's own."""
    running = running_release()
    if running:
        return os.path.dirname(os.path.dirname(running))
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return SYSTEM_ROOT
    return os.path.join(os.path.expanduser("~"), ".local", "share", "merino")


def running_release() -> Optional[str]:
    """The release's folder in which the running merino.pyz lies; None where it lies elsewhere or is no such file."""
    app = os.path.realpath(sys.argv[0] or os.curdir)
    folder = os.path.dirname(app)
    inside = os.path.basename(os.path.dirname(folder)) == RELEASES and ID.match(os.path.basename(folder))
    return folder if inside and os.path.basename(app) == APP else None


def release_folder(root: str, release_id: str) -> str:
    return os.path.join(root, RELEASES, release_id)


def installed_bundle() -> str:
    """The folder that BUNDLE `installed` means: of the release in which the running application lies, else of the
    default root's `current`, its links followed once. It is kept while this process runs. MerinoError if none is."""
    release = running_release()
    if not release:
        root = default_root()
        found = linked(root, CURRENT)
        if found is None:
            raise MerinoError(f"no release is installed in {root}. {INSTALL_FIRST}")
        release = os.path.realpath(release_folder(root, found))
    hold(release)
    return os.path.join(release, BUNDLE)


def linked(root: str, name: str) -> Optional[str]:
    """The id of the release that ROOT/name leads to; None where it leads to none that is there."""
    try:
        target = os.readlink(os.path.join(root, name))
    except OSError:
        return None
    found = os.path.basename(target)
    there = ID.match(found) and os.path.isdir(release_folder(root, found))
    return found if there else None


def links(root: str) -> Links:
    return Links(linked(root, CURRENT), linked(root, PREVIOUS))


def partials(root: str) -> List[str]:
    """Names in ROOT/releases of what a command is making or was stopped at."""
    try:
        return sorted(name for name in os.listdir(os.path.join(root, RELEASES)) if name.endswith(PARTIAL))
    except OSError:
        return []


def recover(root: str) -> None:
    """Completes or drops a swap that was cut short, and removes what else a stopped command left. Needs the lock.

    `current` is renamed first. Where it is the new one the swap is completed; else the old one stays.
    """
    with faults_told("repair " + root):
        journal = _journal(root)
        if journal and journal.current == linked(root, CURRENT):
            _link(root, PREVIOUS, journal.previous)
        _remove_file(os.path.join(root, JOURNAL))
        for name in partials(root):
            _restore_or_remove(os.path.join(root, RELEASES, name))
        for name in (CURRENT, PREVIOUS, JOURNAL):
            scratch.sweep(os.path.join(os.path.realpath(root), name))


def _journal(root: str) -> Optional[Links]:
    """The links that a swap was to make. A file that is none is as if there was none: the links stay as they are."""
    path = os.path.join(root, JOURNAL)
    if not os.path.exists(path):
        return None
    with contextlib.suppress(MerinoError, KeyError, TypeError):
        found = Links(**read_json(path, "")["to"])
        if all(each is None or isinstance(each, str) and ID.match(each) for each in found):
            return found
    return None


def _restore_or_remove(path: str) -> None:
    """Of a release that was being replaced by a sound copy of itself, one of the two stays."""
    kept = path[:-len(OLD + PARTIAL)]
    if path.endswith(OLD + PARTIAL) and not os.path.lexists(kept):
        move_folder(path, kept)
    else:
        shutil.rmtree(path, ignore_errors=True)  # what root left behind is in no way of a service's user


def swap(root: str, to: Links) -> None:
    """Changes both links. A reader of `current` finds the old release or the new. Needs the lock."""
    with faults_told("change the links in " + root):
        write_json(os.path.join(root, JOURNAL),
                    {"schema": SCHEMA, "from": links(root)._asdict(), "to": to._asdict()})
        _link(root, CURRENT, to.current)
        _link(root, PREVIOUS, to.previous)
        _remove_file(os.path.join(root, JOURNAL))


def place(root: str, release_id: str) -> None:
    """ID.partial becomes ID. A release that is there by that name, a damaged one, is moved aside and removed."""
    target = release_folder(root, release_id)
    with faults_told("write " + target):
        if os.path.lexists(target):
            move_folder(target, target + OLD + PARTIAL)
        move_folder(target + PARTIAL, target)
        if os.path.lexists(target + OLD + PARTIAL):
            shutil.rmtree(target + OLD + PARTIAL)


def remove_release(root: str, release_id: str) -> None:
    """By a rename first, so that no release is ever there in part."""
    path = release_folder(root, release_id)
    with faults_told("remove " + path):
        move_folder(path, path + PARTIAL)
        shutil.rmtree(path + PARTIAL)


def prune(root: str, keep: str = "") -> List[str]:
    """Removes the releases that neither link leads to, but for the id `keep` and those that a process uses -> ids of
    the latter. Needs the lock."""
    used = []
    for name in sorted(os.listdir(os.path.join(root, RELEASES))):
        if ID.match(name) and name not in (keep, *links(root)):
            if in_use(release_folder(root, name)):
                used.append(name)
            else:
                remove_release(root, name)
    return used


def write_json(path: str, value: object) -> None:
    write_output(path, json.dumps(value, indent=1) + "\n")


def give_to_owner(root: str, path: str) -> None:
    """Gives what is in the folder `path`, and the folder, to the owner of ROOT: root installs, a service's user runs.
    Nothing, where they are the same or this is not root."""
    owner = os.stat(root)
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for place, folders, files in os.walk(path):
        for name in [os.curdir, *folders, *files]:
            os.chown(os.path.join(place, name), owner.st_uid, owner.st_gid, follow_symlinks=False)


def sync_folders(path: str) -> None:
    """The names in the folder of a release and below it: their files were synced when they were written."""
    for place, folders, _ in os.walk(path):
        if ENVIRONMENT in folders:
            folders.remove(ENVIRONMENT)  # synced as a whole
        sync_folder(place)


def _link(root: str, name: str, release_id: Optional[str]) -> None:
    path = os.path.join(root, name)
    if release_id is None:
        _remove_file(path)
    elif linked(root, name) != release_id:
        replace_link(path, os.path.join(RELEASES, release_id))


def _remove_file(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
