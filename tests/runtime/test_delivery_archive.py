"""NAME.merino as bytes, read back as it was written, by us and by `tar`; and the public keys that a board trusts."""
import base64
import hashlib
import os
import tarfile

import pytest

from merino_runtime.delivery import keys
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
from merino_runtime.delivery.keys import PublicKey, key_line, key_to_trust, read_public_key, trusted_keys
from merino_runtime.delivery.manifest import FileEntry, Manifest, manifest_bytes, parse_manifest, release_id
from merino_runtime.errors import MerinoError
from tests.ed25519_signer import public_key_of

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


KEY, OTHER = public_key_of(b"a" * 32), public_key_of(b"b" * 32)


def trust(root, path):
    keys.trust(root, key_to_trust(root, path))


@pytest.fixture(autouse=True)
def system_folder(tmp_path, monkeypatch):
    """In place of /etc/merino/trusted, which the machine of the tests may have."""
    folder = tmp_path / "etc"
    folder.mkdir()
    monkeypatch.setattr(keys, "SYSTEM_FOLDER", str(folder))
    return folder


@pytest.mark.parametrize("comment", ["", "fleet", "two words", "caf\u00e9", "x" * 200])
def test_a_key_is_read_as_it_was_written(tmp_path, comment):
    path = tmp_path / "a.pub"
    path.write_bytes(key_line(KEY, comment).encode("utf-8"))
    assert read_public_key(str(path)) == PublicKey(KEY, comment)
    assert path.read_bytes().count(b"\n") == 1


@pytest.mark.parametrize("comment", ["two\nlines", "\x1b[2J", " ends", "x" * 201, "\u2028"])
def test_a_comment_that_no_line_can_hold_is_refused(comment):
    with pytest.raises(MerinoError, match="comment") as caught:
        key_line(KEY, comment)
    assert "\n" not in str(caught.value)


GOOD = base64.b64encode(KEY).decode("ascii")


@pytest.mark.parametrize("content, reason", [
    ("", "expected one line"), ("merino-ed25519", "expected one line"), ("ssh-ed25519 " + GOOD, "expected one line"),
    ("merino-ed25519  " + GOOD, "expected one line"), ("merino-ed25519 " + GOOD[:-4], "expected one line"),
    ("merino-ed25519 " + GOOD.rstrip("="), "expected one line"), ("merino-ed25519 " + GOOD + "=", "expected one line"),
    ("merino-ed25519 " + GOOD[:-2] + chr(ord(GOOD[-2]) + 1) + "=", "expected one line"),
    (f"merino-ed25519 {GOOD} a\nmerino-ed25519 {GOOD} b", "expected one line"),
    (f"merino-ed25519 {GOOD} a\x1b", "expected one line"), ("merino-ed25519 \u00e9" + GOOD, "expected one line"),
    ("-----BEGIN PRIVATE KEY-----\n", "is a private key"), ("x" * 5000, "more than"),
    ("merino-ed25519 " + base64.b64encode(b"\x02" + bytes(31)).decode("ascii"), "protects nothing")])
def test_what_is_no_key_is_refused_in_one_line_that_names_the_file(tmp_path, content, reason):
    path = tmp_path / "a.pub"
    path.write_bytes(content.encode("utf-8"))
    with pytest.raises(MerinoError, match=reason) as caught:
        read_public_key(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_trusted_are_the_keys_of_the_root_and_of_the_system_each_once(tmp_path, system_folder):
    root = str(tmp_path / "root")
    assert trusted_keys(root) == []
    for name, key in (("b", OTHER), ("a", KEY)):
        (tmp_path / (name + ".pub")).write_text(key_line(key, name))
    trust(root, str(tmp_path / "b.pub"))
    assert trusted_keys(root) == [PublicKey(OTHER, "b")]
    for key, name in ((OTHER, "again.pub"), (KEY, "a.pub")):
        (system_folder / name).write_text(key_line(key, name))
    assert trusted_keys(root) == [PublicKey(OTHER, "b"), PublicKey(KEY, "a.pub")]
    (system_folder / "a.pub").write_text("nonsense")
    with pytest.raises(MerinoError, match="a.pub is not"):
        trusted_keys(root)


def test_trust_copies_a_key_once_and_never_replaces_another(tmp_path):
    root, path = tmp_path / "root", tmp_path / "a.pub"
    path.write_text(key_line(KEY, "first"))
    trust(str(root), str(path))
    path.rename(tmp_path / "same.pub")
    trust(str(root), str(tmp_path / "same.pub"))
    assert os.listdir(str(root / "trusted")) == ["a.pub"]
    path.write_text(key_line(OTHER, "second"))
    with pytest.raises(MerinoError, match="another key of that name"):
        trust(str(root), str(path))
    assert [read.comment for read in trusted_keys(str(root))] == ["first"]


@pytest.mark.parametrize("name", [".pub", ".hidden.pub", "a b.pub", "a\u00e9.pub", "key.txt", "a\n.pub"])
def test_a_trusted_key_has_a_plain_name(tmp_path, name):
    path = tmp_path / name
    path.write_text(key_line(KEY, "x"))
    with pytest.raises(MerinoError, match="cannot be the name"):
        trust(str(tmp_path / "root"), str(path))
    assert not (tmp_path / "root").exists()
