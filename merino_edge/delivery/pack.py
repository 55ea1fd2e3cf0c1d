"""Writes a package, NAME.merino: bundles of one model, the board's application, wheels, manifest and signature.

The same input and counter give the same bytes, whoever packs it and when. Layout and reading:
`merino_runtime.delivery.archive`.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from merino_edge import __version__
from merino_edge.bundles.board_app import write_board_app
from merino_edge.bundles.description import fitting_boards
from merino_edge.bundles.files import DESCRIPTION_FILE, TOKENIZER_FILE
from merino_edge.delivery.keys import read_private_key
from merino_edge.delivery.wheels import Wheels, targets_of, wheels_for
from merino_edge.families.registry import read_geometry
from merino_edge.prediction.formats import formats_of, missing_isa
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.storage.atomic import check_file, check_keeps, make_parent, scratch_folder
from merino_runtime.bundle import (
    BackendNeed,
    Bundle,
    backends_text,
    load_bundle,
    older_graph,
    quantized_cache,
    sha256_of,
)
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.delivery.archive import (
    BLOCK,
    CHECKSUM,
    COPIED_AT_ONCE,
    END,
    SIGNATURE,
    Signature,
    checksum_bytes,
    header,
    packed_member,
    padded,
    signature_bytes,
    signed_bytes,
)
from merino_runtime.delivery.keys import key_base64, read_public_key
from merino_runtime.delivery.manifest import (
    APP,
    NAME,
    SCHEMA,
    BoardNeed,
    FileEntry,
    Manifest,
    WheelSet,
    manifest_bytes,
    parse_manifest,
    release_id,
)
from merino_runtime.errors import MerinoError
from merino_runtime.io.outputs import is_stdout, open_output

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Say = Callable[[str], None]
SERVER = ("uvicorn",)  # that `serve` needs beside the runtime


class Packed(NamedTuple):
    """The written file. `id`: the release's, from its manifest."""

    path: Path
    id: str
    size_bytes: int
    manifest: Manifest
    signed: bool


def pack(
    bundles: Sequence[Path], out: Path, devices: Sequence[DeviceProfile] = (), with_wheels: bool = False,
    key: Path | None = None, say: Say = lambda _: None, withdraw: Sequence[Path] = (),
) -> Packed:  # fmt: skip
    """Write `bundles`, the preferred one first, to `out`, for `devices`, or for any board if none is named.

    `with_wheels`: also the packages for each Python that the devices have. `key`: the private key that signs.
    `withdraw`: files of public keys; boards that install the file stop trusting them.
    Raise MerinoError if a bundle is damaged, they are of different models, a device could run none of them, or the
    file cannot be written.
    """
    # 1. Check the request, the keys and the bundles.
    if is_stdout(str(out)):
        raise MerinoError(f"-o {out} is stdout, which a packed file is not written to: name a file")
    if with_wheels and not devices:
        raise MerinoError("--wheels needs to know for which board: name it with --board, which may be repeated")
    check_keeps(out, [*bundles, *([key] if key else [])])
    check_file(out)
    private = read_private_key(key) if key else None
    counter, withdrawn = counter_now(), withdrawn_of(withdraw, private)
    loaded = [load_bundle(str(folder)) for folder in bundles]
    check_one_model(loaded, say)
    check_devices(loaded, devices, say)
    unknown = [profile.id for profile in devices if not profile.device_tree_models]
    if unknown:
        say(f"the profile of {', '.join(unknown)} has no device_tree_models: any board may install the file")
    boards = () if unknown else tuple(BoardNeed(profile.id, profile.device_tree_models) for profile in devices)
    # 2. Fetch the wheels.
    by_jinja = any(bundle.chat and bundle.chat.parts is None for bundle in loaded)
    more = [*SERVER, *(["jinja2"] if by_jinja else [])]
    wheels = wheels_of(devices, say, more) if with_wheels else []
    # 3. Hash all files, and write them.
    with scratch_folder(out) as scratch:
        app = scratch / APP
        write_board_app(app)
        sources = {APP: app}  # by path in the archive, in its order
        for index, bundle in enumerate(loaded):
            for name in (DESCRIPTION_FILE, *(file.path for file in bundle.files)):
                sources[f"bundles/{index}/{name}"] = Path(bundle.folder) / name
        for wheel_set in wheels:
            sources |= {f"{wheel_set.path}/{file.name}": file for file in wheel_set.files}
        manifest = manifest_of(loaded, boards, wheels, sources, counter=counter, withdrawn=withdrawn)
        size_bytes = write_archive(out, manifest, sources, private)
    return Packed(out, release_id(manifest_bytes(manifest)), size_bytes, manifest, bool(key))


