"""Hashes are computed once: a stamp spares them while nothing changed, and every change is noticed."""
import json
import os
import shutil
import time
from argparse import Namespace

import pytest

from merino_runtime import bundle as bundle_module
from merino_runtime import commands
from merino_runtime.api import open_model
from merino_runtime.bundle import load_bundle, verified
from merino_runtime.errors import MerinoError

DATA = "model.onnx.data"


def verify(folder):
    return commands.run_verify(Namespace(bundle=str(folder), trust=[], json=False))


@pytest.fixture
def folder(bundle_dirs, tmp_path, monkeypatch):
    """A copy of a bundle whose files are old enough for a stamp, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "LEAST_AGE_NS", -10 ** 9)
    copy = tmp_path / "bundle"
    shutil.copytree(str(bundle_dirs["portable"]), str(copy))
    return copy


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were hashed, as a list that grows."""
    names, sha256_of = [], bundle_module.sha256_of
    monkeypatch.setattr(bundle_module, "sha256_of", lambda path: (names.append(os.path.basename(path)),
                                                                  sha256_of(path))[1])
    return names


def opened(folder):
    with open_model(str(folder), allow_slow=True) as model:
        return model.bundle


def flip(path, place=-1):
    time.sleep(0.02)  # a step of the kernel's clock for file times
    data = bytearray(path.read_bytes())
    data[place] ^= 0x40
    with open(str(path), "r+b") as file:
        file.write(bytes(data))


def test_the_second_start_hashes_nothing(folder, hashed):
    bundle = opened(folder)
    assert sorted(hashed) == sorted(file.path for file in bundle.files)
    del hashed[:]
    opened(folder)
    assert hashed == []


def test_verify_always_hashes(folder, hashed, capsys):
    for _ in range(2):
        del hashed[:]
        verify(folder)
        assert DATA in hashed
    del hashed[:]
    opened(folder)  # verified just now
    assert hashed == [] and capsys.readouterr().out.count("ok: ") == 2


@pytest.mark.parametrize("keep_times", [False, True])
@pytest.mark.parametrize("way", ["in place", "replaced"])
def test_a_changed_file_is_noticed(folder, way, keep_times):
    opened(folder)
    status = os.stat(str(folder / DATA))
    if way == "in place":
        flip(folder / DATA)
    else:
        shutil.copy(str(folder / DATA), str(folder / "other"))
        flip(folder / "other")
        os.replace(str(folder / "other"), str(folder / DATA))
    if keep_times:
        os.utime(str(folder / DATA), ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(MerinoError, match=DATA + " has sha256"):
        opened(folder)


def test_another_expected_hash_is_noticed(folder):
    opened(folder)
    described = json.loads((folder / "bundle.json").read_text())
    described["files"][0]["sha256"] = "0" * 64
    (folder / "bundle.json").write_text(json.dumps(described))
    with pytest.raises(MerinoError, match="expected 0000"):
        opened(folder)


def test_a_link_out_of_the_folder_is_refused_by_verify_as_by_a_start(folder, tmp_path):
    os.rename(str(folder / DATA), str(tmp_path / "elsewhere"))
    os.symlink(str(tmp_path / "elsewhere"), str(folder / DATA))
    for use in (lambda: verify(folder), lambda: opened(folder)):
        with pytest.raises(MerinoError, match=DATA + " is a link out of the folder, to .*elsewhere"):
            use()
    os.rename(str(tmp_path / "elsewhere"), str(folder / "inside"))
    os.unlink(str(folder / DATA))
    os.symlink("inside", str(folder / DATA))
    assert verify(folder) == 0
    opened(folder)


def test_damage_leaves_no_stamp(folder):
    flip(folder / DATA)
    for _ in range(2):
        with pytest.raises(MerinoError, match=DATA + " has sha256"):
            opened(folder)


def test_files_that_changed_a_moment_ago_are_hashed_again(folder, hashed, monkeypatch):
    """Within a step of the file system's clock a second change would look like the first."""
    monkeypatch.setattr(verified, "LEAST_AGE_NS", 3600 * 10 ** 9)
    opened(folder)
    del hashed[:]
    opened(folder)
    assert DATA in hashed


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": 2, "files": []}'])
def test_a_stamp_that_is_none_means_hashing(folder, hashed, content):
    path = verified._path(load_bundle(str(folder), verify=False))
    os.makedirs(os.path.dirname(path))
    with open(path, "w") as file:
        file.write(content)
    opened(folder)
    assert DATA in hashed


def test_a_cache_that_cannot_be_written_means_hashing(folder, hashed, tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    for _ in range(2):
        del hashed[:]
        opened(folder)
        assert DATA in hashed
