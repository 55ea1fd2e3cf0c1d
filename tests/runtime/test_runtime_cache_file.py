"""A KV cache on disk: what comes back continues as if it had been computed, and what is not ours is refused."""
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import merino_runtime
from merino_runtime.api import open_model
from merino_runtime.errors import MerinoError

ROOT = os.path.dirname(os.path.dirname(merino_runtime.__file__))
CALL = [sys.executable, "-m", "merino_runtime", "generate"]
IDS = [5, 9, 100, 3, 77, 31, 2, 200]


@pytest.fixture
def saved(model, tmp_path):
    model.backend.prefill(IDS)
    model.save_cache(str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_restored_cache_continues_with_the_very_same_logits(model, saved, folder):
    assert os.listdir(str(saved.parent)) == ["cache"]
    expected = model.backend.step(7).copy()
    with open_model(folder, threads=1) as other:
        other.backend.prefill([1, 2, 3])
        other.load_cache(str(saved))
        assert other.backend.ids == IDS
        np.testing.assert_array_equal(other.backend.step(7), expected)


def test_an_empty_cache_is_saved_too(model, tmp_path):
    model.save_cache(str(tmp_path / "cache"))
    model.backend.prefill(IDS)
    model.load_cache(str(tmp_path / "cache"))
    assert model.backend.ids == []


def test_another_bundles_cache_is_refused(model, saved, tmp_path):
    shutil.copytree(model.bundle.folder, str(tmp_path / "other"))
    described = json.loads((tmp_path / "other" / "bundle.json").read_text())
    described["weights_source"] = "elsewhere"
    (tmp_path / "other" / "bundle.json").write_text(json.dumps(described))
    with open_model(str(tmp_path / "other"), threads=1) as other:
        other.backend.prefill([1, 2])
        with pytest.raises(MerinoError, match="written by another bundle than 'tiny'"):
            other.load_cache(str(saved))
        assert other.backend.ids == []


def rewritten(path, change):
    magic, header, payload = path.read_bytes().split(b"\n", 2)
    described = json.loads(header.decode())
    change(described)
    path.write_bytes(b"\n".join([magic, json.dumps(described).encode(), payload]))


@pytest.mark.parametrize("damage, message", [
    (lambda path: path.write_bytes(b""), "not a cache that merino wrote"),
    (lambda path: path.write_bytes(b"merino-cache\n{"), "header is not JSON"),
    (lambda path: path.write_bytes(b"merino-cache\n[]\n"), "schema null"),
    (lambda path: rewritten(path, lambda header: header.update(schema=2)), "schema 2, this runtime reads schema 1"),
    (lambda path: rewritten(path, lambda header: header.pop("ids")), "other keys"),
    (lambda path: rewritten(path, lambda header: header["ids"].append(1)), "arrays are not"),
    (lambda path: rewritten(path, lambda header: header.update(ids=[10 ** 6] * 8)), "ids are not"),
    (lambda path: rewritten(path, lambda header: header["arrays"].pop()), "arrays are not"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), "ends too early"),
    (lambda path: path.write_bytes(path.read_bytes() + b"x"), "another sha256"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"), "another sha256"),
    (lambda path: path.unlink(), "cannot read the cache .*No such file")])
def test_a_damaged_file_is_refused_and_leaves_an_empty_cache(model, saved, damage, message):
    damage(saved)
    with pytest.raises(MerinoError, match=message):
        model.load_cache(str(saved))
    assert model.backend.ids == []
    assert model.backend.prefill(IDS).shape == (model.bundle.vocab,)


FULL = """
import resource, signal, sys
from merino_runtime.api import open_model
from merino_runtime.errors import MerinoError
with open_model(sys.argv[1], threads=1) as model:
    model.backend.prefill(list(range(20)))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        model.save_cache(sys.argv[2])
    except MerinoError as error:
        print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Unix's")
def test_a_full_disk_is_told_and_leaves_the_old_file(folder, saved):
    before = saved.read_bytes()
    out = subprocess.check_output([sys.executable, "-c", FULL, folder, str(saved)],
                                  env=dict(os.environ, PYTHONPATH=ROOT)).decode()
    assert out.startswith(f"cannot write {saved}: ") and "Free space" in out
    assert saved.read_bytes() == before and os.listdir(str(saved.parent)) == ["cache"]


def test_a_folder_that_cannot_be_written_is_told(model, tmp_path):
    (tmp_path / "a file").write_text("")
    with pytest.raises(MerinoError, match="cannot write .*Not a directory"):
        model.save_cache(str(tmp_path / "a file" / "cache"))


def test_the_command_line_computes_a_prompt_once(folder, tmp_path):
    def generated(prompt):
        arguments = [folder, prompt, "-n", "4", "--temperature", "0", "--ignore-eos", "--json", "--cache", path]
        out = subprocess.check_output([*CALL, *arguments], env=dict(os.environ, PYTHONPATH=ROOT))
        *tokens, last = [json.loads(line) for line in out.decode().splitlines()]
        return [token["id"] for token in tokens], last["prefill_tokens"]

    path = str(tmp_path / "cache")
    first, computed = generated("the river runs")
    content = (tmp_path / "cache").read_bytes()
    assert computed > 2
    assert generated("the river runs") == (first, 1)
    longer, rest = generated("the river runs past the mill")
    assert (tmp_path / "cache").read_bytes() == content  # a file that is there is read only
    path = str(tmp_path / "another")
    result, alone = generated("the river runs past the mill")
    assert result == longer and alone - rest >= computed - 1  # the last token may end otherwise before more text
