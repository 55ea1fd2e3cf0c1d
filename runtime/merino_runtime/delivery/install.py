"""Installs a packed file: checks it before anything moves, unpacks, tests the release in place, then swaps `current`.

What is there keeps running until the new release has generated the golden ids. `releases` defines what lies where,
`fit` what this machine takes of the file, `packages` makes the environment. Standard library only.
"""
import os
import shlex
import shutil
import sys
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.backends.choice import BACKEND_VARIABLE, TENSORRT
from merino_runtime.bundle import load_bundle, sha256_of
from merino_runtime.bundle.verified import stamp_beside
from merino_runtime.delivery import packages, probation, releases
from merino_runtime.delivery.archive import (
    SIGNATURE,
    Archive,
    check_hashes,
    check_signature,
    extract,
    open_archive,
    signature_bytes,
)
from merino_runtime.delivery.counter import check_counter, keep_counter
from merino_runtime.delivery.fit import Choice, choose
from merino_runtime.delivery.keys import (
    NamedKey,
    key_base64,
    key_of_base64,
    key_to_trust,
    trusted_keys,
    withdrawn_keys,
)
from merino_runtime.delivery.machine import this_machine
from merino_runtime.delivery.manifest import APP, NAME, FileEntry, files_under
from merino_runtime.delivery.release_runs import build_engine, selftest
from merino_runtime.delivery.service import make_user
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json
from merino_runtime.io.machine_faults import machine_fault
from merino_runtime.io.outputs import MB, write_output

SPARE_BYTES = 2 * MB  # folders, links and small files of a release
ENGINES = "engines"  # beside the bundle: where `engine_file` looks first
WHEELS = "wheels"  # in ID.partial: unpacked, installed from, removed
LAUNCHER = """#!/bin/sh
# Runs this release: resolves its own folder once, so that a swap meanwhile mixes no two releases.
here=$(dirname -- "$(readlink -f -- "$0")"){setting}
python=$here/env/bin/python
[ -x "$python" ] || python={python}
[ -x "$python" ] || python=python3
exec "$python" "$here/merino.pyz" "$@"
"""
Report = Callable[[str], None]


class Checked(NamedTuple):
    """A file that may be installed here."""
    archive: Archive
    choice: Choice
    notes: List[str]
    backend_option: Optional[str]  # on the command line
    keys: Tuple[NamedKey, ...]  # to be trusted from now on

    @property
    def withdrawn(self) -> List[bytes]:
        """Keys that the file ends the trust in: only a signed one ends trust."""
        texts = self.archive.manifest.withdrawn if self.archive.signature else ()
        return [key_of_base64(each) or b"" for each in texts]


def install(path: str, root: str, keys: Sequence[str] = (), allow_unsigned: bool = False, force: bool = False,
            report: Report = lambda _: None, backend: Optional[str] = None, allow_downgrade: bool = False,
            as_service: bool = False) -> Dict[str, Any]:
    """Installs the packed file at `path` -> what `install --json` prints.

    root: the folder of releases, made where its parent is there. keys: public keys' files, trusted from now on. force:
    and backend: as of `fit.choose`; a backend that was named is the release's from then on. report: gets a line per
    step. allow_downgrade: also a signed file that is older than one before. as_service: the service's user tests it.
    Raises MerinoError; what was installed before then stays as it was, and no key is trusted that was not before.
    """
    checked = check(path, root, keys, allow_unsigned, force, report, backend, allow_downgrade)
    archive = checked.archive
    with releases.readable_by_all():
        _make_root(root)
        with releases.changing(root, "install"):
            if not allow_downgrade:
                check_counter(root, archive)  # again: another command may have come before the lock
            if as_service:
                make_user(root)
            before = releases.links(root)
            releases.prune(root, keep=archive.id)
            _have_tested(root, checked, before, report)
            keep_counter(root, archive)
            to = before
            if before.current != archive.id:
                probation.start_over(root, archive.id)
                to = probation.links_with(root, archive.id, checked.withdrawn)
            if to != before or checked.keys or checked.withdrawn:
                releases.swap(root, to, checked.keys, checked.withdrawn)
            used = releases.prune(root)
            checked.notes.extend(probation.withdrawn_notes(root))
    checked.notes.extend(f"release {each} is in use by a process; the next install removes it" for each in used)
    return _result(root, checked, before.current if before.current != archive.id else None)


def check(path: str, root: str, keys: Sequence[str], allow_unsigned: bool, force: bool, report: Report,
          backend: Optional[str] = None, allow_downgrade: bool = False) -> Checked:
    """All that can be refused before anything is written. Raises MerinoError."""
    releases.check_owner(root)
    archive = open_archive(path)
    notes: List[str] = []
    new = tuple(key_to_trust(root, key) for key in keys)
    _check_signer(root, archive, new, allow_unsigned, notes)
    if not allow_downgrade:
        check_counter(root, archive)
    report(f"hashing {archive.bytes / MB:.0f} MB")
    check_hashes(archive)
    choice = choose(archive, this_machine(os.path.abspath(root)), force, backend)
    if choice.backend == TENSORRT:
        packages.check_tensorrt()
    if choice.wheels:
        packages.check_tools(archive, choice.wheels)
    else:
        packages.check_present([choice.backend] if backend else [need.name for need in choice.bundle.backends])
    return Checked(archive, choice, notes + list(choice.notes), backend, new)


