"""`info` of a packed file on a board, what of it a machine takes, and the verifier of its signature. Its
bytes, read back as they were written, by us and by `tar`; and the public keys that a board trusts."""
import base64
import collections
import hashlib
import json
import os
import tarfile

import pytest

from merino_runtime.__main__ import main
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
from merino_runtime.delivery.ed25519 import is_public_key, verify
from merino_runtime.delivery.fit import check_board, choose, this_machine
from merino_runtime.delivery.keys import PublicKey, key_line, key_to_trust, read_public_key, trusted_keys
from merino_runtime.delivery.manifest import FileEntry, Manifest, manifest_bytes, parse_manifest, release_id
from merino_runtime.errors import MerinoError
from tests import ed25519_signer
from tests.ed25519_signer import (
    BASE,
    ORDER,
    ZERO,
    P,
    add,
    encode,
    hashed,
    point_of,
    public_key_of,
    secret_of,
    sign,
    small_points,
    times,
)
from tests.hostile_archives import OTHER_SEED, SEED, archive, canonical, description, signature, text64

KEY = ed25519_signer.public_key_of(SEED)


@pytest.fixture
def files(bundle_dirs):
    """The contents of a packed file with a bundle that runs on this machine, by path."""
    bundle = sorted(bundle_dirs.values())[-1]
    result = collections.OrderedDict([("merino.pyz", b"app")])
    for name in sorted(set(os.listdir(bundle)) - {"merino.pyz"}):
        with open(os.path.join(bundle, name), "rb") as file:
            result["bundles/0/" + name] = file.read()
    return result


@pytest.fixture
def packed(files, tmp_path):
    """A function: (changes of the manifest, seed of the key or None) -> the path of a packed file."""
    def write(seed=SEED, **changes):
        manifest = canonical(dict(description(files), **changes))
        path = tmp_path / "a.merino"
        path.write_bytes(archive(manifest, files, signature(manifest, seed) if seed else None))
        return str(path)

    for name, seed in (("good", SEED), ("other", OTHER_SEED)):
        (tmp_path / (name + ".pub")).write_text(key_line(ed25519_signer.public_key_of(seed), name))
    return write


