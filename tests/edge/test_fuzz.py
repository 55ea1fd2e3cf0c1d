"""Every file that the board's side or the workstation reads, mutated: a value, or one MerinoError, and nothing else.

If a file was taken, what is made of it may fail with a MerinoError too, and with nothing else.
"""

import json
import shutil
import tomllib
from argparse import Namespace
from pathlib import Path

import pytest
from mutations import fuzz, mutated_json, mutated_toml, taken
from sample_models import ARCH
from sample_probe import synthetic
from sample_records import failed, opt, record

from merino_edge.calibration.probe import read_probe
from merino_edge.cli.tables import device_table, show
from merino_edge.design.design_file import load_design, read_plan
from merino_edge.design.designer import design
from merino_edge.families.checkpoint import trained_name
from merino_edge.families.hugging_face import read_checkpoint
from merino_edge.families.registry import read_geometry
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile, profile_ids, profile_text
from merino_edge.records.compare import compare_files
from merino_edge.records.reading import read_records
from merino_edge.report.page import markdown, page
from merino_edge.report.summary import summarize
from merino_edge.training.checkpoint import FINISHED, Run, read_run
from merino_edge.training.recipe import Recipe
from merino_runtime.api import open_model
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.commands import run_info
from merino_runtime.generation.cache_file import load_cache, save_cache
from merino_runtime.generation.text import TextStream, Tokenizer

pytestmark = pytest.mark.more

PROFILES = [tomllib.loads(profile_text(name)) for name in profile_ids()]
BOARD = load_profile("raspberry-pi-4")
PROBE = json.loads(synthetic().model_dump_json(by_alias=True))
PROBE["measurements"] = PROBE["measurements"][:12]
RECORDS = [record(), opt(), opt(test="pp64"), record(depth=512), failed()]
RUN = Run.model_validate({
    "name": "tiny", "family": "merino", "architecture": ARCH.model_dump(mode="json"), "recipe": Recipe().model_dump(),
    "tokenizer_sha256": "0" * 64,
    "data": [{"name": "stories.txt", "bytes": 1000, "sha256": "1" * 64}], "held_out": [],
}).model_dump(mode="json")  # fmt: skip
OPT_CONFIG = {"model_type": "opt", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 64,
              "word_embed_proj_dim": 32, "vocab_size": 300, "max_position_embeddings": 64, "do_layer_norm_before": True,
              "activation_function": "relu", "enable_bias": True, "eos_token_id": 2}  # fmt: skip


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
                taken(run_info, Namespace(bundle=str(folder), json=as_json, check=False, trust=None))
            taken(read_geometry, bundle.family, bundle.architecture)
            taken(two_tokens, folder)
        return bundle

    fuzz(mutated_json(described), use)


def two_tokens(folder):
    with open_model(str(folder), verify=False, threads=1) as model:
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


def test_a_device_profile(tmp_path):
    def use(data):
        (tmp_path / "profile.toml").write_bytes(data)
        profile = taken(load_profile, tmp_path / "profile.toml")
        if profile:
            show(device_table(profile))
            taken(cost_model, profile, InferenceShape("fp32", 256, 64))
        return profile

    fuzz(mutated_toml(*PROFILES), use)


def test_a_design_or_an_architecture(tmp_path):
    def use(data):
        path = tmp_path / "design.json"
        path.write_bytes(data)
        plan = taken(read_plan, path)
        if plan:
            assert getattr(plan, "architecture", plan).operators
        taken(load_design, path)
        return plan

    written = json.loads(design(BOARD, {"decode_ms": 20.0}, context=256, prompt=64).to_json())
    fuzz(mutated_json(written, written["architecture"]), use)


def test_a_probe(tmp_path):
    def use(data):
        (tmp_path / "probe.json").write_bytes(data)
        probe = taken(read_probe, tmp_path / "probe.json")
        assert probe is None or (probe.source and probe.threads is not None)
        return probe

    fuzz(mutated_json(PROBE), use)


def test_records_in_lines(tmp_path):
    others = [json.dumps(row).encode() for row in RECORDS]
    fuzz(mutated_json(*RECORDS), lambda data: used_records(tmp_path / "some.jsonl", b"\n".join([data, *others])))


def used_records(path, data):
    """What `compare` and `report` make of records that were taken."""
    path.write_bytes(data)
    rows = taken(read_records, [path])
    if rows:
        summary = taken(summarize, rows, None)
        assert summary is None or (page(summary) and markdown(summary))
        result = taken(compare_files, path, path)
        assert result is None or result.to_json()
    return rows


def test_a_checkpoints_config(tmp_path, tiny_checkpoint):
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)

    def use(data):
        (folder / "config.json").write_bytes(data)
        return taken(read_checkpoint, folder)

    fuzz(mutated_json(json.loads((folder / "config.json").read_text()), OPT_CONFIG), use)


def test_a_training_record(tmp_path):
    def use(data):
        for name in FINISHED:
            (tmp_path / name).write_bytes(data)
        name = trained_name(tmp_path)
        assert name is None or isinstance(name, str)
        return taken(read_run, tmp_path)

    fuzz(mutated_json(RUN), use)
