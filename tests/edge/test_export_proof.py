"""Proofs of an export: golden ids, all logits, float16, memory, KV heads that are shared, a bundle as a source."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import sample_gguf
import torch
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from sample_models import SMALL, small, write_stories
from typer.testing import CliRunner

from merino_edge.cli.app import app
from merino_edge.design.design_file import load_design
from merino_edge.embedded import FOLDER
from merino_edge.export.export import export
from merino_edge.export.memory import needed_mb
from merino_edge.export.parity import rms_error, torch_greedy, unrounded_error
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import Source, load_source, random_source
from merino_edge.families.designed import Architecture
from merino_edge.families.hugging_face import random_model
from merino_edge.families.mapped import is_mapped, mapped_weights
from merino_edge.families.opt import OptArchitecture
from merino_edge.jobs.make import HOUSE
from merino_edge.training.recipe import Recipe
from merino_edge.training.train import train
from merino_runtime.api import open_model
from merino_runtime.backends import open_backend
from merino_runtime.backends.backend import unit
from merino_runtime.bundle import bundle_of, load_bundle, returns_all_logits
from merino_runtime.bundle.fit import check_bundle_fits
from merino_runtime.errors import MerinoError

IDS = [0, 7, 300, 12, 45, 8, 91, 5, 33, 2, 64, 17, 9]
FORMS = [
    {"dialect": "portable", "precision": "fp32"}, {"dialect": "fused", "precision": "int4"},
    *(pytest.param(form, marks=pytest.mark.nightly) for form in (
        {"dialect": "fused", "precision": "fp32"},
        {"dialect": "portable", "precision": "int8"}, {"dialect": "fused", "precision": "int8"},
    )),
]  # fmt: skip


@pytest.fixture(scope="module")
def embedded():
    return load_source(str(FOLDER))


def rows(backend, first, ids):
    return np.concatenate([logits.copy() for logits in backend.logits_from(first, ids)])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
def test_all_logits(form, embedded, embedded_bundles, tmp_path, monkeypatch):
    """Behind a filled cache and over several runs of the graph; `prefill` and `step` are as ever."""
    monkeypatch.setattr("merino_runtime.backends.onnx.PREFILL_CHUNK_IDS", 5)
    default = embedded_bundles[form["dialect"], form["precision"]]
    made = export(embedded, tmp_path / "all", ExportRequest(**form, all_logits=True)).bundle
    assert returns_all_logits(made) and not returns_all_logits(load_bundle(str(default)))
    assert [need.name for need in made.backends] == ["onnxruntime"]
    with torch.no_grad():
        expected = embedded.model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    one, other = open_backend(load_bundle(str(default))), open_backend(made)
    try:
        for backend in (one, other):
            backend.prefill(IDS[:2])
        stepwise, whole = rows(one, 3, IDS[2:]), rows(other, 3, IDS[2:])
        assert one.ids == other.ids == IDS and stepwise.shape == whole.shape == (len(IDS) - 5, made.vocab)
        scale = np.abs(expected).max()
        if form["precision"] == "fp32":
            assert np.abs(stepwise - expected[5:]).max() < 1e-4 * scale
            assert np.abs(whole - expected[5:]).max() < 1e-4 * scale
        else:
            assert np.abs(whole - stepwise).mean() < 0.02 * scale
        other.truncate(2)
        assert np.allclose(other.prefill(IDS[2:]), whole[-1], atol=0.02 * scale)
        other.truncate(len(IDS) - 1)
        assert np.allclose(other.step(IDS[-1]), whole[-1], atol=0.02 * scale)
    finally:
        one.close()
        other.close()


def embedded_by_torch(model, ids):
    """The mean of what the head reads, with length 1."""
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    hook.remove()
    return unit(seen[0][0].mean(0).numpy())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
def test_an_embedding_is_the_mean_of_torchs_last_hidden_states(form, embedded, tmp_path, monkeypatch):
    """Over several runs of the graph, whatever the cache held; logits and decode steps are as ever."""
    monkeypatch.setattr("merino_runtime.backends.onnx.PREFILL_CHUNK_IDS", 5)
    made = export(embedded, tmp_path / "all", ExportRequest(**form, embeddings=True)).bundle
    assert [need.name for need in made.backends] == ["onnxruntime"] and not returns_all_logits(made)
    with open_model(made.folder) as model:
        assert model.selftest() is None
        ids = model.tokenizer.encode("The girl had a red ball and a dog that barked.")
        vector = model.embed("The girl had a red ball and a dog that barked.")
        expected = embedded_by_torch(embedded.model, ids)
        assert vector.shape == expected.shape and abs(np.linalg.norm(vector) - 1) < 1e-5
        if form["precision"] == "fp32":
            np.testing.assert_allclose(vector, expected, atol=2e-6)
        assert vector @ expected > 0.99
        assert model.backend.ids == ids and list(model.generate("The girl", max_new_tokens=3))
        np.testing.assert_array_equal(model.embed("The girl had a red ball and a dog that barked."), vector)


@pytest.mark.parametrize("family", [
    family if family in ("opt", "gemma3n_text", "gpt_neox") else pytest.param(family, marks=pytest.mark.nightly)
    for family in sorted(SMALL)
])  # fmt: skip
def test_an_embedding_of_each_family_is_torchs(family, tmp_path, decoder):
    source = Source(family, small(family), decoder(small(family), 5), "random", "drawn", (), None)
    backend = open_backend(export(source, tmp_path / "bundle", ExportRequest(embeddings=True)).bundle)
    ids = [5, 9, 33, 71, 17, 2, 12]
    vector = unit(backend.embed(ids[:3]) + backend.embed(ids[3:]))
    backend.close()
    np.testing.assert_allclose(vector, embedded_by_torch(source.model, ids), atol=1e-5)


def test_a_bundle_without_embeddings_says_how_to_get_them(embedded_bundles, tmp_path):
    folder = embedded_bundles["fused", "int4"]
    with open_model(str(folder)) as model, pytest.raises(MerinoError, match="makes no embeddings.*--set embed"):
        model.embed("The girl")
    description = json.loads((folder / "bundle.json").read_text())
    description["outputs"].append({"name": "embedding", "dtype": "float32", "shape": [1, "sequence"]})
    with pytest.raises(MerinoError, match="embedding is .*, must be"):
        bundle_of(str(tmp_path), description)


PROMPT, STEPS = 9, 24
DIALECTS = ("fused", "portable")
MODELS = {
    "wider, shared": Architecture(
        blocks=(
            {"width": 64, "ffn_ratio": 1.5, "depth": 1},
            {"width": 128, "ffn_ratio": 2, "depth": 2, "shared": True},
        ),
        vocab=311, head_size=32, context=PROMPT + STEPS,
    ),
    "other constants": Architecture(
        blocks=({"width": 64, "ffn_ratio": 1, "depth": 2},), vocab=64, head_size=64, context=PROMPT + STEPS,
        rope_theta=500.0, rms_norm_eps=0.1,
    ),
    "square": Architecture(
        blocks=({"width": 64, "ffn_ratio": 1, "depth": 2},), vocab=64, head_size=64, context=PROMPT + STEPS
    ),
    "opt": OptArchitecture(
        width=128, layers=2, heads=4, ffn_width=256, embed_width=64, vocab=311, context=PROMPT + STEPS, pre_norm=False
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=[
    name if name in ("other constants", "opt") else pytest.param(name, marks=pytest.mark.nightly) for name in MODELS
])  # fmt: skip
def source(request, saved):
    return saved(MODELS[request.param], 4)


@pytest.fixture(params=DIALECTS)
def dialect(request):
    return request.param


def test_a_bundle_gives_its_weights_back_bit_by_bit(source, dialect, tmp_path):
    export(source, tmp_path / "bundle", ExportRequest(dialect=dialect))
    again = load_source(str(tmp_path / "bundle"))
    assert (again.name, again.family, again.arch, again.weights) == ("model", source.family, source.arch, "trained")
    expected, result = source.model.state_dict(), again.model.state_dict()
    assert expected.keys() == result.keys()
    assert all(torch.equal(expected[name], result[name]) for name in expected)
    ids = torch.arange(PROMPT)[None]
    with torch.no_grad():
        assert torch.equal(source.model(ids).logits, again.model(ids).logits)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": {"rope_theta": 10_000.0}},
        {"architecture": {"rms_norm_eps": 1e-6}},
        {"golden": {"greedy_ids": [1]}},
    ],
    ids=lambda change: str(*change.values()),
)
def test_a_bundle_whose_description_is_of_another_model_is_refused(change, decoder, tmp_path):
    """All its weights fit, but not the constants of its graph, or not its golden ids."""
    decoder(MODELS["other constants"], 4).save_pretrained(tmp_path / "model")
    export(load_source(str(tmp_path / "model")), tmp_path / "bundle")
    path = tmp_path / "bundle" / "bundle.json"
    description = json.loads(path.read_text())
    assert (description["architecture"]["rope_theta"], description["architecture"]["rms_norm_eps"]) == (500.0, 0.1)
    for key, values in change.items():
        description[key].update(values)
    path.write_text(json.dumps(description))
    with pytest.raises(MerinoError, match="bundle.json and the graph do not belong together"):
        load_source(str(tmp_path / "bundle"))


def test_only_a_whole_float32_bundle_is_a_source(source, tmp_path):
    export(source, tmp_path / "half", ExportRequest(precision="fp16"))
    with pytest.raises(MerinoError, match="fp16 weights.*take a bundle in fp32"):
        load_source(str(tmp_path / "half"))
    export(source, tmp_path / "bundle")
    description = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    grow(description["architecture"])
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(MerinoError, match="does not hold the model it describes"):
        load_source(str(tmp_path / "bundle"))


def test_an_int8_bundle_is_a_source_and_computes_as_its_dequantized_weights(embedded, tmp_path):
    """The house model, whose matrices are in tiles; and one that was exported here: exporting it again rounds to the
    same codes but for some scales."""
    folder = tmp_path / "house"
    shutil.copytree(HOUSE, folder)
    source, bundle = load_source(str(folder)), load_bundle(str(folder))
    decoded = torch_greedy(source.model, bundle.golden.prompt_ids, 16)
    assert source.weights == "trained" and unrounded_error(bundle, decoded) <= 1e-5

    made = export(embedded, tmp_path / "int8", ExportRequest("int8"))
    again = load_source(str(tmp_path / "int8"))
    for name, weight in embedded.model.state_dict().items():
        assert rms_error(again.model.state_dict()[name].numpy(), weight.numpy()) <= 0.02
    assert unrounded_error(made.bundle, torch_greedy(again.model, made.bundle.golden.prompt_ids, 8)) <= 0.03
    export(embedded, tmp_path / "portable", ExportRequest("int8", dialect="portable"))
    with pytest.raises(MerinoError, match="int8 weights.*take a bundle in fp32 with --kv fp32, a fused one in int8"):
        load_source(str(tmp_path / "portable"))


def grow(architecture):
    if "blocks" in architecture:
        architecture["blocks"][-1]["depth"] += 1
        architecture["blocks"][-1]["shared"] = False
    else:
        architecture["layers"] += 1


def test_float16_agrees_with_torch_at_every_step(source, dialect, tmp_path):
    export(source, tmp_path / "bundle", ExportRequest(dialect=dialect, precision="fp16"))
    ids = np.random.default_rng(5).integers(0, source.arch.vocab, PROMPT + STEPS)
    with torch.no_grad():
        expected = source.model(torch.tensor([ids.tolist()])).logits[0].numpy()
    backend = open_backend(load_bundle(str(tmp_path / "bundle")))
    results = [backend.prefill(ids[:PROMPT].tolist()).copy()]
    results += [backend.step(int(token)).copy() for token in ids[PROMPT:]]
    backend.close()
    errors = [rms_error(one, row) for one, row in zip(results, expected[PROMPT - 1 :], strict=True)]
    assert len(errors) == STEPS + 1
    assert 1e-5 < max(errors) < 0.01  # above: float16 it is, and not float32 by another name


def test_float16_weights_and_cache_take_half_the_bytes(source, dialect, tmp_path):
    whole, half = (
        export(source, tmp_path / precision, ExportRequest(dialect=dialect, precision=precision)).bundle
        for precision in ("fp32", "fp16")
    )
    assert half.kv_bytes == whole.kv_bytes / 2
    assert half.weight_bytes == pytest.approx(whole.weight_bytes / 2, rel=0.02)  # portable's norms stay whole
    types = {port.name: port.dtype for port in half.inputs + half.outputs}
    assert types.pop("logits") == "float32"
    assert {kind for name, kind in types.items() if "." in name} == {"float16"}
    assert half.boards == (("jetson-nano", "jetson-orin-nano") if dialect == "portable" else ())  # as TensorRT needs it
    notes = check_bundle_fits(load_bundle(str(tmp_path / "fp16")))
    assert any("for GPUs" in note for note in notes)


def test_float16_holds_each_constant_and_each_square(source, dialect, tmp_path):
    """Activations of some hundreds, whose squares float16 cannot hold: the logits stay numbers, and right ones."""
    with torch.no_grad():
        for name, weight in source.model.named_parameters():
            if "out_proj" in name or "attention.out" in name:
                weight.mul_(300)
        ids = np.random.default_rng(6).integers(0, source.arch.vocab, PROMPT)
        expected = source.model(torch.tensor([ids.tolist()])).logits[0, -1].numpy()
    try:
        export(source, tmp_path / "bundle", ExportRequest(dialect=dialect, precision="fp16"))
        backend = open_backend(load_bundle(str(tmp_path / "bundle")))
        assert rms_error(backend.prefill(ids.tolist()), expected) < 0.02
        backend.close()
        graph = onnx.load(str(tmp_path / "bundle" / "model.onnx")).graph
        for constant in graph.initializer:
            assert np.isfinite(onnx.numpy_helper.to_array(constant)).all(), constant.name
    finally:
        with torch.no_grad():
            for name, weight in source.model.named_parameters():
                if "out_proj" in name or "attention.out" in name:
                    weight.div_(300)


GIANT = {"width": 8192, "ffn_ratio": 8.0, "depth": 64, "shared": False}  # 16 of them have 5 TB of weights
MEASURED = """
import sys
from pathlib import Path
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source
from merino_runtime.io.board import peak_rss_mb
export(load_source(sys.argv[1]), Path(sys.argv[2]), ExportRequest(precision=sys.argv[3]), last_use=True)
print(peak_rss_mb())
"""


@pytest.mark.parametrize("source", ["design", "checkpoint", "bundle"])
def test_a_model_for_which_no_machine_has_memory_is_refused_before_its_weights(
    source, tmp_path, tiny_checkpoint, bundle_dirs
):
    """A design, a checkpoint or a bundle whose description lies."""
    geometry = {"blocks": [GIANT] * 16, "head_size": 64, "vocab": 50257, "context": 1024}
    path = tmp_path / "lies"
    if source == "design":
        path.write_text(json.dumps(geometry))
    else:
        shutil.copytree(tiny_checkpoint if source == "checkpoint" else bundle_dirs["fused"], path)
        file = path / ("config.json" if source == "checkpoint" else "bundle.json")
        described = json.loads(file.read_text())
        (described if source == "checkpoint" else described["architecture"]).update(blocks=[GIANT] * 16, head_size=64)
        file.write_text(json.dumps(described))
    with pytest.raises(MerinoError) as caught:
        load_source(str(path))
    figures = re.findall(r"([\d,]+) MB (?:of memory|on the disk|are available)", str(caught.value))
    needed, on_disk, available = (float(figure.replace(",", "")) for figure in figures)
    assert needed > 1e6 and on_disk > 5e6 and 10 < available < needed and "smaller model" in str(caught.value)


@pytest.mark.parametrize("what", ["architecture", "checkpoint", "bundle", "gguf"])
def test_weights_on_disk_give_the_same_bundle(what, tiny_checkpoint, bundle_dirs, tmp_path, monkeypatch):
    """Where memory is short; nothing is left there."""
    source = {"checkpoint": tiny_checkpoint, "bundle": bundle_dirs["fused"]}.get(what, tmp_path / f"model.{what}")
    if what == "architecture":
        source = tmp_path / "architecture.json"
        blocks = [{"width": 64, "ffn_ratio": 2.0, "depth": 2, "shared": False}]
        source.write_text(json.dumps({"blocks": blocks, "vocab": 5000, "context": 64}))
    if what == "gguf":
        sample_gguf.write_gguf(source, sample_gguf.random_model("llama"), "Q4_0")
    said, request = list[str](), ExportRequest(precision="int8" if what in ("architecture", "gguf") else "fp32")
    loaded = load_source(str(source), say=said.append)
    export(loaded, tmp_path / "in_memory", request)
    assert said == []
    needs = [needed_mb(loaded.arch, "int8", in_files=in_files) for in_files in (True, False)]
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=np.mean(needs) * 2**20))
    monkeypatch.setattr("merino_edge.families.mapped.LEAST_BYTES", 1024)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    on_disk = load_source(str(source), say=said.append)
    shares = [parameter.nbytes for parameter in on_disk.model.parameters() if not is_mapped(parameter)]
    assert max(shares, default=0) < 1024 and ["wait on disk, in " + str(tmp_path / "cache/merino_edge") in line
                                              for line in said] == [True]  # fmt: skip
    export(on_disk, tmp_path / "on_disk", request, last_use=True)
    folders = [tmp_path / name for name in ("in_memory", "on_disk")]
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1]
    assert not list((tmp_path / "cache/merino_edge").iterdir()) and "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ


@pytest.mark.parametrize("free", [0, 10**12])
def test_a_large_model_waits_on_disk_where_there_is_room(free, tiny_arch, tmp_path, monkeypatch):
    """And its export takes the memory that there is where the disk is full."""
    monkeypatch.setattr("merino_edge.export.memory.LARGE_MB", 0)
    monkeypatch.setattr("merino_edge.families.mapped.LEAST_BYTES", 1024)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert any(map(is_mapped, random_source(tiny_arch, "tiny").model.parameters())) == bool(free)


def test_a_full_disk_is_one_line(tiny_arch, tmp_path, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    monkeypatch.setattr("merino_edge.families.mapped.LEAST_BYTES", 1024)
    match = "names another place.: No space left on device. Free space on that disk"
    with pytest.raises(MerinoError, match=match), mapped_weights(tmp_path):
        random_model(tiny_arch)
    assert not any(map(is_mapped, random_model(tiny_arch).parameters()))


def test_what_was_loaded_is_refused_by_what_its_format_takes_more(tiny_arch, tmp_path, monkeypatch):
    """Between the two checks another program took the memory."""
    source = random_source(tiny_arch, "tiny")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=0))
    with pytest.raises(MerinoError, match="^exporting tiny in int8 needs about 450 MB of memory, for copies of 0 MB"):
        export(source, tmp_path / "bundle", ExportRequest(precision="int8"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a peak includes the parent's")
@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_estimate_is_near_the_peak(tmp_path, precision):
    path = tmp_path / "architecture.json"
    plan = {"blocks": [{"width": 512, "ffn_ratio": 2.0, "depth": 6, "shared": False}], "vocab": 32000, "context": 256}
    path.write_text(json.dumps(plan))
    done = subprocess.run([sys.executable, "-c", MEASURED, path, tmp_path / "bundle", precision], check=True,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    estimate = needed_mb(Architecture.model_validate(plan), precision)
    assert 0.7 < estimate / float(done.stdout) < 1.3


VOCAB, LENGTH, GIVEN = 211, 24, 7


@st.composite
def decoders(draw):
    """Every block with KV heads of its own, from one for all queries to one for each, and with a gate or without."""
    widths = sorted(draw(st.lists(st.sampled_from([64, 128, 192, 256]), min_size=1, max_size=3)))
    blocks = [
        {
            "width": width, "ffn_ratio": 1.0, "depth": draw(st.integers(1, 2)), "shared": draw(st.booleans()),
            "kv_heads": draw(st.sampled_from([None, *(n for n in (1, 2, 3, 4, 6, 8) if width // 32 % n == 0)])),
            "gated": draw(st.booleans()),
        }
        for width in widths
    ]  # fmt: skip
    return Architecture(blocks=blocks, vocab=VOCAB, head_size=32, context=LENGTH)


def source_of(arch, model):
    return Source("grouped", arch, model, "trained", "drawn", (), None)


def with_repeated_keys(grouped, decoder):
    """The same decoder with a head of keys and values for each head of queries, by repeating them."""
    arch = grouped.config.architecture
    blocks = [block.model_copy(update={"kv_heads": None}) for block in arch.blocks]
    whole = decoder(arch.model_copy(update={"blocks": tuple(blocks)}))
    state = grouped.state_dict()
    for name, module in grouped.named_modules():
        if name.endswith(".attention"):
            width = module.widths[0]
            query, *shared = module.qkv.weight.split(module.widths)
            heads = [part.reshape(-1, 1, module.head_size, width) for part in shared]  # [KV heads, 1, D, E]
            repeated = [each.expand(-1, module.num_key_value_groups, -1, -1).reshape(-1, width) for each in heads]
            state[f"{name}.qkv.weight"] = torch.cat([query, *repeated])
    whole.load_state_dict(state)
    return whole


@given(decoders(), st.integers(0, 99))
@examples(6)
def test_torch_and_both_dialects_compute_what_repeated_keys_give(decoder, tmp_path_factory, arch, seed):
    model = decoder(arch, seed)
    ids = np.random.default_rng(seed).integers(0, VOCAB, LENGTH).tolist()
    with torch.no_grad():
        expected = with_repeated_keys(model, decoder)(input_ids=torch.tensor([ids])).logits[0].numpy()  # [T, V]
        results = {"torch": model(input_ids=torch.tensor([ids])).logits[0, GIVEN - 1 :].numpy()}
    for dialect in ("fused", "portable"):
        bundle = export(
            source_of(arch, model), tmp_path_factory.mktemp("grouped") / "bundle", ExportRequest(dialect=dialect)
        ).bundle
        assert [(layer.heads, layer.head_size) for layer in bundle.kv_layers] == arch.kv_layers
        backend = open_backend(bundle)
        rows = [backend.prefill(ids[:GIVEN]).copy(), *(backend.step(token).copy() for token in ids[GIVEN:])]
        results[dialect] = np.stack(rows)
        backend.close()
    for name, logits in results.items():
        assert np.abs(logits - expected[GIVEN - 1 :]).max() <= 2e-5 * np.abs(expected).max(), name


def test_a_design_with_grouped_heads_and_a_gated_ffn_is_trained_and_exported(tmp_path):
    path = tmp_path / "design.json"
    words = ["--board", "raspberry-pi-4", "--vocab", "300", "--context", "64", "--decode-ms", "0.7", "--kv", "fp32",
             "--budget", "params-m=0.4", "--precision", "fp32"]  # fmt: skip
    done = CliRunner().invoke(app, ["design", *words, "-o", str(path)])
    assert done.exit_code == 0, done.output
    plan = load_design(path)
    block = json.loads(path.read_text())["architecture"]["blocks"][0]
    assert block["kv_heads"] == 1 < block["width"] // 32 and "k1" in plan.architecture.shape()
    assert block["gated"] and "g" in plan.architecture.shape()
    assert plan.predicted.kv_bytes == 2 * 32 * block["depth"] * 64 * 4
    record = train(plan.architecture, [write_stories(tmp_path / "text.txt")], tmp_path / "checkpoint",
                   recipe=Recipe(steps=25, batch=4, learning_rate=3e-3))  # fmt: skip
    assert record["held_out_loss"] < 0.9 * np.log(300)
    done = export(load_source(str(tmp_path / "checkpoint")), tmp_path / "bundle")
    assert done.error <= 1e-5 and load_source(str(tmp_path / "bundle")).arch == plan.architecture


def test_a_geometry_whose_heads_of_keys_do_not_divide_those_of_queries_is_refused():
    with pytest.raises(ValueError, match=r"kv_heads \[4\] must divide the blocks' heads, \[2, 6\]"):
        Architecture(
            blocks=[{"width": 64, "ffn_ratio": 1.0, "depth": 1},
                    {"width": 192, "ffn_ratio": 1.0, "depth": 1, "kv_heads": 4}],
            vocab=VOCAB, head_size=32, context=LENGTH,
        )  # fmt: skip
