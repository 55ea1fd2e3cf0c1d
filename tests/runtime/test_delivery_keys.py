"""Public keys on a board: their files, and which are trusted."""
import base64
import os

import pytest

from merino_runtime.delivery import keys
from merino_runtime.delivery.keys import PublicKey, key_line, key_to_trust, read_public_key, trusted_keys
from merino_runtime.errors import MerinoError
from tests.ed25519_signer import public_key_of

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


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "a.pub").write_text(key_line(KEY, "x"))
    (tmp_path / "root").write_text("a file")
    with pytest.raises(MerinoError, match="cannot (make|read)"):
        trust(str(tmp_path / "root"), str(tmp_path / "a.pub"))
