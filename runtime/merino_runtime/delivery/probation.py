"""Probation: each start of the service tests a new release, until it is marked good or the service rolls back.

ROOT/probation/ID.json counts a release's starts. It is outside the release and root writes it, so that a release that
is damaged in any way is counted too. Rollback and mark-good are here too. Standard library only.
"""
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from merino_runtime.delivery import releases
from merino_runtime.delivery.archive import SIGNATURE
from merino_runtime.delivery.keys import key_of_base64, withdrawn_keys
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json
from merino_runtime.io.lock import raising_machine_faults


class Probation(NamedTuple):
    starts: int = 0  # of the service, while the release was not good
    good: bool = False
    gave_up: bool = False  # the service rolled back from it
    testing: bool = False  # a start was counted for it, and no other release was swapped in since


def _path(root: str, release_id: str) -> str:
    return os.path.join(root, releases.PROBATION, release_id + ".json")


def read_probation(root: str, release_id: str) -> Probation:
    """Return the probation of a release. A damaged or missing file counts as that of a new release."""
    try:
        record = read_json(_path(root, release_id), "It is written again.")
        probation = Probation(*(record[name] for name in Probation._fields))
    except (MerinoError, KeyError, TypeError):
        return Probation()
    kinds = tuple(type(value) for value in Probation())
    sound = tuple(type(value) for value in probation) == kinds and probation.starts >= 0
    return probation if sound else Probation()


def write_probation(root: str, release_id: str, probation: Probation) -> None:
    """Write a release's probation and sync it: the count must survive a power cut, which the start may cause."""
    folder = os.path.join(root, releases.PROBATION)
    with raising_machine_faults(f"make {folder}"):
        os.makedirs(folder, exist_ok=True)
    releases.write_json(_path(root, release_id), dict(probation._asdict(), schema=releases.SCHEMA))


def count_start(root: str, release_id: str) -> Probation:
    """Count a start, before its test: then a board that the test crashes has counted it. Return the probation."""
    probation = read_probation(root, release_id)
    if not probation.good:
        probation = probation._replace(starts=probation.starts + 1, testing=True)
        write_probation(root, release_id, probation)
    return probation


def mark_good(root: str, release_id: Optional[str] = None) -> str:
    """End the probation of a release, `current` by default, and return its id. The caller holds the lock. Raise
    MerinoError if there is no such release."""
    current = release_id or releases.linked(root, releases.CURRENT)
    if current is None or not os.path.isdir(releases.release_folder(root, current)):
        raise MerinoError(f"no release is installed in {root}. {releases.INSTALL_FIRST}")
    probation = read_probation(root, current)
    if not probation.good:
        write_probation(root, current, probation._replace(good=True, gave_up=False, testing=False))
    return current


def start_over(root: str, release_id: str) -> None:
    """Give the release its starts again, because a person chose it, also if the service gave it up before."""
    probation = read_probation(root, release_id)
    if probation.starts or probation.gave_up or probation.testing:
        write_probation(root, release_id, probation._replace(starts=0, gave_up=False, testing=False))


def is_withdrawn(root: str, folder: str, also: Sequence[bytes] = ()) -> bool:
    """Return whether the key that signed what is in `folder`, a release or ROOT itself, was withdrawn, or is in `also`.
    False if a file is damaged: then `install` reports it, and a rollback must not fail."""
    try:
        key = key_of_base64(read_json(os.path.join(folder, SIGNATURE), "")["key"])
        return key in also or key in withdrawn_keys(root)
    except (MerinoError, KeyError, TypeError, AttributeError):
        return False


def withdrawn_notes(root: str) -> List[str]:
    """Return a sentence for each installed release that a withdrawn key signed."""
    current = releases.linked(root, releases.CURRENT)
    next_steps = {True: "It stays in use: install another one, or go back by `rollback`.",
                  False: "A rollback goes to it only if no other good release is installed."}
    return [f"release {release_id} is signed by a withdrawn key. {next_steps[release_id == current]}"
            for release_id in releases.release_ids(root)
            if is_withdrawn(root, releases.release_folder(root, release_id))]


def links_with(root: str, release_id: str, withdrawn: Sequence[bytes] = ()) -> releases.Links:
    """Return the links after this release becomes `current`. `previous` is the release that was marked good last; if
    none was, as in a folder without a service, it is the one that was in use. A release that a withdrawn key signed
    comes after another good one. withdrawn: keys whose trust ends with this release."""
    others = [other for other in releases.links(root) if other not in (None, release_id)]
    good = [other for other in others if other and read_probation(root, other).good]
    good.sort(key=lambda other: is_withdrawn(root, releases.release_folder(root, other), withdrawn))
    return releases.Links(release_id, (good + others + [None])[0])


def rollback_target(root: str, links: releases.Links) -> Optional[str]:
    """Return the release that a rollback goes to: `previous`. If a withdrawn key signed that, another good release, if
    one is installed."""
    if links.previous is None:
        return None
    good = [name for name in releases.release_ids(root) if name not in links and read_probation(root, name).good]
    return min([links.previous, *good], key=lambda name: is_withdrawn(root, releases.release_folder(root, name)))


def rollback(root: str, gave_up: bool = False) -> releases.Links:
    """Make the release before `current` the current one, and `current` the previous one. Return the new links. The
    caller holds the lock. Raise MerinoError if there is no previous release.

    gave_up: the service rolls back automatically, and never returns to the failed release automatically. Otherwise a
    person rolls back, and the release that is then in use gets its starts again.
    """
    links = releases.links(root)
    target = rollback_target(root, links)
    if target is None:
        raise MerinoError(f"no previous release is in {root}: an upgrade keeps one. {releases.INSTALL_FIRST}")
    if gave_up and links.current is not None:
        failed = read_probation(root, links.current)
        write_probation(root, links.current, failed._replace(gave_up=True, testing=False))
    elif not gave_up:
        start_over(root, target)
    new_links = releases.Links(target, links.current)
    releases.swap(root, new_links)
    return new_links


def status(root: str) -> Dict[str, Any]:
    """Return what is installed. Change nothing and take no lock."""
    links = releases.links(root)
    return {"schema": releases.SCHEMA, "root": root, "current": _facts(root, links.current),
            "previous": _facts(root, links.previous)}


def _facts(root: str, release_id: Optional[str]) -> Optional[Dict[str, Any]]:
    """Return what release.json holds, and the probation; None if there is no release."""
    if release_id is None:
        return None
    folder = releases.release_folder(root, release_id)
    try:
        record = read_json(os.path.join(folder, releases.RECORD), releases.INSTALL_FIRST)
    except MerinoError as error:
        record = {"problem": str(error)}
    facts = dict(record if isinstance(record, dict) else {}, **read_probation(root, release_id)._asdict())
    return dict(facts, id=release_id, folder=folder, withdrawn=is_withdrawn(root, folder))
