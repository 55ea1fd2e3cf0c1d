"""The facts of a machine, and the parts of a packed file that it uses: one bundle, and the wheels for its Python.
Rejects a file that is older than one that was installed.

This is checked on the workstation before a file travels, and on the board before anything is unpacked or imported. The
workstation requests the facts from a board over ssh, as JSON, and checks the reply strictly: any program may send it.
"""
import os
import re
import shutil
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from merino_runtime.backends import TENSORRT, choose_backend
from merino_runtime.bundle import Bundle, backends_text, bundle_of, older_graph
from merino_runtime.bundle.fit import check_bundle_fits
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.delivery import releases
from merino_runtime.delivery.archive import Archive, read_member
from merino_runtime.delivery.manifest import Manifest, WheelSet, files_under
from merino_runtime.errors import MerinoError
from merino_runtime.io import board
from merino_runtime.io.json_file import read_json, value_of
from merino_runtime.io.json_shape import count, integer, listed, or_null, problems_in, size, text

LARGEST_DESCRIPTION_BYTES = 2 ** 20  # of bundle.json; OPT-350M's has 20 kB. JSON can grow 100 times when it is read
COUNTER = "counter.json"
MACHINE_SCHEMA = 1
LARGEST_MB = 2 ** 30  # of memory
REMEDY = "It is written again."


class Machine(NamedTuple):
    board: board.Board
    model: str  # of the device tree; empty if there is none, as on a PC
    python: str  # "3.11"
    glibc: str  # "2.36"; empty for another C library
    free_bytes: int  # on the disk of the folder that was named


def this_machine(folder: str) -> Machine:
    """Return the facts of this machine. folder: where something will be installed; it need not exist yet."""
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder.rstrip(os.sep))
    return Machine(
        board=board.this_board(), model=board.read_text("/proc/device-tree/model").rstrip("\0\n"),
        python="{}.{}".format(*sys.version_info[:2]), glibc=glibc_version(),
        free_bytes=shutil.disk_usage(folder or os.curdir).free)


def glibc_version() -> str:
    """Return the version of glibc; empty for another C library. `platform.libc_ver` of Python 3.6 returns the version
    that Python was built for."""
    try:
        library, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (AttributeError, OSError, ValueError):  # Windows; another C library
        return ""
    return version if library == "glibc" else ""


def _short(value: Any) -> Any:
    return None if value == "" else text(value)


