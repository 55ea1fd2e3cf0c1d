"""Installs a packed file: checks it before anything moves, unpacks, tests the release in place, then swaps `current`.

The release in use keeps running until the new one has generated the golden ids. `releases` defines the folders, `fit`
chooses the parts of the file for this machine, `packages` makes the environment. Standard library only.
"""
import os
import shlex
import shutil
import sys
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from merino_runtime.backends import BACKEND_VARIABLE, TENSORRT
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
from merino_runtime.delivery.fit import Choice, check_bundles, check_counter, choose, keep_counter, this_machine
from merino_runtime.delivery.keys import (
    PublicKey,
    key_base64,
    key_of_base64,
    key_to_trust,
    trusted_keys,
    withdrawn_keys,
)
from merino_runtime.delivery.manifest import APP, NAME, FileEntry, files_under
from merino_runtime.delivery.packages import build_engine, selftest
from merino_runtime.delivery.service import make_user
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json
from merino_runtime.io.lock import raising_machine_faults
from merino_runtime.io.outputs import MB, write_output

SPARE_BYTES = 3 * MB  # folders, links and small files of a release and its environment
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
    keys: Tuple[PublicKey, ...]  # to be trusted from now on

    @property
    def withdrawn(self) -> List[bytes]:
        """Return the keys whose trust ends with this file. Only a signed file can withdraw keys."""
        texts = self.archive.manifest.withdrawn if self.archive.signature else ()
        return [key_of_base64(text) or b"" for text in texts]


def install(path: str, root: str, keys: Sequence[str] = (), allow_unsigned: bool = False, force: bool = False,
            report: Report = lambda _: None, backend: Optional[str] = None, allow_downgrade: bool = False,
            as_service: bool = False) -> Dict[str, Any]:
    """Install the packed file at `path`. Return what `install --json` prints.

    root: the folder of releases, created if its parent exists. keys: files of public keys to trust from now on. force,
    backend: as in `fit.choose`; a backend that was named becomes the release's default. report: receives a line per
    step. allow_downgrade: accept a signed file that is older than an earlier one. as_service: run the self-test as the
    service's user. Raise MerinoError; the earlier release then stays in use, and no new key is trusted.
    """
    checked = check(path, root, keys, allow_unsigned=allow_unsigned, force=force, report=report, backend=backend,
                    allow_downgrade=allow_downgrade)
    archive, bundle = checked.archive, checked.choice.bundle
    with releases.readable_by_all():
        _make_root(root)
        with releases.changing(root, "install"):
            if not allow_downgrade:
                check_counter(root, archive)  # again: another command may have run before the lock was taken
            if as_service:
                make_user(root)
            before = releases.links(root)
            releases.prune(root, keep=archive.id)
            _make_and_test(root, checked, before, report)
            keep_counter(root, archive)
            links = before
            if before.current != archive.id:
                probation.start_over(root, archive.id)
                links = probation.links_with(root, archive.id, checked.withdrawn)
            if links != before or checked.keys or checked.withdrawn:
                releases.swap(root, links, checked.keys, checked.withdrawn)
            used = releases.prune(root)
            notes = checked.notes + probation.withdrawn_notes(root)
    notes += [f"release {release_id} is in use by a process; the next install removes it" for release_id in used]
    return {"schema": releases.SCHEMA, "id": archive.id, "name": archive.manifest.name, "bundle": bundle.name,
            "precision": bundle.precision, "python": "{}.{}".format(*sys.version_info[:2]), "root": root,
            "launcher": os.path.join(root, releases.CURRENT, releases.LAUNCHER),
            "replaced": before.current if before.current != archive.id else None, "selftest": "ok", "notes": notes}


def check(path: str, root: str, keys: Sequence[str], allow_unsigned: bool, force: bool, report: Report,
          backend: Optional[str] = None, allow_downgrade: bool = False) -> Checked:
    """Check everything that can be checked before anything is written. Raise MerinoError if the file is rejected."""
    releases.check_owner(root)
    archive = open_archive(path)
    notes: List[str] = []
    new_keys = tuple(key_to_trust(root, key) for key in keys)
    _check_signer(root, archive, new_keys, allow_unsigned, notes)
    if not allow_downgrade:
        check_counter(root, archive)
    report(f"hashing {archive.bytes / MB:.0f} MB")
    check_hashes(archive)
    choice = choose(archive, this_machine(os.path.abspath(root)), force, backend)
    check_bundles(archive)
    if choice.backend == TENSORRT:
        packages.check_tensorrt()
    if choice.wheels:
        packages.check_tools(archive, choice.wheels)
    else:
        packages.check_present([choice.backend] if backend else [need.name for need in choice.bundle.backends])
    return Checked(archive, choice, notes + list(choice.notes), backend, new_keys)


