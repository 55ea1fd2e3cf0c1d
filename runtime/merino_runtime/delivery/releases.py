"""The folder of installed releases: its contents, who may change it, and the atomic swap of `current`.

    ROOT/releases/ID/           one release, complete: it got this name by a rename
    ROOT/releases/ID.partial/   what is being made, or being removed
    ROOT/current, previous      links to releases/ID
    ROOT/swap.json              the links before and after, and keys, while they are being changed
    ROOT/state/                 the service's user's, and nothing else is

Each command that changes something does so in `changing`, which takes the lock (`lock`) and completes or drops what a
kill or a power cut left; readers do not. No times are compared: a board may start in 1970. Standard library only.
"""
import contextlib
import json
import os
import re
import shutil
import stat
import sys
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.delivery.keys import TRUSTED, PublicKey, key_base64, key_of_base64, trust, withdraw
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json
from merino_runtime.io.lock import hold, in_use, is_root, locked, others_may_write, raising_machine_faults
from merino_runtime.io.outputs import move_folder, replace_link, sync_folder, write_output
from merino_runtime.io.scratch import sweep_folder

SCHEMA = 1
SYSTEM_ROOT = "/opt/merino"
RELEASES, CURRENT, PREVIOUS, JOURNAL = "releases", "current", "previous", "swap.json"
PROBATION = "probation"  # a file for each release, outside of it
STATE = "state"  # of the service's user
INSTALLED = "installed"  # as BUNDLE
PARTIAL, OLD = ".partial", ".old"
APP, LAUNCHER, BUNDLE, ENVIRONMENT, RECORD = "merino.pyz", "merino", "bundle", "env", "release.json"
ID = re.compile(r"[0-9a-f]{16}\Z")
INSTALL_FIRST = "Install one: python3 merino.pyz install NAME.merino"


class Links(NamedTuple):
    """Ids of the releases that `current` and `previous` lead to; None if there is no link."""
    current: Optional[str]
    previous: Optional[str]


class User(NamedTuple):
    """The service's user, as whom releases are tested. home: ROOT/state."""
    uid: int
    gid: int
    home: str


def default_root() -> str:
    """Return the folder in which the running application is installed; otherwise root's folder, or this user's."""
    running = running_release()
    if running:
        return os.path.dirname(os.path.dirname(running))
    app = os.path.realpath(sys.argv[0] or os.curdir)
    if os.path.basename(app) == APP and os.path.isdir(os.path.join(os.path.dirname(app), RELEASES)):
        return os.path.dirname(app)  # the copy that starts are counted with
    return SYSTEM_ROOT if is_root() else os.path.join(os.path.expanduser("~"), ".local", "share", "merino")


def running_release() -> Optional[str]:
    """Return the folder of the release that the running merino.pyz belongs to; None if it is another program."""
    app = os.path.realpath(sys.argv[0] or os.curdir)
    folder = os.path.dirname(app)
    inside = os.path.basename(os.path.dirname(folder)) == RELEASES and ID.match(os.path.basename(folder))
    return folder if inside and os.path.basename(app) == APP else None


def release_folder(root: str, release_id: str) -> str:
    return os.path.join(root, RELEASES, release_id)


def installed_bundle() -> str:
    """Return the folder that BUNDLE `installed` means: in the release of the running application, otherwise in the
    default root's `current`, its links resolved once. It is not removed while this process runs. Raise MerinoError if
    nothing is installed."""
    release = running_release()
    if not release:
        root = default_root()
        current = linked(root, CURRENT)
        if current is None:
            raise MerinoError(f"no release is installed in {root}. {INSTALL_FIRST}")
        release = os.path.realpath(release_folder(root, current))
    hold(release)
    return os.path.join(release, BUNDLE)


def linked(root: str, name: str) -> Optional[str]:
    """Return the id of the release that ROOT/name leads to; None if that release is not there."""
    try:
        target = os.readlink(os.path.join(root, name))
    except OSError:
        return None
    identity = os.path.basename(target)
    there = ID.match(identity) and os.path.isdir(release_folder(root, identity))
    return identity if there else None