def counter_now() -> int:
    """Return the rollback counter: SOURCE_DATE_EPOCH, else the time, both in seconds. The time of packing orders
    packages without a record elsewhere. Raise MerinoError for an invalid number."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is not None and not re.fullmatch("[0-9]{1,15}", epoch):
        raise MerinoError(f"SOURCE_DATE_EPOCH is {epoch!r}, not a number of seconds. Correct or unset it.")
    return int(epoch) if epoch else int(time.time())


def withdrawn_of(paths: Sequence[Path], private: "Ed25519PrivateKey | None") -> tuple[str, ...]:
    """Return the withdrawn keys in base64. Raise MerinoError if no key signs the list, or if the signing key is on it:
    a board that trusts only that key could not install anything afterwards."""
    keys = {key_base64(read_public_key(str(path)).key): path for path in paths}
    if keys and not private:
        raise MerinoError(
            "--withdraw needs --sign: give it, since boards end the trust in a key only where a trusted key signed that"
        )
    own = key_base64(private.public_key().public_bytes_raw()) if private else ""
    if own in keys:
        raise MerinoError(f"--withdraw {keys[own]} is the key that signs the file. Sign with another that boards trust")
    return tuple(sorted(keys))


def wheels_of(devices: Sequence[DeviceProfile], say: Say, more: Sequence[str] = ()) -> list[Wheels]:
    """Return the wheel sets of all devices in the order of their paths. more: packages beside the runtime's."""
    sets: dict[str, Wheels] = {}
    for profile in devices:
        for target in targets_of(profile):
            wheels = wheels_for(profile.software, target, say, more)
            if sets.setdefault(wheels.path, wheels).packages != wheels.packages:
                raise MerinoError(f"the devices have other versions of packages for the same Python ({wheels.path}):"
                                  " pack a file for each of them")  # fmt: skip
    return [sets[path] for path in sorted(sets)]


def manifest_of(
    bundles: Sequence[Bundle], boards: tuple[BoardNeed, ...], wheels: Sequence[Wheels], sources: Mapping[str, Path],
    counter: int = 0, withdrawn: tuple[str, ...] = (),
) -> Manifest:  # fmt: skip
    """Hash the files -> the manifest. Raise MerinoError if a board would refuse it."""
    manifest = Manifest(
        schema=SCHEMA, name=bundles[0].name, version=__version__, boards=boards,
        bundles=tuple(f"bundles/{number}" for number in range(len(bundles))),
        wheels=tuple(
            WheelSet(wheel_set.path, *wheel_set.target, wheel_set.packages, wheel_set.unpacked_bytes)
            for wheel_set in wheels
        ),
        files=tuple(FileEntry(name, path.stat().st_size, sha256_of(str(path))) for name, path in sources.items()),
        counter=counter, withdrawn=withdrawn,
    )  # fmt: skip
    return parse_manifest(manifest_bytes(manifest), "what is to be packed")


def write_archive(
    out: Path, manifest: Manifest, sources: Mapping[str, Path], key: "Ed25519PrivateKey | None" = None
) -> int:
    """Write the package in constant memory -> its size in bytes. Raise MerinoError if a source changed since it was
    hashed."""
    data = manifest_bytes(manifest)
    first = packed_member(NAME, data) + packed_member(CHECKSUM, checksum_bytes(data))
    if key:
        signature = Signature(key.public_key().public_bytes_raw(), key.sign(signed_bytes(data)))
        first += packed_member(SIGNATURE, signature_bytes(signature))
    size_bytes = len(first) + sum(BLOCK + padded(entry.bytes) for entry in manifest.files) + len(END)
    make_parent(out)
    with open_output(str(out), size_bytes) as file:
        file.write(first)
        for entry in manifest.files:
            file.write(header(entry.path, entry.bytes))
            copy(sources[entry.path], entry, file)
            file.write(bytes(padded(entry.bytes) - entry.bytes))
        file.write(END)
    return size_bytes


