"""NAME.merino as bytes: one form, read back as it was written, by us and by `tar`."""
import hashlib
import tarfile

import pytest

from merino_runtime.delivery.archive import (
    CHECKSUM,
    END,
    check_hashes,
    checksum_bytes,
    extract,
    open_archive,
    packed_member,
    read_member,
)
from merino_runtime.delivery.manifest import FileEntry, Manifest, manifest_bytes, parse_manifest, release_id
from merino_runtime.errors import MerinoError

FILES = {"merino.pyz": b"app", "bundles/0/bundle.json": b"{}", "bundles/0/model.onnx": bytes(range(256)) * 5,
         "bundles/0/empty": b"", "bundles/0/" + "long/" * 30 + "name": b"x"}


def manifest_of(files):
    entries = tuple(FileEntry(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items())
    return Manifest(1, "sample", "0.1.0", (), ("bundles/0",), (), entries)


def packed(manifest, files):
    data = manifest_bytes(manifest)
    members = dict({"manifest.json": data, CHECKSUM: checksum_bytes(data)}, **files)
    return b"".join(packed_member(path, data) for path, data in members.items()) + END


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "sample.merino"
    path.write_bytes(packed(manifest_of(FILES), FILES))
    return open_archive(str(path))


def test_a_manifest_is_read_as_it_was_written():
    data = manifest_bytes(manifest_of(FILES))
    assert parse_manifest(data, "sample") == manifest_of(FILES)
    assert release_id(data) == hashlib.sha256(data).hexdigest()[:16]


def test_files_come_out_as_they_went_in(archive, tmp_path):
    check_hashes(archive)
    for number, (path, data) in enumerate(FILES.items()):
        assert read_member(archive, path) == data
        extract(archive, path, str(tmp_path / str(number)))
        assert (tmp_path / str(number)).read_bytes() == data


def test_tar_reads_the_same(archive):
    with tarfile.open(archive.path) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == ["manifest.json", CHECKSUM, *FILES]
        assert all(member.isreg() and member.mode == 0o644 and member.mtime == 0 for member in members)
        assert {member.name: tar.extractfile(member).read() for member in members[2:]} == FILES


def test_nothing_is_written_over(archive, tmp_path):
    (tmp_path / "there").write_bytes(b"mine")
    with pytest.raises(MerinoError, match="there"):
        extract(archive, "merino.pyz", str(tmp_path / "there"))
    assert (tmp_path / "there").read_bytes() == b"mine"
