"""Probation: each start of the service tests a new release, until it is marked good or the service rolls back.

ROOT/probation/ID.json has a release's starts. It lies outside the release and is written by root, so that a release
that is damaged in any way is counted too. Rollback and mark-good are here too. Standard library only.
"""
import json
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from merino_runtime.delivery import releases
from merino_runtime.delivery.archive import SIGNATURE
from merino_runtime.delivery.keys import key_of_base64, withdrawn_keys
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json
from merino_runtime.io.machine_faults import machine_fault
from merino_runtime.io.outputs import write_output

MOST_STARTS = 3  # of a release that nothing and nobody marked good


class Probation(NamedTuple):
    starts: int = 0  # of the service, while the release was not good
    good: bool = False
    gave_up: bool = False  # the service rolled back from it
    testing: bool = False  # a start was counted for it, and no other release was swapped in since


def _path(root: str, release_id: str) -> str:
    return os.path.join(root, releases.PROBATION, release_id + ".json")


def read_probation(root: str, release_id: str) -> Probation:
    """A file that is damaged or missing reads as the file of a new release."""
    try:
        record = read_json(_path(root, release_id), "It is written again.")
        probation = Probation(*(record[name] for name in Probation._fields))
    except (MerinoError, KeyError, TypeError):
        return Probation()
    kinds = tuple(type(value) for value in Probation())
    sound = tuple(type(value) for value in probation) == kinds and probation.starts >= 0
    return probation if sound else Probation()


def write_probation(root: str, release_id: str, probation: Probation) -> None:
    """Synced: the count must survive a power cut, which the counted start may cause."""
    folder = os.path.join(root, releases.PROBATION)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise machine_fault(f"make {folder}", error) from error
    write_output(_path(root, release_id), json.dumps(dict(probation._asdict(), schema=releases.SCHEMA)) + "\n")


def count_start(root: str, release_id: str) -> Probation:
    """Called before the test: a board that the test crashes has counted the start."""
    probation = read_probation(root, release_id)
    if not probation.good:
        probation = probation._replace(starts=probation.starts + 1, testing=True)
        write_probation(root, release_id, probation)
    return probation


def mark_good(root: str, release_id: Optional[str] = None) -> str:
    """Ends the probation of a release, `current` where none is named -> its id. Needs the lock. MerinoError where there
    is none."""
    current = release_id or releases.linked(root, releases.CURRENT)
    if current is None or not os.path.isdir(releases.release_folder(root, current)):
        raise MerinoError(f"no release is installed in {root}. {releases.INSTALL_FIRST}")
    probation = read_probation(root, current)
    if not probation.good:
        write_probation(root, current, probation._replace(good=True, gave_up=False, testing=False))
    return current


def start_over(root: str, release_id: str) -> None:
    """A person chose the release: it gets its starts, also where the service gave it up before."""
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
    now, notes = releases.links(root), []
    for name in releases.release_ids(root):
        if is_withdrawn(root, releases.release_folder(root, name)):
            next_step = ("It stays in use: install another one, or go back by `rollback`." if name == now.current else
                         "A rollback goes to it only if no other good release is installed.")
            notes.append(f"release {name} is signed by a withdrawn key. {next_step}")
    return notes


def links_with(root: str, release_id: str, withdrawn: Sequence[bytes] = ()) -> releases.Links:
    """The links when this release becomes `current`. `previous` is the release that was marked good last. Only where
    none was, as in a folder without a service, it is the one that was in use before. One that a withdrawn key signed
    comes after another good one. withdrawn: keys whose trust ends with this release."""
    now = releases.links(root)
    others = [each for each in now if each not in (None, release_id)]
    good = [each for each in others if each and read_probation(root, each).good]
    good.sort(key=lambda name: is_withdrawn(root, releases.release_folder(root, name), withdrawn))
    return releases.Links(release_id, (good + others + [None])[0])


def before(root: str, now: releases.Links) -> Optional[str]:
    """Return the release that a rollback goes to: `previous`. If a withdrawn key signed it, another good release, if
    one is installed."""
    if now.previous is None:
        return None
    good = [name for name in releases.release_ids(root) if name not in now and read_probation(root, name).good]
    return min([now.previous, *good], key=lambda name: is_withdrawn(root, releases.release_folder(root, name)))


def rollback(root: str, gave_up: bool = False) -> releases.Links:
    """Makes the release before `current`, and `current` previous -> the links now. Needs the lock. MerinoError where
    there is no previous one.

    gave_up: the service rolls back automatically. It then never returns to this release automatically. A
    person's rollback gives the release that it goes to its starts again.
    """
    now = releases.links(root)
    to = releases.Links(before(root, now), now.current)
    if to.current is None:
        raise MerinoError(f"no previous release is in {root}: an upgrade keeps one. {releases.INSTALL_FIRST}")
    if gave_up and now.current is not None:
        left = read_probation(root, now.current)
        write_probation(root, now.current, left._replace(gave_up=True, testing=False))
    elif not gave_up:
        start_over(root, to.current)
    releases.swap(root, to)
    return to


def status(root: str) -> Dict[str, Any]:
    """What is installed; changes nothing and needs no lock."""
    now = releases.links(root)
    unfinished = os.path.exists(os.path.join(root, releases.JOURNAL))
    return {"schema": releases.SCHEMA, "root": root, "current": _facts(root, now.current),
            "previous": _facts(root, now.previous), "partial": releases.partials(root), "swap_unfinished": unfinished}


def _facts(root: str, release_id: Optional[str]) -> Optional[Dict[str, Any]]:
    """What release.json holds, and the probation."""
    if release_id is None:
        return None
    folder = releases.release_folder(root, release_id)
    try:
        record = read_json(os.path.join(folder, releases.RECORD), releases.INSTALL_FIRST)
    except MerinoError as error:
        record = {"problem": str(error)}
    facts = dict(record if isinstance(record, dict) else {}, **read_probation(root, release_id)._asdict())
    return dict(facts, id=release_id, folder=folder, withdrawn=is_withdrawn(root, folder))
