"""A packed file as the workstation writes it: always the same bytes, whole, of one model, signed by a key kept well.
The board's verifier of signatures has the same verdict as `cryptography`."""

import json
import os
import shutil
import stat
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import forked
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.bundles.description import GraphFormat, backends_of
from merino_edge.delivery.keys import make_key, read_private_key
from merino_edge.delivery.pack import check_devices, check_one_model, counter_now, manifest_of, pack, write_archive
from merino_edge.embedded import FOLDER
from merino_edge.profiles.reading import load_profile
from merino_runtime.bundle import load_bundle
from merino_runtime.delivery.archive import check_hashes, check_signature, open_archive, read_member
from merino_runtime.delivery.ed25519 import verify
from merino_runtime.delivery.fit import check_bundles
from merino_runtime.delivery.keys import key_base64, read_public_key
from merino_runtime.delivery.manifest import FileEntry
from merino_runtime.errors import MerinoError

MB = 2**20


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    private, public = make_key(tmp_path_factory.mktemp("keys") / "fleet")
    return private, read_public_key(str(public)).key


@pytest.fixture(scope="module")
def formats(embedded_bundles):
    """Folders of one model: int4 for CPUs that multiply bytes, float32 for the rest."""
    return [Path(embedded_bundles["fused", "int4"]), Path(embedded_bundles["portable", "fp32"])]


def test_what_was_packed_is_in_it_and_nothing_else(formats, key, tmp_path):
    private, public = key
    made = pack(formats, tmp_path / "new" / "a.merino", [load_profile("jetson-nano")], key=private)
    archive = open_archive(str(made.path))
    check_hashes(archive)
    check_bundles(archive)
    assert check_signature(archive, [public]) == public
    assert (archive.id, archive.bytes) == (made.id, made.path.stat().st_size) == (made.id, made.size_bytes)
    assert [need.id for need in archive.manifest.boards] == ["jetson-nano"]
    expected = {"merino.pyz"}
    for number, folder in enumerate(formats):
        for path in folder.iterdir():
            if path.name != "merino.pyz":
                expected.add(f"bundles/{number}/{path.name}")
                assert read_member(archive, f"bundles/{number}/{path.name}") == path.read_bytes()
    assert {file.path for file in archive.manifest.files} == expected
    assert list(made.path.parent.iterdir()) == [made.path]


PACK = """
import os, sys
from pathlib import Path
os.umask(0o077)
from merino_edge.cli.app import main
main(["pack", sys.argv[1], sys.argv[2], "-o", sys.argv[3], "--board", "raspberry-pi-5", "--sign", sys.argv[4]])
"""


