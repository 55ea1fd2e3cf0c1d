"""`info` of a packed file: its contents and boards, or with `--check` its hashes. Nothing is unpacked."""
import json
import os
from typing import Any, Dict, List, Optional, Sequence

from merino_runtime.bundle import Bundle, backends_text
from merino_runtime.bundle.fit import memory_need_mb, needs_text
from merino_runtime.delivery.archive import Archive, check_hashes, check_signature, open_archive
from merino_runtime.delivery.fit import check_bundles, choose, packed_bundle, this_machine
from merino_runtime.delivery.keys import key_base64, read_public_key
from merino_runtime.delivery.manifest import APP
from merino_runtime.errors import MerinoError
from merino_runtime.io import board
from merino_runtime.io.streams import write_lines, write_out


def run_info(path: str, as_json: bool = False) -> int:
    """Print what the file holds. as_json: {id, bytes, signature, manifest, bundles, takes, refusal}; keys in
    docs/formats.md."""
    archive = open_archive(path)
    check_itself(archive)
    bundles = [packed_bundle(archive, folder) for folder in archive.manifest.bundles]
    takes = refusal = None
    try:
        takes = choose(archive, this_machine(os.path.dirname(os.path.abspath(path)))).path
    except MerinoError as error:
        refusal = str(error)
    if as_json:
        description = {"id": archive.id, "bytes": archive.bytes, "signature": _signature(archive),
                       "manifest": json.loads(archive.manifest_bytes.decode("ascii")),
                       "bundles": [_description(bundle) for bundle in bundles], "takes": takes, "refusal": refusal}
        write_out(json.dumps(description, indent=2) + "\n")
    else:
        here = f"takes {takes}" if takes else f"takes nothing: {refusal}"
        facts = [*_facts(archive, bundles), ("this machine", here)]
        write_lines("".join(f"{name:15} {value}\n" for name, value in facts))
    return 0


def run_verify(path: str, trust: Sequence[str] = (), as_json: bool = False) -> int:
    """Hash every file. trust: files of public keys, one of which must have signed the file. Without these, a signature
    must be valid if there is one, by any key."""
    keys = [read_public_key(key) for key in trust]
    archive = open_archive(path)
    check_itself(archive)
    if keys and check_signature(archive, [key.key for key in keys]) is None:
        raise MerinoError(f"{archive.path} is not signed. Pack it with `merino-edge pack --sign NAME.key`.")
    check_hashes(archive)
    check_bundles(archive)
    signature, files = _signature(archive), archive.manifest.files
    if as_json:
        write_out(json.dumps({"id": archive.id, "name": archive.manifest.name, "files": len(files),
                              "bytes": archive.bytes, "signature": signature}) + "\n")
        return 0
    signed = "not signed"
    if signature:
        signed = f"signed by {signature['key']}, {'trusted' if keys else 'not compared with a trusted key'}"
    write_lines(f"ok: {archive.manifest.name}, release {archive.id}, {len(files)} files, "
              f"{archive.bytes / board.MB:.1f} MB, every sha256 as expected; {signed}\n")
    return 0


def check_itself(archive: Archive) -> None:
    """Raise MerinoError if the file has a signature that its own key did not make."""
    check_signature(archive, [archive.signature.key] if archive.signature else [])


def _signature(archive: Archive) -> Optional[Dict[str, str]]:
    return {"algorithm": "ed25519", "key": key_base64(archive.signature.key)} if archive.signature else None


def _description(bundle: Bundle) -> Dict[str, Any]:
    names = ("name", "precision", "dialect", "context", "params", "weight_bytes", "kv_bytes", "kernels", "boards")
    values = bundle._asdict()
    return dict({name: values[name] for name in names}, path=bundle.folder,
                backends=[need._asdict() for need in bundle.backends])


def _facts(archive: Archive, bundles: Sequence[Bundle]) -> List[Sequence[Any]]:
    manifest, signature = archive.manifest, _signature(archive)
    facts: List[Sequence[Any]] = [
        ("name", manifest.name), ("release", archive.id), ("packed by", f"merino_edge {manifest.version}"),
        ("size", f"{archive.bytes / board.MB:.1f} MB, {len(manifest.files)} files"),
        ("signed by", signature["key"] if signature else "nobody"),
        ("code in it", f"{APP}, the wheels if there are any: they run as the user who installs them"),
        ("for boards", ", ".join(need.id for need in manifest.boards) or "any"),
    ]
    facts.extend((bundle.folder, f"{bundle.dialect} {bundle.precision}, context {bundle.context}, needs "
                                 f"{needs_text(bundle)}, {memory_need_mb(bundle):.0f} MB of memory, "
                                 f"{backends_text(bundle)}") for bundle in bundles)
    for wheels in manifest.wheels:
        packages = ", ".join(f"{name} {version}" for name, version in sorted(wheels.packages.items()))
        facts.append(("wheels", f"Python {wheels.python}, {wheels.architecture}, glibc {wheels.glibc} or later: "
                                f"{packages}"))
    return facts
