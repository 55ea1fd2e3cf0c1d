"""`info` and `verify` of a packed file on a board, and what of it a machine takes."""
import collections
import json
import os

import pytest

from merino_runtime.__main__ import main
from merino_runtime.delivery.archive import open_archive
from merino_runtime.delivery.fit import check_board, choose
from merino_runtime.delivery.keys import key_line
from merino_runtime.delivery.machine import this_machine
from merino_runtime.errors import MerinoError
from tests import ed25519_signer
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
    assert main(["verify", packed(), "--trust", other, "--trust", good]) == 0
    assert f"{len(files)} files" in capsys.readouterr().out
    assert main(["verify", packed(), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["signature"] == {"algorithm": "ed25519", "key": text64(KEY)} and data["files"] == len(files)
    assert main(["verify", packed()]) == 0 and "not compared with a trusted key" in capsys.readouterr().out
    assert main(["verify", packed(None)]) == 0 and "not signed" in capsys.readouterr().out
    for seed, trust, reason in ((SEED, other, "not trusted here"), (None, good, "is not signed")):
        assert main(["verify", packed(seed), "--trust", trust]) == 1
        output = capsys.readouterr()
        assert reason in output.err and output.out == "" and output.err.count("\n") == 1


def test_verify_and_info_of_what_is_no_packed_file_are_one_line(bundle_dirs, tmp_path, capsys):
    (tmp_path / "text").write_text("x" * 2000)
    for words in (["verify", str(tmp_path / "text")], ["info", str(tmp_path / "text")],
                  ["verify", sorted(bundle_dirs.values())[-1], "--trust", "a.pub"], ["info", str(tmp_path / "absent")]):
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
    assert main(["verify", packed()]) == 1
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
    assert main(["verify", path]) == 1
    assert "bundles/0/model.onnx.data is damaged" in capsys.readouterr().err