def test_the_same_input_gives_the_same_bytes(formats, key, tmp_path, monkeypatch):
    """Elsewhere, later, under another umask, locale, time zone and hash seed, from folders in another order."""
    private = key[0]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "77")
    first = pack(formats, tmp_path / "first.merino", [load_profile("raspberry-pi-5")], key=private)
    copies = []
    for number, folder in enumerate(formats):
        copy = tmp_path / f"copy {number}"
        copy.mkdir()
        for path in sorted(folder.iterdir(), reverse=True):
            shutil.copyfile(path, copy / path.name)
            os.utime(copy / path.name, (1, 1))
        copies.append(copy.name)
    done = subprocess.run(
        [sys.executable, "-c", PACK, *copies, "second.merino", str(private)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "LC_ALL": "C", "TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "7", "LANG": "tr_TR"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "second.merino").read_bytes() == first.path.read_bytes()


def test_the_counter_is_the_builds_time_or_now(monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert abs(counter_now() - time.time()) < 100
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "5")
    assert counter_now() == 5
    for value in ("", "soon", "-1", "9" * 16):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
        with pytest.raises(MerinoError, match="SOURCE_DATE_EPOCH"):
            counter_now()


def test_withdrawn_keys_are_signed_and_never_the_signing_one(formats, key, tmp_path):
    private, public = key
    _, stolen = make_key(tmp_path / "stolen")
    made = pack(formats, tmp_path / "a.merino", key=private, withdraw=[stolen, stolen])
    assert open_archive(str(made.path)).manifest.withdrawn == (key_base64(read_public_key(str(stolen)).key),)
    with pytest.raises(MerinoError, match="--withdraw needs --sign"):
        pack(formats, tmp_path / "b.merino", withdraw=[stolen])
    with pytest.raises(MerinoError, match="is the key that signs"):
        pack(formats, tmp_path / "b.merino", key=private, withdraw=[private.with_suffix(".pub")])
    assert not (tmp_path / "b.merino").exists()


def test_packing_takes_constant_memory(tmp_path):
    """A sparse file of 256 MB in place of weights."""
    large = tmp_path / "large"
    with open(large, "wb") as file:
        file.truncate(256 * MB)
    bundle = load_bundle(str(FOLDER))
    sources = {"merino.pyz": large, "bundles/0/bundle.json": FOLDER / "bundle.json"}
    tracemalloc.start()
    try:
        size = write_archive(tmp_path / "a.merino", manifest_of([bundle], (), [], sources), sources)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 256 * MB and peak < 8 * MB


def test_a_file_that_changes_while_it_is_packed_is_refused_and_the_old_output_stays(tmp_path):
    out, source = tmp_path / "a.merino", tmp_path / "app"
    bundle = load_bundle(str(FOLDER))
    source.write_bytes(b"before")
    sources = {"merino.pyz": source, "bundles/0/bundle.json": FOLDER / "bundle.json"}
    manifest = manifest_of([bundle], (), [], sources)
    out.write_bytes(b"old")
    for changed in (b"after!", b"longer than before", b""):
        source.write_bytes(changed)
        with pytest.raises(MerinoError, match="app changed while it was packed"):
            write_archive(out, manifest, sources)
    assert out.read_bytes() == b"old" and sorted(tmp_path.iterdir()) == [out, source]


def test_a_damaged_bundle_is_not_packed(formats, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(formats[0], folder)
    with open(folder / "model.onnx.data", "r+b") as file:
        file.write(b"x")
    with pytest.raises(MerinoError, match="model.onnx.data has sha256"):
        pack([folder], tmp_path / "a.merino")
    assert not (tmp_path / "a.merino").exists()


def test_bundles_of_other_models_are_refused(formats, bundle_dirs):
    own, other = load_bundle(str(formats[0])), load_bundle(bundle_dirs["fused"])
    check_one_model([own, load_bundle(str(formats[1]))])
    with pytest.raises(MerinoError, match="another model .*architecture and the vocabulary"):
        check_one_model([own, other])
    tokens = tuple(
        FileEntry(file.path, file.bytes, "0" * 64) if file.path == "tokenizer.json" else file for file in own.files
    )
    with pytest.raises(MerinoError, match="the tokenizer differs"):
        check_one_model([own, own._replace(files=tokens)])
    with pytest.raises(MerinoError, match="the same bundle"):
        check_one_model([own, own._replace(folder="elsewhere")])
    messages = []
    check_one_model([own, own._replace(precision="int8", weights_source="checkpoint other")], messages.append)
    assert len(messages) == 1 and "checkpoint other" in messages[0]


def test_a_device_is_asked_for_each_backend_that_the_bundle_names(formats):
    fp32 = load_bundle(str(formats[1]))

    def portable(precision):
        form = GraphFormat(precision, "portable", fp32.context)
        return fp32._replace(precision=precision, dialect="portable", backends=backends_of(form))

    nano, pi = load_profile("jetson-nano"), load_profile("raspberry-pi-5")
    check_devices([portable("fp16"), portable("fp32")], [nano, pi])
    with pytest.raises(MerinoError, match=r"raspberry-pi-5 can run none .*\(portable fp16\) needs a GPU"):
        check_devices([portable("fp16")], [nano, pi])
    fused = portable("fp16")._replace(dialect="fused", backends=backends_of(GraphFormat("fp16", "fused", 64)))
    orin = load_profile("jetson-orin-nano")
    with pytest.raises(MerinoError, match=r"jetson-orin-nano can run none .* needs a GPU and --dialect portable"):
        check_devices([fused], [orin])
    old = nano.model_copy(update={"software": nano.software.model_copy(update={"tensorrt": "8.0.1"})})
    with pytest.raises(MerinoError, match=r"on onnxruntime it needs a GPU, on tensorrt it needs tensorrt 8\.2 and its"):
        check_devices([portable("fp16")], [old])
    on_gpu_alone = portable("fp16")._replace(backends=portable("fp16").backends[1:])
    with pytest.raises(MerinoError, match=r"needs tensorrt 8\.2 or later, and its system has onnxruntime"):
        check_devices([on_gpu_alone], [pi])


def test_each_device_must_be_able_to_run_one_of_the_bundles(formats):
    int4, fp32 = (load_bundle(str(folder)) for folder in formats)
    nano, new = load_profile("jetson-nano"), load_profile("raspberry-pi-5")
    check_devices([int4, fp32], [nano, new])
    with pytest.raises(MerinoError, match=r"jetson-nano can run none .*needs onnxruntime 1\.18"):
        check_devices([int4], [new, nano])
    recent = nano.model_copy(update={"software": new.software})
    check_devices([int4], [recent])
    small = new.model_copy(update={"memory": new.memory.model_copy(
        update={"free_mb": new.memory.free_mb.model_copy(update={"value": 20})})})  # fmt: skip
    with pytest.raises(MerinoError, match="more memory than it has free"):
        check_devices([int4, fp32], [small])
    messages = []
    check_devices([int4, fp32], [nano], messages.append)
    assert len(messages) == 1 and messages[0].startswith(f"{formats[0]} is of no use")


def test_a_device_without_a_device_tree_opens_the_file_to_all_and_says_so(formats, tmp_path):
    own = load_profile("raspberry-pi-5").model_copy(update={"id": "own", "device_tree_models": ()})
    messages = []
    made = pack(formats, tmp_path / "a.merino", [load_profile("raspberry-pi-5"), own], say=messages.append)
    assert made.manifest.boards == () and [line for line in messages if "own" in line and "any board" in line]


@pytest.mark.parametrize("words, reason", [
    (["-o", "-"], "stdout"), (["-o", "a.merino", "--wheels"], "--board"), (["-o", "."], "a folder"),
    (["-o", "a.merino", "--board", "raspberry-pi-6"], "raspberry-pi-5"),
    (["-o", "a.merino", "--sign", "no.key"], "no.key"),
])  # fmt: skip
def test_a_request_that_cannot_be_met_is_one_line(words, reason, tmp_path):
    done = forked.run(["pack", "embedded", *words], cwd=tmp_path)
    assert done.returncode == 1 and reason in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_commands_from_a_key_to_a_verified_file(tmp_path):
    def run(*words):
        done = forked.run(words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("keygen", "-o", "fleet")
    run("keygen", "-o", "other")
    options = ("--board", "raspberry-pi-5", "--sign", "fleet.key", "--json")
    made = json.loads(run("pack", "embedded", "-o", "a.merino", *options))
    verified = json.loads(run("info", "--check", "a.merino", "--trust", "other.pub", "--trust", "fleet.pub", "--json"))
    data = json.loads(run("info", "a.merino", "--json"))
    assert made["id"] == verified["id"] == data["id"] and data["bundles"][0]["precision"] == "fp32"
    assert data["signature"]["key"] in (tmp_path / "fleet.pub").read_text()
    assert data["takes"] is None and "raspberry-pi-5" in data["refusal"]
    assert f"release         {made['id']}" in run("info", "a.merino")
    done = forked.run(["info", "--check", "a.merino", "--trust", "other.pub"], cwd=tmp_path)
    assert done.returncode == 1 and "not trusted here" in done.stderr
    run("pack", "embedded", "-o", "u.merino")
    assert "not signed" in run("info", "--check", "u.merino")
    done = forked.run(["info", "--check", "u.merino", "--trust", "fleet.pub"], cwd=tmp_path)
    assert done.returncode == 1 and "not signed" in done.stderr


def test_keys_are_never_overwritten_and_the_private_one_is_for_its_owner(tmp_path):
    old = os.umask(0)
    try:
        private, public = make_key(tmp_path / "new" / "fleet")
    finally:
        os.umask(old)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes(), public.read_bytes()
    with pytest.raises(MerinoError, match="no key is overwritten"):
        make_key(tmp_path / "new" / "fleet")
    private.unlink()
    with pytest.raises(MerinoError, match=r"fleet\.pub is there"):
        make_key(tmp_path / "new" / "fleet")
    assert public.read_bytes() == before[1] and not private.exists()
    private.write_bytes(before[0])
    private.chmod(0o640)
    with pytest.raises(MerinoError, match="chmod 600"):
        read_private_key(private)
    private.chmod(0o600)
    read = read_private_key(private).public_key().public_bytes_raw()
    assert read == read_public_key(str(public)).key
    for name in ("", "a/..", "/"):
        with pytest.raises(MerinoError, match="names a folder or nothing"):
            make_key(Path(name))


def pem(key, password=None):
    kept = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kept)


@pytest.mark.parametrize("content", [
    b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\xff", b"x" * 2**17,
    lambda: pem(rsa.generate_private_key(65537, 2048)), lambda: pem(ed25519.Ed25519PrivateKey.generate(), b"secret"),
], ids=["empty", "text", "short", "binary", "long", "rsa", "password"])  # fmt: skip
def test_what_is_no_private_key_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "a.key"
    path.write_bytes(content if isinstance(content, bytes) else content())
    path.chmod(0o600)
    with pytest.raises(MerinoError, match=r"a\.key is not a private key of Ed25519") as caught:
        read_private_key(path)
    assert "\n" not in str(caught.value)


seeds = st.binary(min_size=32, max_size=32)


def other_verdict(key, message, signature):
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@given(seed=seeds, message=st.binary(max_size=50), data=st.data())
def test_changed_signatures_keys_and_messages_get_the_same_verdict(seed, message, data):
    private = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    parts = [private.public_key().public_bytes_raw(), message, private.sign(message)]
    assert verify(*parts)
    which = data.draw(st.integers(0, 2))
    parts[which] = data.draw(st.one_of(
        changed(parts[which]), st.binary(min_size=len(parts[which]), max_size=len(parts[which])),
        st.just(parts[which][:-1]), st.just(parts[which] + b"\0"),
    ))  # fmt: skip
    assert verify(*parts) == other_verdict(*parts)


def changed(content):
    def flipped(bits):
        number = int.from_bytes(content, "little")
        for bit in bits:
            number ^= 1 << bit
        return number.to_bytes(len(content), "little")

    return st.sets(st.integers(0, max(0, 8 * len(content) - 1)), max_size=3 if content else 0).map(flipped)