def _check_signer(root: str, archive: Archive, new: Sequence[NamedKey], allow_unsigned: bool, notes: List[str]) -> None:
    """Raises MerinoError unless a trusted key signed the file and one stays trusted after it, or none is required."""
    trusted = [key.key for key in trusted_keys(root)] + [key.key for key in new]
    if archive.signature and archive.signature.key in withdrawn_keys(root):
        raise MerinoError(f"{archive.path} is signed by the key {key_base64(archive.signature.key)}, which was "
                          "withdrawn here. Sign it with another key.")
    signer = check_signature(archive, trusted)
    withdrawn = archive.manifest.withdrawn
    if signer is None and not allow_unsigned:
        raise MerinoError(f"{archive.path} has no signature, so nobody vouches for it. Pack it with --sign, or install "
                          "it all the same with --allow-unsigned.")
    if signer is None:
        notes.append("the file has no signature: corruption is detected, tampering is not")
        notes += ["the keys that it withdraws stay trusted, since nobody signed that"] if withdrawn else []
    elif withdrawn and all(key_base64(key) in withdrawn for key in trusted):
        raise MerinoError(f"{archive.path} withdraws every key that {root} trusts, so that nothing could be installed "
                          "there any more. Trust another key first: --trust NAME.pub")


def _have_tested(root: str, checked: Checked, before: releases.Links, report: Report) -> None:
    """The release is there and has passed its self-test. One that was there and fails is made again, once."""
    if _is_sound(root, checked):
        try:
            _test(root, checked, report)
            checked.notes.append("this release was there already: every file of it was verified again")
            return
        except MerinoError as error:
            report(f"the release that is installed is damaged, and made again: {error}")
            checked.notes.append(f"the release was damaged and was made again: {error}")
    _check_space(root, checked)
    _make_release(root, checked, report)
    _test_or_remove(root, checked, before, report)


def _make_root(root: str) -> None:
    """Makes the default folder with all above it. Any other folder needs its parent: below the mount point of a disk
    that is not mounted, a release would fill the system's card."""
    try:
        if root == releases.default_root():
            os.makedirs(root, exist_ok=True)
        for folder in (root, os.path.join(root, releases.RELEASES)):
            if not os.path.isdir(folder):
                os.mkdir(folder)
    except OSError as error:
        raise machine_fault(f"make {root}", error) from error


def _check_space(root: str, checked: Checked) -> None:
    archive, choice = checked.archive, checked.choice
    needed = SPARE_BYTES + sum(entry.bytes for entry in _unpacked(checked))
    if choice.wheels:
        needed += packages.unpacked_bytes(archive, choice.wheels)
        needed += sum(entry.bytes for entry in files_under(archive.manifest, choice.wheels.path))
    free = shutil.disk_usage(root).free
    if free < needed:
        raise MerinoError(f"{needed / MB:.0f} MB are needed in {root}, {free / MB:.0f} MB are free. Free space on that "
                          "disk, or choose a folder on another one with --root.")


def _unpacked(checked: Checked) -> List[FileEntry]:
    """The files of the archive that a release keeps."""
    manifest = checked.archive.manifest
    return [entry for entry in manifest.files if entry.path == APP] + files_under(manifest, checked.choice.path)


def _place_of(checked: Checked, path: str) -> str:
    """Where in a release a file of the archive lies: `bundles/1/model.onnx` is bundle/model.onnx."""
    inside = path.startswith(checked.choice.path + "/")
    return releases.BUNDLE + path[len(checked.choice.path):] if inside else path


def _is_sound(root: str, checked: Checked) -> bool:
    """Whether the release is there, of the same choice, and each file of it has the right hash."""
    folder = releases.release_folder(root, checked.archive.id)
    record = os.path.join(folder, releases.RECORD)
    try:
        if read_json(record, "").get("choice") != _choice_record(checked):
            return False
        return all(sha256_of(os.path.join(folder, _place_of(checked, entry.path))) == entry.sha256
                   for entry in _unpacked(checked)) and os.path.exists(os.path.join(folder, releases.LAUNCHER))
    except (MerinoError, AttributeError):
        return False