def test_verify_tells_who_signed_and_whether_that_was_asked_for(packed, files, tmp_path, capsys):
    good, other = str(tmp_path / "good.pub"), str(tmp_path / "other.pub")
    assert main(["info", "--check", packed(), "--trust", other, "--trust", good]) == 0
    assert f"{len(files)} files" in capsys.readouterr().out
    assert main(["info", "--check", packed(), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["signature"] == {"algorithm": "ed25519", "key": text64(KEY)} and data["files"] == len(files)
    assert main(["info", "--check", packed()]) == 0 and "not compared with a trusted key" in capsys.readouterr().out
    assert main(["info", "--check", packed(None)]) == 0 and "not signed" in capsys.readouterr().out
    for seed, trust, reason in ((SEED, other, "not trusted here"), (None, good, "is not signed")):
        assert main(["info", "--check", packed(seed), "--trust", trust]) == 1
        output = capsys.readouterr()
        assert reason in output.err and output.out == "" and output.err.count("\n") == 1


def test_verify_and_info_of_what_is_no_packed_file_are_one_line(bundle_dirs, tmp_path, capsys):
    (tmp_path / "text").write_text("x" * 2000)
    for words in (["info", "--check", str(tmp_path / "text")], ["info", str(tmp_path / "text")],
                  ["info", "--check", sorted(bundle_dirs.values())[-1], "--trust", "a.pub"],
                  ["info", str(tmp_path / "absent")]):
        assert main(words) == 1
        output = capsys.readouterr()
        assert output.out == "" and output.err.count("\n") == 1


def test_info_tells_what_is_in_it_and_what_this_machine_takes(packed, capsys):
    assert main(["info", packed(), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["takes"] == "bundles/0" and data["refusal"] is None and data["id"] == open_archive(packed()).id
    assert [bundle["path"] for bundle in data["bundles"]] == ["bundles/0"] and data["manifest"]["name"] == "sample"
    path = packed(boards=[{"id": "some-board", "device_tree_models": ["Some Board"]}])
    assert main(["info", path, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["takes"] is None and "some-board" in data["refusal"]
    assert main(["info", path]) == 0
    out = capsys.readouterr().out
    assert text64(KEY) in out and "takes nothing: the file is for some-board" in out


@pytest.mark.parametrize("change", ["less", "more", "other"])
def test_a_bundle_that_is_not_what_its_description_lists_is_named(change, packed, files, capsys):
    """The manifest is right about the files, and the bundle's own description is not."""
    if change == "less":
        del files["bundles/0/tokenizer.json"]
    else:
        files["bundles/0/" + ("evil" if change == "more" else "tokenizer.json")] = b"{}"
    assert main(["info", "--check", packed()]) == 1
    output = capsys.readouterr().err
    assert "bundles/0/bundle.json does not list what is packed" in output
    assert ("bundles/0/evil" if change == "more" else "bundles/0/tokenizer.json") in output


@pytest.mark.parametrize("model, fits", [
    ("Some Board", True), ("Some Board Rev 1.4", True), ("Some Board 2", True), ("Some Boards", False),
    ("Some Board5", False), ("My Some Board", False), ("some board", False), ("", False)])
def test_a_board_is_known_by_whole_words_of_its_device_tree(model, fits, packed, tmp_path):
    opened = open_archive(packed(boards=[{"id": "x", "device_tree_models": ["Other (Board", "Some Board"]}]))
    machine = this_machine(str(tmp_path))._replace(model=model)
    if fits:
        check_board(opened.manifest, machine)
        assert choose(opened, machine).path == "bundles/0"
    else:
        with pytest.raises(MerinoError, match="the file is for x"):
            choose(opened, machine)
        assert choose(opened, machine, force=True).path == "bundles/0"


def test_verify_names_the_file_that_was_damaged(packed, files, capsys):
    path = packed()
    with open(path, "r+b") as file:
        file.seek(open_archive(path).offsets["bundles/0/model.onnx.data"] + 100)
        file.write(bytes([255 - files["bundles/0/model.onnx.data"][100]]))
    assert main(["info", path]) == 0, "info hashes nothing but what it reads"
    capsys.readouterr()
    assert main(["info", "--check", path]) == 1
    assert "bundles/0/model.onnx.data is damaged" in capsys.readouterr().err


# RFC 8032, 7.1: (seed, public key, message, signature).
RFC_VECTORS = [(
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
    "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe246551"
    "41438e7a100b",
), (
    "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
    "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d"
    "291612bb0c00",
), (
    "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
    "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
    "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027"
    "beceea1ec40a",
), (
    "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
    "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
    hashlib.sha512(b"abc").hexdigest(),
    "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9be"
    "f1177331a704",
)]  # fmt: skip
OWN_SEED = b"merino".ljust(32)
MESSAGE = b"a manifest"


@pytest.mark.parametrize("vector", RFC_VECTORS, ids=range(len(RFC_VECTORS)))
def test_vectors_of_the_rfc(vector):
    seed, key, message, signature = map(bytes.fromhex, vector)
    assert sign(seed, message) == (key, signature), "the tests' own signer follows the RFC"
    assert verify(key, message, signature)
    assert not verify(key, message + b"\0", signature)


def test_a_key_of_small_order_verifies_nothing():
    """For such a key anybody finds signatures: R = -k A and S = 0, here until one satisfies the equation."""
    points = small_points()
    assert len({encode(point) for point in points}) == 8
    for key in points:
        assert not is_public_key(encode(key))
        for number in range(64):
            for r in points:
                message = b"%d" % number
                k = hashed(encode(r), encode(key), message) % ORDER
                if add(r, times(k % 8, key)) == ZERO:
                    assert not verify(encode(key), message, encode(r) + bytes(32))


def test_a_key_has_one_encoding():
    points = 0
    for y in range(P, 2 ** 255):  # the same as y - P, if it were taken
        for sign_bit in (0, 1):
            point = point_of(y - P, sign_bit)
            points += point is not None
            assert not is_public_key((y | sign_bit << 255).to_bytes(32, "little"))
            if point is not None and y - P > 1:
                assert is_public_key(encode(point))
    assert points > 10
    for y in (1, P - 1):  # x is 0 and has no sign
        assert not is_public_key((y | 1 << 255).to_bytes(32, "little"))


def test_the_r_of_a_signature_has_one_encoding():
    """R is small here, so that its y can be written in a second way; the key makes the equation hold."""
    secret, _ = secret_of(OWN_SEED)
    key = encode(times(secret, BASE))
    taken = set()
    for r_bytes in (encode(ZERO), (P + 1).to_bytes(32, "little"), (1 | 1 << 255).to_bytes(32, "little")):
        s = hashed(r_bytes, key, MESSAGE) * secret % ORDER
        if verify(key, MESSAGE, r_bytes + s.to_bytes(32, "little")):
            taken.add(r_bytes)
    assert taken == {encode(ZERO)}


FILES = {"merino.pyz": b"app", "bundles/0/bundle.json": b"{}", "bundles/0/model.onnx": bytes(range(256)) * 5,
         "bundles/0/empty": b"", "bundles/0/" + "long/" * 30 + "name": b"x"}


def manifest_of(files):
    entries = tuple(FileEntry(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items())
    return Manifest(1, "sample", "0.1.0", (), ("bundles/0",), (), entries)


def packed_of(manifest, files):
    data = manifest_bytes(manifest)
    members = dict({"manifest.json": data, CHECKSUM: checksum_bytes(data)}, **files)
    return b"".join(packed_member(path, data) for path, data in members.items()) + END


@pytest.fixture
def opened(tmp_path):
    path = tmp_path / "sample.merino"
    path.write_bytes(packed_of(manifest_of(FILES), FILES))
    return open_archive(str(path))


def test_a_manifest_is_read_as_it_was_written():
    data = manifest_bytes(manifest_of(FILES))
    assert parse_manifest(data, "sample") == manifest_of(FILES)
    assert release_id(data) == hashlib.sha256(data).hexdigest()[:16]


def test_files_come_out_as_they_went_in(opened, tmp_path):
    check_hashes(opened)
    for number, (path, data) in enumerate(FILES.items()):
        assert read_member(opened, path) == data
        extract(opened, path, str(tmp_path / str(number)))
        assert (tmp_path / str(number)).read_bytes() == data


def test_tar_reads_the_same(opened):
    with tarfile.open(opened.path) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == ["manifest.json", CHECKSUM, *FILES]
        assert all(member.isreg() and member.mode == 0o644 and member.mtime == 0 for member in members)
        assert {member.name: tar.extractfile(member).read() for member in members[2:]} == FILES


def test_nothing_is_written_over(opened, tmp_path):
    (tmp_path / "there").write_bytes(b"mine")
    with pytest.raises(MerinoError, match="there"):
        extract(opened, "merino.pyz", str(tmp_path / "there"))
    assert (tmp_path / "there").read_bytes() == b"mine"


KEY_A, OTHER = public_key_of(b"a" * 32), public_key_of(b"b" * 32)


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
    path.write_bytes(key_line(KEY_A, comment).encode("utf-8"))
    assert read_public_key(str(path)) == PublicKey(KEY_A, comment)
    assert path.read_bytes().count(b"\n") == 1


GOOD = base64.b64encode(KEY_A).decode("ascii")


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
    for name, key in (("b", OTHER), ("a", KEY_A)):
        (tmp_path / (name + ".pub")).write_text(key_line(key, name))
    trust(root, str(tmp_path / "b.pub"))
    assert trusted_keys(root) == [PublicKey(OTHER, "b")]
    for key, name in ((OTHER, "again.pub"), (KEY_A, "a.pub")):
        (system_folder / name).write_text(key_line(key, name))
    assert trusted_keys(root) == [PublicKey(OTHER, "b"), PublicKey(KEY_A, "a.pub")]
    (system_folder / "a.pub").write_text("nonsense")
    with pytest.raises(MerinoError, match="a.pub is not"):
        trusted_keys(root)


def test_trust_copies_a_key_once_and_never_replaces_another(tmp_path):
    root, path = tmp_path / "root", tmp_path / "a.pub"
    path.write_text(key_line(KEY_A, "first"))
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
    path.write_text(key_line(KEY_A, "x"))
    with pytest.raises(MerinoError, match="cannot be the name"):
        trust(str(tmp_path / "root"), str(path))
    assert not (tmp_path / "root").exists()
