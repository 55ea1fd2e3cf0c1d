"""LoRA adapters in a graph, which a request chooses by name: they compute what peft computes."""

import copy
import json

import numpy as np
import peft
import pytest
from safetensors.torch import load_file, save_file
from sample_models import DAILY, SMALL, adapted, small

from merino_edge.bundles.description import GraphFormat
from merino_edge.export.export import export
from merino_edge.export.parity import dequantized_model, max_logit_error, rms_error, torch_greedy
from merino_edge.export.plan import resolve_plan
from merino_edge.export.quantize.weights import Rounding, quantized_matrices
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import graph_weights, random_source
from merino_runtime.api import open_model
from merino_runtime.backends import open_backend
from merino_runtime.errors import MerinoError

PROMPT, STEPS = [5, 17, 42, 8], 6
# Adapters that differ in rank, matrices and scale.
KINDS = {
    "all": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "root": {"r": 3, "lora_alpha": 5, "use_rslora": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def base():
    return random_source(small("llama"), "base")


@pytest.mark.parametrize("form", [
    {"dialect": "fused"}, {"dialect": "portable"},
    {"dialect": "fused", "precision": "int8"}, {"dialect": "fused", "precision": "int4"},
], ids=lambda form: "-".join(form.values()))  # fmt: skip
@pytest.mark.parametrize("family", [
    name if name in DAILY else pytest.param(name, marks=pytest.mark.nightly) for name in SMALL
])
def test_adapters_compute_what_peft_computes(family, form, tmp_path):
    """In turns on one backend and its fork, and without an adapter as in a bundle without any."""
    arch = small(family)
    source = random_source(arch, "base")
    folders = tuple(tmp_path / name for name in KINDS)
    for seed, (folder, kind) in enumerate(zip(folders, KINDS.values(), strict=True)):
        adapted(source.model, folder, seed, **kind)
    graph = GraphFormat(form.get("precision", "fp32"), form["dialect"], 16)
    matrices = quantized_matrices(arch, graph_weights(source), graph, Rounding())
    rounded = dequantized_model(source.model, matrices, arch.layout)
    models = {folder.name: peft.PeftModel.from_pretrained(copy.deepcopy(rounded), folder) for folder in folders}
    bundle = export(source, tmp_path / "bundle", ExportRequest(**form, adapters=folders)).bundle
    plain = open_backend(export(source, tmp_path / "plain", ExportRequest(**form, kv="fp32")).bundle)
    backend = open_backend(bundle)
    assert bundle.adapters == tuple(KINDS) and [need.name for need in bundle.backends] == ["onnxruntime"]
    for name in ("all", None, "root", "all"):
        backend.select(name)
        assert backend.length == 0
        model = models[name] if name else rounded
        decoded = torch_greedy(model, PROMPT, STEPS)
        fork = None
        for step, expected in enumerate(decoded.logits):
            ids = [decoded.greedy_ids[step - 1]]
            logits = backend.step(ids[0]) if step else backend.prefill(PROMPT)
            if fork:
                assert np.array_equal(fork.step(ids[0]), logits)
                fork.close()
            fork = backend.fork()
            if "precision" not in form:
                assert max_logit_error(logits, expected) < 1e-4, (name, step)
            else:
                assert rms_error(logits, expected) < 0.1, (name, step)
            if name is None:
                assert np.array_equal(plain.step(ids[0]) if step else plain.prefill(PROMPT), logits)


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_rows_of_a_batch_use_different_adapters(precision, base, tmp_path):
    for seed, (name, kind) in enumerate(KINDS.items()):
        adapted(base.model, tmp_path / name, seed, **kind)
    request = ExportRequest(precision=precision, adapters=tuple(tmp_path / name for name in KINDS))
    bundle = export(base, tmp_path / "bundle", request).bundle
    chosen = ("root", None, "all", "root")
    alone = []
    for name in chosen:
        backend = open_backend(bundle)
        backend.select(name)
        alone.append([backend.prefill(PROMPT).copy(), *(backend.step(token_id).copy() for token_id in (3, 60, 9))])
    rows = open_backend(bundle).rows(len(chosen))
    for row, name, expected in zip(rows, chosen, alone, strict=True):
        row.select(name)
        assert np.array_equal(row.prefill(PROMPT), expected[0])
    for step, token_id in enumerate((3, 60, 9), 1):
        assert rows[0].step_ahead([(row, token_id) for row in rows]) == rows
        for row, expected in zip(rows, alone, strict=True):
            assert np.array_equal(row.step(token_id), expected[step])


def test_smoothquant_rescales_adapters_too(base, tmp_path):
    source = base._replace(model=copy.deepcopy(base.model), weights="trained")
    for layer in source.model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.data[3] *= 30
    model = adapted(source.model, tmp_path / "all", 0, **KINDS["all"])
    made = export(source, tmp_path / "bundle", ExportRequest(precision="int8", adapters=(tmp_path / "all",)))
    backend, expected = open_backend(made.bundle), torch_greedy(model, PROMPT, 1).logits[0]
    backend.select("all")
    assert made.note and rms_error(backend.prefill(PROMPT), expected) < 0.05


def changed(folder, out, config=None, tensors=lambda name, tensor: {name: tensor}):
    """A copy of an adapter's folder with other keys, and with what `tensors` makes of each tensor."""
    out.mkdir()
    described = json.loads((folder / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps({**described, **(config or {})}))
    weights = load_file(folder / "adapter_model.safetensors")
    made = {key: new for name, tensor in weights.items() for key, new in tensors(name, tensor).items()}
    save_file({key: tensor.contiguous() for key, tensor in made.items()}, out / "adapter_model.safetensors")
    return out


WRONG = {
    "use_dora = True.*merge_and_unload": {"config": {"use_dora": True}},
    "bias = 'all'": {"config": {"bias": "all"}},
    r"modules_to_save = \['lm_head'\]": {"config": {"modules_to_save": ["lm_head"]}},
    "alpha_pattern": {"config": {"alpha_pattern": {"q_proj": 3}}},
    "begun by 'pissa_niter_4', which changes the base": {"config": {"init_lora_weights": "pissa_niter_4"}},
    "of type 'IA3', supported is 'LORA'": {"config": {"peft_type": "IA3"}},
    "lora_alpha = None": {"config": {"lora_alpha": None}},
    "changes .*mlp.other_proj.lora_A.weight, which is no matrix": {
        "tensors": lambda name, tensor: {name.replace("up_proj", "other_proj"): tensor}},
    "changes .*lora_magnitude_vector": {
        "tensors": lambda name, tensor: {name.replace("lora_A.weight", "lora_magnitude_vector"): tensor}},
    r"has factors \[4, 96\] and \[0, 0\] of model.layers.0.mlp.down": {
        "tensors": lambda name, tensor: {} if "lora_B" in name else {name: tensor}},
    r"\[4, 63\] and \[64, 4\] of .*\[rank, 64\] and \[64, rank\]. Export the base model": {
        "tensors": lambda name, tensor: {name: tensor[:, :63] if "q_proj.lora_A" in name else tensor}},
    "allowed are finite ones": {"tensors": lambda name, tensor: {name: tensor * float("nan")}},
}  # fmt: skip


def test_what_is_no_plain_adapter_of_the_model_is_refused(base, tmp_path):
    def refused(words, *folders, **options):
        with pytest.raises(MerinoError, match=words):
            resolve_plan(ExportRequest(adapters=folders, **options), base, tmp_path / "bundle")

    good = tmp_path / "good"
    adapted(base.model, good, 0, **KINDS["all"])
    for index, (words, change) in enumerate(WRONG.items()):
        refused(words, changed(good, tmp_path / str(index), **change))
    refused("has no adapter_config.json. Name a folder of `train --lora`", tmp_path)
    (tmp_path / "twice").mkdir()
    refused("'good' is the name of 2 folders.*Rename", good, changed(good, tmp_path / "twice" / "good"))
    refused("cache in int8 is not possible with --set adapters.*--kv fp32", good, kv="int8")
    (good / "adapter_model.safetensors").write_bytes(b"no tensors")
    refused("damaged adapter_model.safetensors", good)


def test_a_bundle_names_its_adapters(base, tmp_path):
    """Also of a folder of `train --lora`, which has the adapter in a folder of its own. A cache on disk keeps its
    adapter, and the model's other uses are without."""
    adapted(base.model, tmp_path / "tuned" / "adapter", 0, **KINDS["all"])
    bundle = export(base, tmp_path / "bundle", ExportRequest(adapters=(tmp_path / "tuned",))).bundle
    with open_model(bundle.folder) as model:
        backend, cache = model.backend, str(tmp_path / "cache")
        with pytest.raises(MerinoError, match="no adapter 'other': it has tuned. Name one"):
            backend.select("other")
        backend.select("tuned")
        expected = backend.prefill(PROMPT).copy()
        model.save_cache(cache)
        assert model.selftest() is None
        model.load_cache(cache)
        assert backend.ids == PROMPT and np.array_equal(backend.step(3), continued(bundle, "tuned", 3))
        backend.truncate(0)
        assert np.array_equal(backend.prefill(PROMPT), expected)


def continued(bundle, name, token_id):
    backend = open_backend(bundle)
    backend.select(name)
    backend.prefill(PROMPT)
    return backend.step(token_id)
