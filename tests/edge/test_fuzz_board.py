"""Every file that the board's side reads, mutated: a value, or one MerinoError, and nothing else.

Where a file was taken, what is made of it may fail with a MerinoError too, and with nothing else.
"""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
from mutations import fuzz, mutated_json, taken

from merino_edge.families.registry import read_geometry
from merino_runtime.api import open_model
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.bundle.verified import _path, check_and_stamp, check_files_once
from merino_runtime.commands import run_info
from merino_runtime.generation.cache_file import load_cache, save_cache
from merino_runtime.generation.text import TextStream, Tokenizer
from merino_runtime.io.json_file import read_json

pytestmark = pytest.mark.more


@pytest.fixture(params=["fused", "portable"])
def folder(request, bundle_dirs, tmp_path):
    return Path(shutil.copytree(bundle_dirs[request.param], tmp_path / "bundle"))


def test_a_bundles_description(folder):
    path = folder / "bundle.json"
    described = json.loads(path.read_text())

    def use(data):
        path.write_bytes(data)
        bundle = taken(load_bundle, folder, False)
        if bundle:
            for as_json in (True, False):
                taken(run_info, Namespace(bundle=str(folder), json=as_json))
            taken(read_geometry, bundle.family, bundle.architecture)
            taken(two_tokens, folder)
        return bundle

    fuzz(mutated_json(described), use)


def two_tokens(folder):
    with open_model(str(folder), verify=False, threads=1, allow_slow=True) as model:
        return list(model.generate("the river", max_new_tokens=2))


def test_a_tokenizer(folder):
    described = json.loads((folder / "tokenizer.json").read_text())

    def use(data):
        tokenizer = taken(Tokenizer, data.decode("utf-8", "replace"))
        if tokenizer:
            ids = taken(tokenizer.encode, "the river runs \U0001f600") or []
            stream = TextStream(tokenizer)
            assert isinstance("".join([*map(stream.push, [*ids, 0, 10**6]), stream.finish()]), str)
        return tokenizer

    fuzz(mutated_json(described), use)


def test_a_kept_cache(folder):
    bundle, path = load_bundle(folder), folder / "cache"
    backend = open_backend(bundle, 1)
    backend.prefill([1, 2, 3])
    save_cache(bundle, backend, str(path))
    magic, header, rest = path.read_bytes().split(b"\n", 2)

    def use(data):
        path.write_bytes(magic + b"\n" + data.replace(b"\n", b"") + b"\n" + rest)
        loaded = taken(lambda: load_cache(bundle, backend, str(path)) or backend.length)
        assert backend.length == (loaded or 0)
        return loaded

    fuzz(mutated_json(json.loads(header)), use)


def test_a_stamp_of_hashes(folder):
    bundle = load_bundle(folder)
    check_and_stamp(bundle)
    path = Path(_path(bundle))
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {"schema": 1, "files": [{"path": "model.onnx", "sha256": "0" * 64, "bytes": 1}]}

    def use(data):
        path.write_bytes(data)
        stamp = taken(read_json, str(path), "")
        check_files_once(bundle)  # whatever the stamp has, a whole bundle passes
        return stamp

    fuzz(mutated_json(written), use)
