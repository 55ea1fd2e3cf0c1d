"""trial.json of a release: how often it was started before it was found good. And what follows: rollback, mark-good.

Standard library only.
"""
import json
import os
from typing import Any, Dict, NamedTuple, Optional

from merino_runtime.delivery import releases
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json
from merino_runtime.io.outputs import write_output

TRIAL = "trial.json"
MOST_STARTS = 3  # of a release that nothing and nobody found good


class Trial(NamedTuple):
    starts: int = 0  # of the service, while the release was not good
    good: bool = False
    gave_up: bool = False  # the service rolled back from it
    probed: bool = False  # ROOT/probe.json was measured by it


def read_trial(folder: str) -> Trial:
    """Of the release in `folder`. A file that is damaged or missing counts as that of a new release."""
    try:
        found = read_json(os.path.join(folder, TRIAL), "It is written anew.")
        trial = Trial(*(found[name] for name in Trial._fields))
    except (MerinoError, KeyError, TypeError):
        return Trial()
    kinds = tuple(type(value) for value in Trial())
    return trial if tuple(type(value) for value in trial) == kinds and trial.starts >= 0 else Trial()


def write_trial(folder: str, trial: Trial) -> None:
    """Synced: it must outlive a power cut by what it counts."""
    write_output(os.path.join(folder, TRIAL), json.dumps(dict(trial._asdict(), schema=releases.SCHEMA)) + "\n")


def count_start(folder: str) -> Trial:
    """Before what is tried: a board that dies of it has counted it."""
    trial = read_trial(folder)
    if not trial.good:
        trial = trial._replace(starts=trial.starts + 1)
        write_trial(folder, trial)
    return trial


def mark_good(root: str, release_id: Optional[str] = None) -> str:
    """Ends the trial of a release, `current` where none is named -> its id. Needs the lock. MerinoError where there is
    none."""
    wanted = release_id or releases.linked(root, releases.CURRENT)
    if wanted is None or not os.path.isdir(releases.release_folder(root, wanted)):
        raise MerinoError(f"no release is installed in {root}. {releases.INSTALL_FIRST}")
    folder = releases.release_folder(root, wanted)
    trial = read_trial(folder)
    if not trial.good:
        write_trial(folder, trial._replace(good=True, gave_up=False))
    return wanted


def start_over(folder: str) -> None:
    """A person chose the release: it gets its starts, also where the service gave it up before."""
    found = read_trial(folder)
    if found.starts or found.gave_up:
        write_trial(folder, found._replace(starts=0, gave_up=False))


def rollback(root: str, gave_up: bool = False) -> releases.Links:
    """Exchanges `current` and `previous` -> the links now. Needs the lock. MerinoError where there is no previous one.

    gave_up: the service does it by itself. It then never comes back to this release by itself. A person's rollback
    gives the release that it goes to its starts again.
    """
    now = releases.links(root)
    if now.previous is None:
        raise MerinoError(f"no previous release is in {root}: an upgrade keeps one. {releases.INSTALL_FIRST}")
    if gave_up and now.current is not None:
        folder = releases.release_folder(root, now.current)
        write_trial(folder, read_trial(folder)._replace(gave_up=True))
    elif not gave_up:
        start_over(releases.release_folder(root, now.previous))
    to = releases.Links(current=now.previous, previous=now.current)
    releases.swap(root, to)
    return to


def status(root: str) -> Dict[str, Any]:
    """What is installed; changes nothing and needs no lock."""
    now = releases.links(root)
    unfinished = os.path.exists(os.path.join(root, releases.JOURNAL))
    return {"schema": releases.SCHEMA, "root": root, "current": _facts(root, now.current),
            "previous": _facts(root, now.previous), "partial": releases.partials(root), "swap_unfinished": unfinished}


def _facts(root: str, release_id: Optional[str]) -> Optional[Dict[str, Any]]:
    """What release.json holds, and the trial."""
    if release_id is None:
        return None
    folder = releases.release_folder(root, release_id)
    try:
        found = read_json(os.path.join(folder, releases.RECORD), releases.INSTALL_FIRST)
    except MerinoError as error:
        found = {"problem": str(error)}
    facts = dict(found if isinstance(found, dict) else {}, **read_trial(folder)._asdict())
    return dict(facts, id=release_id, folder=folder)
