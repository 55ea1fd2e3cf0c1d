"""The counter of packed files: a board rejects a signed file that is older than one that it has installed.

`pack` writes a counter into the manifest. ROOT/counter.json has the highest counter of a signed file whose release
passed its self-test here. A file without a signature could state any counter, so its counter is neither checked nor
stored.
"""
import contextlib
import os

from merino_runtime.delivery import releases
from merino_runtime.delivery.archive import SIGNATURE, Archive
from merino_runtime.delivery.manifest import NAME, parse_manifest
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json

COUNTER = "counter.json"
REMEDY = "It is written again."


def check_counter(root: str, archive: Archive) -> None:
    """Raise MerinoError if ROOT has accepted a signed file with a higher counter. The release in use may be installed
    again."""
    highest, current = highest_counter(root), releases.linked(root, releases.CURRENT)
    if archive.signature and archive.manifest.counter < highest and archive.id != current:
        raise MerinoError(f"{archive.path} is older than what was installed in {root}: its counter is "
                          f"{archive.manifest.counter}, the highest so far {highest}. Pack it again, go back to the "
                          "release before by `rollback`, or install the older one all the same with --allow-downgrade.")


def highest_counter(root: str) -> int:
    """Return the highest of the stored counter and those of signed, installed releases: either may be lost."""
    counters = [_stored_counter(root)]
    for release_id in filter(None, releases.links(root)):
        folder = releases.release_folder(root, release_id)
        with contextlib.suppress(OSError, MerinoError):
            if os.path.exists(os.path.join(folder, SIGNATURE)):
                with open(os.path.join(folder, NAME), "rb") as file:
                    counters.append(parse_manifest(file.read(), folder).counter)
    return max(counters)


def keep_counter(root: str, archive: Archive) -> None:
    """Store the counter of a signed file if it is the highest. The caller holds the lock."""
    if archive.signature and archive.manifest.counter > _stored_counter(root):
        releases.write_json(os.path.join(root, COUNTER), {"schema": 1, "highest": archive.manifest.counter})


def _stored_counter(root: str) -> int:
    """Return the counter in ROOT/counter.json; 0 if there is none."""
    try:
        highest = read_json(os.path.join(root, COUNTER), REMEDY)["highest"]
    except (MerinoError, KeyError, TypeError):
        return 0
    return highest if isinstance(highest, int) and not isinstance(highest, bool) else 0