def _megabytes(value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return None if number and 0 <= value <= LARGEST_MB else f"a number, 0 to {LARGEST_MB}"


MACHINE_SHAPE: Dict[str, Any] = {
    "schema": integer(MACHINE_SCHEMA, MACHINE_SCHEMA),
    "board": {"architecture": text, "pointer_bits": integer(16, 128), "logical_cores": size, "physical_cores": size,
              "isa": [text], "memory_total_mb": or_null(_megabytes), "memory_available_mb": or_null(_megabytes)},
    "model": _short, "python": text, "glibc": _short, "free_bytes": count,
}


def machine_values(machine: Machine) -> Dict[str, Any]:
    """Return the value of the machine in JSON."""
    facts = dict(machine.board._asdict(), isa=sorted(machine.board.isa))
    return dict(machine._asdict(), schema=MACHINE_SCHEMA, board=facts)


def machine_of(values: Any, where: str) -> Machine:
    """Return the machine that `machine_values` describes. Raise MerinoError with every fault. where: for messages."""
    problems = problems_in(values, MACHINE_SHAPE)
    if problems:
        raise MerinoError(f"{where} does not describe a machine: {listed(problems)}. Install by one version on both "
                          "sides.")
    facts = dict(values["board"], isa=frozenset(values["board"]["isa"]))
    return Machine(board.Board(**facts), *(values[name] for name in Machine._fields[1:]))


class Choice(NamedTuple):
    path: str  # of the bundle in the archive
    bundle: Bundle
    wheels: Optional[WheelSet]  # None: the file holds none, and the machine's packages are used
    notes: Tuple[str, ...]  # on what will make it slow
    backend: str  # that the machine uses for it


def choose(archive: Archive, machine: Machine, force: bool = False, backend: Optional[str] = None) -> Choice:
    """Return the first bundle of the file that runs on the machine. Raise MerinoError if none does.

    force: also for a board that the file was not packed for. backend: as in `choose_backend`; None: the first one that
    the bundle lists.
    """
    manifest = archive.manifest
    if not force:
        check_board(manifest, machine)
    wheels = fitting_wheels(manifest, machine)
    refusals: List[str] = []
    for path in manifest.bundles:
        bundle = packed_bundle(archive, path)
        try:
            notes: List[str] = []
            chosen = choose_backend(bundle, backend, notes.append)
            if chosen != TENSORRT:  # which is the system's own, and in no file
                _check_version(bundle, wheels)
            notes += check_bundle_fits(bundle, machine.board, backend=chosen)
            return Choice(path, bundle, wheels, tuple(notes), chosen)
        except MerinoError as error:
            refusals.append(str(error))
    raise MerinoError(refusals[-1] if len(manifest.bundles) == 1 else "none of the file's bundles runs here: "
                      + " / ".join(refusals))


def packed_bundle(archive: Archive, path: str) -> Bundle:
    """Return the description of a bundle in the archive. Its folder is the path there."""
    where = f"{path}/bundle.json"
    try:
        return bundle_of(path, value_of(read_member(archive, where, LARGEST_DESCRIPTION_BYTES).decode("utf-8")))
    except ValueError as error:
        raise MerinoError(f"{archive.path}: {where} is not JSON that can be read: {error}. Pack it again.") from error


def check_bundles(archive: Archive) -> None:
    """Raise MerinoError if the manifest and a bundle's own description list different files, sizes or hashes."""
    for folder in archive.manifest.bundles:
        files = packed_bundle(archive, folder).files
        described = {f"{folder}/{file.path}": (file.bytes, file.sha256) for file in files}
        packed = {entry.path: (entry.bytes, entry.sha256) for entry in files_under(archive.manifest, folder)
                  if entry.path != f"{folder}/bundle.json"}
        wrong = sorted(path for path in {**described, **packed} if described.get(path) != packed.get(path))
        if wrong:
            raise MerinoError(f"{archive.path}: {folder}/bundle.json does not list what is packed: {listed(wrong)}. "
                              "Pack it again.")


def check_board(manifest: Manifest, machine: Machine) -> None:
    """Raise MerinoError if the file is for other boards."""
    models = [model for need in manifest.boards for model in need.device_tree_models]
    # In whole words: `Raspberry Pi 5` does not name a Raspberry Pi 500.
    if manifest.boards and not any(re.match(re.escape(model) + r"(?!\w)", machine.model) for model in models):
        here = repr(machine.model) if machine.model else f"a {machine.board.architecture} machine without a device tree"
        raise MerinoError(f"the file is for {', '.join(need.id for need in manifest.boards)}, this is {here}. Pack it "
                          "for this board (`merino-edge pack --board`), or install it with --allow any-board.")


def fitting_wheels(manifest: Manifest, machine: Machine) -> Optional[WheelSet]:
    """Return the wheels for the machine's Python with the newest C library that it has; None if the file holds no
    wheels. Raise MerinoError if none of them fit."""
    if not manifest.wheels:
        return None
    fitting = [wheels for wheels in manifest.wheels
               if (wheels.python, wheels.architecture) == (machine.python, machine.board.architecture)
               and machine.board.pointer_bits == 64 and machine.glibc
               and version_tuple(wheels.glibc) <= version_tuple(machine.glibc)]
    if not fitting:
        targets = "; ".join(f"Python {wheels.python} on {wheels.architecture} with glibc {wheels.glibc} or later"
                            for wheels in manifest.wheels)
        raise MerinoError(f"the file's wheels are for {targets}; this is Python {machine.python}, "
                          f"{machine.board.pointer_bits}-bit, on {machine.board.architecture} with "
                          f"{'glibc ' + machine.glibc if machine.glibc else 'another C library'}. Pack it with "
                          "--wheels for this board, or without, and install the packages on the board.")
    return max(fitting, key=lambda wheels: version_tuple(wheels.glibc))


def _check_version(bundle: Bundle, wheels: Optional[WheelSet]) -> None:
    """Raise MerinoError if the wheels hold no backend of a version that the bundle can use."""
    if not wheels:
        return
    packed = [(need, wheels.packages[need.name]) for need in bundle.backends if need.name in wheels.packages]
    for need, version in packed:
        numbers = version_tuple(version)
        if numbers >= version_tuple(need.min_version) and numbers not in map(version_tuple, need.refused_versions):
            return
    versions = ", ".join(version for _, version in packed) or "none"
    raise MerinoError(f"{bundle.name!r} ({bundle.dialect}, {bundle.precision}) needs {backends_text(bundle)}, the "
                      f"file's wheels for this Python hold {versions}. Pack a bundle that was exported with "
                      f"{older_graph(bundle)}.")


def check_counter(root: str, archive: Archive) -> None:
    """Raise MerinoError if ROOT has accepted a signed file with a higher counter. The release in use may be installed
    again."""
    highest, current = _stored_counter(root), releases.linked(root, releases.CURRENT)
    if archive.signature and archive.manifest.counter < highest and archive.id != current:
        raise MerinoError(f"{archive.path} is older than what was installed in {root}: its counter is "
                          f"{archive.manifest.counter}, the highest so far {highest}. Pack it again, go back to the "
                          "release before by `rollback`, or install the older one all the same with --allow downgrade.")


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