def _check_signer(root: str, archive: Archive, new_keys: Sequence[PublicKey], allow_unsigned: bool, notes: List[str]
                  ) -> None:
    """Raise MerinoError unless a trusted key signed the file and at least one key stays trusted, or
    `allow_unsigned`."""
    trusted = [key.key for key in trusted_keys(root)] + [key.key for key in new_keys]
    if archive.signature and archive.signature.key in withdrawn_keys(root):
        raise MerinoError(f"{archive.path} is signed by the key {key_base64(archive.signature.key)}, which was "
                          "withdrawn here. Sign it with another key.")
    signer = check_signature(archive, trusted)
    withdrawn = archive.manifest.withdrawn
    if signer is None and not allow_unsigned:
        raise MerinoError(f"{archive.path} has no signature, so nobody vouches for it. Pack it with --sign, or install "
                          "it all the same with --allow unsigned.")
    if signer is None:
        notes.append("the file has no signature: corruption is detected, tampering is not")
        notes += ["the keys that it withdraws stay trusted, since nobody signed that"] if withdrawn else []
    elif withdrawn and all(key_base64(key) in withdrawn for key in trusted):
        raise MerinoError(f"{archive.path} withdraws every key that {root} trusts, so that nothing could be installed "
                          "there any more. Trust another key first: --trust NAME.pub")


def _make_and_test(root: str, checked: Checked, before: releases.Links, report: Report) -> None:
    """Make the release and run its self-test. Raise MerinoError if it fails; a new release is then removed."""
    release_id = checked.archive.id
    # 1. A release that is installed already is tested again. If that fails, it is made again, once.
    if _is_sound(root, checked):
        try:
            _test(root, checked, report)
            checked.notes.append("this release was there already: every file of it was verified again")
            return
        except MerinoError as error:
            report(f"the release that is installed is damaged, and made again: {error}")
            checked.notes.append(f"the release was damaged and was made again: {error}")
    # 2. Make it.
    _check_space(root, checked)
    with raising_machine_faults(f"write {releases.release_folder(root, release_id)}"):
        _make_release(root, checked, report)
    # 3. Test it. If the test fails, it is removed, unless a link leads to it.
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


def _make_root(root: str) -> None:
    """Make the default folder with its parents, or any other folder if its parent exists: below the mount point of a
    disk that is not mounted, a release would fill the system's card."""
    with raising_machine_faults(f"make {root}"):
        if root == releases.default_root():
            os.makedirs(root, exist_ok=True)
        for folder in (root, os.path.join(root, releases.RELEASES)):
            if not os.path.isdir(folder):
                os.mkdir(folder)


def _check_space(root: str, checked: Checked) -> None:
    archive, choice = checked.archive, checked.choice
    needed = SPARE_BYTES + sum(entry.bytes for entry in _kept_files(checked).values())
    if choice.wheels:
        needed += choice.wheels.unpacked_bytes
        needed += sum(entry.bytes for entry in files_under(archive.manifest, choice.wheels.path))
    free = shutil.disk_usage(root).free
    if free < needed:
        raise MerinoError(f"{needed / MB:.0f} MB are needed in {root}, {free / MB:.0f} MB are free. Free space on that "
                          "disk, or choose a folder on another one: --root DIR, of flash --ssh HOST/DIR.")


def _kept_files(checked: Checked) -> Dict[str, FileEntry]:
    """Return the files of the archive that a release keeps, by their paths in the release: `bundles/1/model.onnx`
    becomes `bundle/model.onnx`."""
    manifest, folder = checked.archive.manifest, checked.choice.path
    kept = {APP: next(entry for entry in manifest.files if entry.path == APP)}
    kept.update((releases.BUNDLE + entry.path[len(folder):], entry) for entry in files_under(manifest, folder))
    return kept


def _is_sound(root: str, checked: Checked) -> bool:
    """Return whether the release is installed, with the same choice, and each of its files has the right hash."""
    folder = releases.release_folder(root, checked.archive.id)
    try:
        if read_json(os.path.join(folder, releases.RECORD), "").get("choice") != _choice_record(checked):
            return False
        return all(sha256_of(os.path.join(folder, path)) == entry.sha256 for path, entry in _kept_files(checked).items()
                   ) and os.path.exists(os.path.join(folder, releases.LAUNCHER))
    except (MerinoError, AttributeError):
        return False


def _make_release(root: str, checked: Checked, report: Report) -> None:
    """Make the release in ID.partial, then rename that folder to ID."""
    archive, choice = checked.archive, checked.choice
    folder = releases.release_folder(root, archive.id)
    partial = folder + releases.PARTIAL
    try:
        # 1. The bundle and the application.
        report(f"unpacking {archive.manifest.name} into {folder}")
        os.mkdir(partial)
        for path, entry in _kept_files(checked).items():
            extract(archive, entry.path, os.path.join(partial, path))
        # 2. The environment. TensorRT is the system's, so the environment then includes the system's packages.
        if choice.wheels:
            report("making the environment: " + ", ".join(map(" ".join, sorted(choice.wheels.packages.items()))))
            wheel_folder = os.path.join(partial, WHEELS)
            for entry in files_under(archive.manifest, choice.wheels.path):
                extract(archive, entry.path, os.path.join(wheel_folder, os.path.basename(entry.path)))
            packages.make_environment(partial, archive, choice.wheels, wheel_folder, choice.backend == TENSORRT)
            shutil.rmtree(wheel_folder)
        # 3. What the installer itself writes.
        _write_own(partial, checked)
        stamp_beside(load_bundle(os.path.join(partial, releases.BUNDLE), verify=False))
        releases.sync_folders(partial)
        releases.place(root, archive.id)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_own(partial: str, checked: Checked) -> None:
    """Write what a release holds beside the archive's files: launcher, manifest, signature, record."""
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
