"""A packed file for tests of what takes one: the bundle of a folder with this version's application, unsigned."""

import hashlib

from merino_edge.bundles.board_app import write_board_app
from merino_runtime.delivery.archive import CHECKSUM, END, checksum_bytes, packed_member
from merino_runtime.delivery.manifest import APP, NAME, BoardNeed, FileEntry, Manifest, manifest_bytes


def write_archive(path, bundle, name="sample", boards=(), app=None):
    """boards: (id, beginnings of the device tree's model) pairs. app: other bytes in the application's place."""
    if app is None:
        write_board_app(path.parent / "app.pyz")
        app = (path.parent / "app.pyz").read_bytes()
    files = {APP: app, "bundles/0/bundle.json": (bundle / "bundle.json").read_bytes()}
    for each in sorted(bundle.iterdir()):
        if each.name not in (APP, "bundle.json"):
            files[f"bundles/0/{each.name}"] = each.read_bytes()
    entries = tuple(FileEntry(each, len(data), hashlib.sha256(data).hexdigest()) for each, data in files.items())
    needs = tuple(BoardNeed(board, tuple(models)) for board, models in boards)
    manifest = manifest_bytes(Manifest(1, name, "0.1.0", needs, ("bundles/0",), (), entries))
    members = {NAME: manifest, CHECKSUM: checksum_bytes(manifest), **files}
    path.write_bytes(b"".join(packed_member(each, data) for each, data in members.items()) + END)
    return path