def links(root: str) -> Links:
    return Links(linked(root, CURRENT), linked(root, PREVIOUS))


def release_ids(root: str) -> List[str]:
    """Return the ids of all releases in ROOT, sorted."""
    return sorted(filter(ID.match, os.listdir(os.path.join(root, RELEASES))))


@contextlib.contextmanager
def changing(root: str, verb: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock while the body runs, after completing or dropping what a stopped command left. Raise MerinoError if
    another command changes ROOT, or, as root, if another user could change it."""
    check_owner(root)
    with readable_by_all(), locked(root, verb, wait_s):
        recover(root)
        yield


@contextlib.contextmanager
def readable_by_all() -> Iterator[None]:
    """Set the umask, as root, so that the service's user can read what is installed."""
    if not is_root():
        yield
        return
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def changeable(path: str) -> Optional[str]:
    """Return the file or folder, `path` or one on the way to it, that a user other than root and this one can change;
    None if there is none. That user could choose what is read and run from `path`."""
    place = ancestor = os.path.realpath(path)
    while True:
        if os.path.lexists(ancestor) and others_may_write(os.lstat(ancestor), sticky_allowed=ancestor != place):
            return ancestor
        if ancestor == os.path.dirname(ancestor):
            return None
        ancestor = os.path.dirname(ancestor)


def check_owner(root: str) -> None:
    """Raise MerinoError, as root only, if another user can change ROOT or a folder on the way to it."""
    folder = changeable(root) if is_root() else None
    if folder:
        status = os.lstat(folder)
        raise MerinoError(f"{folder} can be changed by another user than root (owner {status.st_uid}, mode "
                          f"{stat.S_IMODE(status.st_mode):04o}), who could then choose what root runs from {root}. "
                          "Install as that user, or remove that folder, or choose another one: --root DIR, of flash "
                          "--ssh HOST/DIR.")


def service_user(root: str) -> Optional[User]:
    """Return the owner of ROOT/state, if this is root and a service was set up; otherwise None."""
    home = os.path.join(root, STATE)
    if not is_root() or not os.path.lexists(home):
        return None
    status = os.lstat(home)
    return User(status.st_uid, status.st_gid, home) if stat.S_ISDIR(status.st_mode) and status.st_uid != 0 else None


def recover(root: str) -> None:
    """Complete or drop a swap that was interrupted, and remove what else a stopped command left. The caller holds the
    lock. `current` is renamed first: if it is the new one, the swap is completed; otherwise the old one stays."""
    with raising_machine_faults("repair " + root):
        # 1. The links and keys.
        journal = _journal(root)
        if journal and journal[0].current == linked(root, CURRENT):
            _complete(root, *journal)
        _remove_file(os.path.join(root, JOURNAL))
        # 2. Releases in the making. A release that was being replaced by a sound copy comes back if the copy is absent.
        folder = os.path.join(root, RELEASES)
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            path = os.path.join(folder, name)
            original = path[:-len(OLD + PARTIAL)]
            if path.endswith(OLD + PARTIAL) and not os.path.lexists(original):
                move_folder(path, original)
            elif name.endswith(PARTIAL):
                shutil.rmtree(path, ignore_errors=True)
        # 3. Files in the making.
        for folder in (root, os.path.join(root, PROBATION), os.path.join(root, TRUSTED)):
            sweep_folder(os.path.realpath(folder))


def _complete(root: str, to: Links, trusted: Sequence[PublicKey], withdrawn: Sequence[bytes]) -> None:
    """Change everything that follows `current`. Keys to trust come last: then a full disk rejects only these."""
    _link(root, PREVIOUS, to.previous)
    if withdrawn:  # otherwise the list is not read: a damaged one must not stop a rollback
        withdraw(root, withdrawn)
    for key in trusted:
        trust(root, key)


def _journal(root: str) -> Optional[Tuple[Links, List[PublicKey], List[bytes]]]:
    """Return the links, keys to trust and keys to withdraw of an interrupted swap; None if there is no valid journal,
    so that everything stays as it is."""
    path = os.path.join(root, JOURNAL)
    if not os.path.exists(path):
        return None
    with contextlib.suppress(MerinoError, KeyError, TypeError, AttributeError):
        record = read_json(path, "")
        to = Links(**record["to"])
        trusted = [PublicKey(key_of_base64(key) or b"", comment, name)
                   for name, key, comment in record.get("trust", [])]
        withdrawn = [key_of_base64(key) or b"" for key in record.get("withdraw", [])]
        if all(release_id is None or isinstance(release_id, str) and ID.match(release_id) for release_id in to) and \
                all(withdrawn) and all(key.key and os.path.basename(key.name) == key.name for key in trusted):
            return to, trusted, withdrawn
    return None


def swap(root: str, to: Links, trusted: Sequence[PublicKey] = (), withdrawn: Sequence[bytes] = ()) -> None:
    """Change both links, then the trust in keys. A reader of `current` finds the old release or the new one. If this is
    interrupted after `current` was changed, the next command completes it. The caller holds the lock."""
    with raising_machine_faults("change the links in " + root):
        write_json(os.path.join(root, JOURNAL), {
            "schema": SCHEMA, "from": links(root)._asdict(), "to": to._asdict(),
            "trust": [[key.name, key_base64(key.key), key.comment] for key in trusted],
            "withdraw": [key_base64(key) for key in withdrawn]})
        _link(root, CURRENT, to.current)
        _complete(root, to, trusted, withdrawn)
        _remove_file(os.path.join(root, JOURNAL))


def place(root: str, release_id: str) -> None:
    """Rename ID.partial to ID. A damaged release that has that name is moved aside and removed."""
    target = release_folder(root, release_id)
    with raising_machine_faults("write " + target):
        if os.path.lexists(target):
            move_folder(target, target + OLD + PARTIAL)
        move_folder(target + PARTIAL, target)
        if os.path.lexists(target + OLD + PARTIAL):
            shutil.rmtree(target + OLD + PARTIAL)


def remove_release(root: str, release_id: str) -> None:
    """Remove a release, by a rename first: then no release is ever present in part."""
    path = release_folder(root, release_id)
    with raising_machine_faults("remove " + path):
        move_folder(path, path + PARTIAL)
        shutil.rmtree(path + PARTIAL)


def prune(root: str, keep: str = "") -> List[str]:
    """Remove the releases that neither link leads to, except the id `keep` and those that a process uses. Return the
    ids of the latter. The caller holds the lock."""
    used = []
    for name in release_ids(root):
        if name not in (keep, *links(root)):
            if in_use(release_folder(root, name)):
                used.append(name)
            else:
                remove_release(root, name)
    with contextlib.suppress(OSError):  # the probations of releases that are gone
        for name in os.listdir(os.path.join(root, PROBATION)):
            release_id, ending = os.path.splitext(name)
            if ending == ".json" and ID.match(release_id) and not os.path.isdir(release_folder(root, release_id)):
                os.unlink(os.path.join(root, PROBATION, name))
    return used


def write_json(path: str, value: object) -> None:
    write_output(path, json.dumps(value, indent=1) + "\n")


def sync_folders(path: str) -> None:
    """Sync the folders of a release: the files in them were synced when they were written."""
    for inner, folders, _ in os.walk(path):
        if ENVIRONMENT in folders:
            folders.remove(ENVIRONMENT)  # synced as a whole
        sync_folder(inner)


def _link(root: str, name: str, release_id: Optional[str]) -> None:
    path = os.path.join(root, name)
    if release_id is None:
        _remove_file(path)
    elif linked(root, name) != release_id:
        replace_link(path, os.path.join(RELEASES, release_id))


def _remove_file(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