def _make_release(root: str, checked: Checked, report: Report) -> None:
    """ID.partial, then by a rename ID."""
    archive, choice = checked.archive, checked.choice
    folder = releases.release_folder(root, archive.id)
    partial = folder + releases.PARTIAL
    try:
        report(f"unpacking {archive.manifest.name} into {folder}")
        os.mkdir(partial)
        for entry in _unpacked(checked):
            _unpack(archive, entry, os.path.join(partial, _place_of(checked, entry.path)))
        _check_same(checked)
        if choice.wheels:
            _make_environment(partial, checked, report)
        _write_own(partial, checked)
        stamp_beside(load_bundle(os.path.join(partial, releases.BUNDLE), verify=False))
        releases.sync_folders(partial)
        releases.place(root, archive.id)
    except OSError as error:
        raise machine_fault(f"write {partial}", error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack(archive: Archive, entry: FileEntry, to: str) -> None:
    os.makedirs(os.path.dirname(to), exist_ok=True)
    extract(archive, entry.path, to)


def _make_environment(partial: str, checked: Checked, report: Report) -> None:
    archive, wheels = checked.archive, checked.choice.wheels
    assert wheels
    report("making the environment: " + ", ".join(map(" ".join, sorted(wheels.packages.items()))))
    unpacked = os.path.join(partial, WHEELS)
    for entry in files_under(archive.manifest, wheels.path):
        _unpack(archive, entry, os.path.join(unpacked, os.path.basename(entry.path)))
    # TensorRT is the system's, so the environment then sees its packages too.
    packages.make_environment(partial, archive, wheels, unpacked, checked.choice.backend == TENSORRT)
    shutil.rmtree(unpacked)


def _check_same(checked: Checked) -> None:
    """bundle.json lists the hashes that the manifest lists. The files were hashed by the manifest while they were
    written, so they need not be hashed by bundle.json."""
    known = {_place_of(checked, entry.path): entry.sha256 for entry in _unpacked(checked)}
    for file in checked.choice.bundle.files:
        if known.get(f"{releases.BUNDLE}/{file.path}") != file.sha256:
            raise MerinoError(f"{checked.archive.path}: {checked.choice.path}/{file.path} is not what its bundle.json "
                              "lists. Export the bundle again, and pack it again.")


def _write_own(partial: str, checked: Checked) -> None:
    """What a release holds beside the archive's files."""
    archive, bundle = checked.archive, checked.choice.bundle
    launcher = os.path.join(partial, releases.LAUNCHER)
    backend = checked.backend_option
    setting = f"\nexport {BACKEND_VARIABLE}=${{{BACKEND_VARIABLE}:-{backend}}}" if backend else ""
    write_output(launcher, LAUNCHER.format(python=shlex.quote(sys.executable or "python3"), setting=setting))
    if checked.choice.backend == TENSORRT:
        os.mkdir(os.path.join(partial, ENGINES))
    os.chmod(launcher, 0o755)
    write_output(os.path.join(partial, NAME), archive.manifest_bytes)
    if archive.signature:
        write_output(os.path.join(partial, SIGNATURE), signature_bytes(archive.signature))
    releases.write_json(os.path.join(partial, releases.RECORD), {
        "schema": releases.SCHEMA, "id": archive.id, "name": archive.manifest.name, "bundle": bundle.name,
        "precision": bundle.precision, "version": archive.manifest.version, "choice": _choice_record(checked),
        "python": "{}.{}".format(*sys.version_info[:2]),
        "installed_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})


def _choice_record(checked: Checked) -> Dict[str, Any]:
    wheels = checked.choice.wheels
    return {"bundle": checked.choice.path, "wheels": wheels.path if wheels else None,
            "interpreter": packages.base_python() if wheels else sys.executable,
            "backend": checked.backend_option}


def _test(root: str, checked: Checked, report: Report) -> None:
    folder = releases.release_folder(root, checked.archive.id)
    if checked.choice.wheels:
        packages.check_imports(folder, checked.choice.wheels)
    if checked.choice.backend == TENSORRT:
        build_engine(folder, report)
    report("self-test: generating the bundle's golden ids")
    selftest(folder, releases.service_user(root))


def _test_or_remove(root: str, checked: Checked, before: releases.Links, report: Report) -> None:
    """A release that fails is removed, unless a link leads to it already."""
    release_id = checked.archive.id
    try:
        _test(root, checked, report)
    except MerinoError as refusal:
        if release_id in before:
            launcher = os.path.join(root, releases.CURRENT, releases.LAUNCHER)
            raise MerinoError(f"{refusal} It was installed before and stays. To go back to the release before it: "
                              f"{launcher} rollback --root {root}") from refusal
        releases.remove_release(root, release_id)
        kept = f"{before.current} stays in use" if before.current else "nothing is installed"
        raise MerinoError(f"{refusal} The new release was removed; {kept}.") from refusal


def _result(root: str, checked: Checked, replaced: Optional[str]) -> Dict[str, Any]:
    archive, bundle = checked.archive, checked.choice.bundle
    return {"schema": releases.SCHEMA, "id": archive.id, "name": archive.manifest.name, "bundle": bundle.name,
            "precision": bundle.precision, "python": "{}.{}".format(*sys.version_info[:2]), "root": root,
            "launcher": os.path.join(root, releases.CURRENT, releases.LAUNCHER), "replaced": replaced,
            "selftest": "ok", "notes": checked.notes}