def copy(source: Path, entry: FileEntry, to: BinaryIO) -> None:
    digest, count = hashlib.sha256(), 0
    with open(source, "rb") as file:
        while data := file.read(COPIED_AT_ONCE):
            digest.update(data)
            count += len(data)
            to.write(data)
    if (count, digest.hexdigest()) != (entry.bytes, entry.sha256):
        raise MerinoError(f"{source} changed while it was packed: try again when nothing writes to it")


def check_one_model(bundles: Sequence[Bundle], say: Say = lambda _: None) -> None:
    """Raise MerinoError if a bundle is of another model than the first, or is listed twice. Weights are not compared,
    because formats change them. say: gets a line if their sources differ."""
    first = bundles[0]
    for bundle in bundles[1:]:
        other = [what for what, value in _identity(bundle).items() if value != _identity(first)[what]]
        if other:
            raise MerinoError(f"{bundle.folder} is another model than {first.folder}: the {' and the '.join(other)}"
                              f" {'differ' if len(other) > 1 else 'differs'}. One file holds one model in several"
                              " formats; pack others on their own")  # fmt: skip
        if bundle.weights_source != first.weights_source:
            say(f"the weights of {first.folder} are from {first.weights_source!r}, those of {bundle.folder} from"
                f" {bundle.weights_source!r}")  # fmt: skip
    for number, bundle in enumerate(bundles):
        for before in bundles[:number]:
            if bundle._replace(folder="") == before._replace(folder=""):
                raise MerinoError(f"{before.folder} and {bundle.folder} are the same bundle: leave one out")


def _identity(bundle: Bundle) -> dict[str, object]:
    return {
        "architecture": (bundle.family, bundle.architecture),
        "vocabulary": (bundle.vocab, bundle.stop_ids),
        "kind of weights": bundle.weights,
        "tokenizer": [file.sha256 for file in bundle.files if file.path == TOKENIZER_FILE],
    }


def check_devices(bundles: Sequence[Bundle], devices: Sequence[DeviceProfile], say: Say = lambda _: None) -> None:
    """Raise MerinoError if a device can run none of the bundles well. say: gets a line for a bundle that no device
    uses."""
    reasons = [[why_not(bundle, profile) for bundle in bundles] for profile in devices]
    for profile, whys in zip(devices, reasons, strict=True):
        if all(whys):
            raise MerinoError(f"{profile.id} can run none of the bundles: {'; '.join(filter(None, whys))}."
                              " Add a bundle that it can run, or leave out the device")  # fmt: skip
    for number, bundle in enumerate(bundles):
        if devices and all(whys[number] for whys in reasons):
            say(f"{bundle.folder} is of no use to the named devices: {reasons[0][number]}")


def why_not(bundle: Bundle, profile: DeviceProfile) -> str:
    """Return why the device cannot run the bundle on any of its backends; empty if it can."""
    named = f"{bundle.folder} ({bundle.dialect} {bundle.precision})"
    own = [need for need in bundle.backends if need.name in profile.backends]
    if not own:
        return f"{named} needs {backends_text(bundle)}, and its system has {' and '.join(profile.backends)}"
    reasons = {need.name: why_not_on(need, bundle, profile.with_backend(need.name)) for need in own}
    if not all(reasons.values()):
        return ""
    if len(own) == 1:
        return f"{named} {reasons[own[0].name]}"
    return f"{named}: " + ", ".join(f"on {name} it {reason}" for name, reason in reasons.items())


def why_not_on(need: BackendNeed, bundle: Bundle, profile: DeviceProfile) -> str:
    """Return why the profile's backend cannot run the bundle; empty if it can. need: the backend and its version."""
    has = getattr(profile.software, profile.backend) or "0"
    if version_tuple(has) < version_tuple(need.min_version):
        less = f" (an export with {older_graph(bundle)} needs less)" if bundle.dialect != "portable" else ""
        return f"needs {need.name} {need.min_version} and its system has {has}{less}"
    if bundle.precision not in formats_of(profile):
        return "needs a GPU" if bundle.dialect == "portable" else "needs a GPU and --dialect portable"
    missing = missing_isa(profile, bundle.precision)
    if missing:
        return f"needs {', '.join(missing)}, which its CPU lacks"
    operators = read_geometry(bundle.family, bundle.architecture).operators
    if not fitting_boards(
        operators, bundle.precision, bundle.context, bundle.threads, backends=[need], profiles=[profile],
        kv=quantized_cache(bundle),
    ):  # fmt: skip
        return "needs more memory than it has free"
    return ""
