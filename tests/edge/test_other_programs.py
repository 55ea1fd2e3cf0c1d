"""Programs that are not ours run a `fused` bundle as it lies there, and choose the same ids.

onnxruntime-genai is one of `make .venv/peers`; optimum and transformers.js are installed by `make .venv-others`.
"""

import json
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import chat_bundle
import chat_templates
import numpy as np
import pytest
from sample_models import DAILY
from test_families import GEOMETRIES
from transformers import AutoConfig, AutoTokenizer

from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source
from merino_edge.families.designed import Architecture
from merino_edge.families.hugging_face import save_model
from merino_edge.families.llama import LlamaArchitecture
from merino_edge.families.operators import caches_inputs, has_states
from merino_edge.families.opt import OptArchitecture
from merino_edge.families.registry import FAMILIES, family_of
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.bundle.fit import library_path
from merino_runtime.generation.text import open_tokenizer

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ROOT / ".venv-others"
OPTIMUM, NODE = OTHERS / "optimum" / "bin" / "python", OTHERS / "node"
STEPS = 24
MODELS = {
    "design": Architecture(
        blocks=({"width": 32, "ffn_ratio": 1, "depth": 1}, {"width": 96, "ffn_ratio": 1, "depth": 2, "shared": True}),
        vocab=320, head_size=32, context=96,
    ),
    "opt": OptArchitecture(
        width=64, layers=2, heads=2, ffn_width=96, embed_width=32, vocab=320, context=96, pre_norm=False
    ),
    "llama": LlamaArchitecture(
        width=64, layers=2, heads=4, kv_heads=2, head_size=16, ffn_width=96, vocab=320, context=96, tied=False,
        norm_eps=1e-5, rope_theta=10_000.0, rope_scaling=None,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(decoder, tmp_path_factory):
    """A folder of each model, with a tokenizer that puts a token before each text, and a chat template."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for seed, (name, arch) in enumerate(MODELS.items()):
        folder = root / name
        folder.mkdir()
        chat_bundle.make_checkpoint(folder, decoder)
        for path in folder.glob("*.safetensors"):
            path.unlink()
        save_model(decoder(arch, seed), folder)
        (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
        path = folder / "tokenizer.json"
        described = json.loads(path.read_text())
        first = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        described["post_processor"] = {
            "type": "TemplateProcessing", "single": first, "pair": first,
            "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
        }  # fmt: skip
        path.write_text(json.dumps(described))
        made[name] = folder
    return made


@pytest.fixture(scope="module")
def bundles(checkpoints, tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")
    return {
        (name, precision): load_bundle(str(export(
            load_source(str(folder))._replace(weights="random"), root / f"{name}-{precision}",
            ExportRequest(precision=precision, kv="fp32"),
        ).folder))
        for name, folder in checkpoints.items() for precision in ("fp32", "int4")
    }  # fmt: skip


def greedy(bundle, steps=STEPS):
    """(prompt, the ids that our runtime chooses after it). No choice is near another, and they are not all the same."""
    prompt = np.random.default_rng(3).integers(3, bundle.vocab, 9).tolist()
    backend = open_backend(bundle, 1)
    logits, result = backend.prefill(prompt), []
    for _ in range(steps):
        second, first = np.sort(logits.ravel())[-2:]
        assert first - second > 1e-3 * np.abs(logits).max()
        result.append(int(logits.argmax()))
        logits = backend.step(result[-1])
    backend.close()
    assert len(set(result)) > 3 and not set(result) & set(bundle.stop_ids)
    return prompt, result


@pytest.fixture(scope="module")
def genai():
    """The package. Skips where it has no wheel for this machine."""
    without = Path(sys.prefix) / "peers"
    if find_spec("onnxruntime_genai") is None:
        assert "onnxruntime-genai" in (without.read_text().split() if without.exists() else ()), "make .venv/peers"
        pytest.skip("no wheel of onnxruntime-genai for this machine")
    import onnxruntime_genai

    return onnxruntime_genai


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("name", MODELS)
def test_genai_chooses_our_ids_whatever_length_its_cache_has(genai, bundles, name, precision):
    bundle = bundles[name, precision]
    prompt, expected = greedy(bundle)
    if bundle.kernels:
        shutil.copy(library_path(platform.machine()), Path(bundle.folder) / "kernels.so")
    model = genai.Model(bundle.folder)
    for options in ({"max_length": len(prompt) + STEPS}, {"past_present_share_buffer": False}, {}):
        settings = genai.GeneratorParams(model)
        settings.set_search_options(do_sample=False, **options)
        generator = genai.Generator(model, settings)
        generator.append_tokens(prompt)
        while len(generator.get_sequence(0)) < len(prompt) + STEPS:
            generator.generate_next_token()
        assert [int(each) for each in generator.get_sequence(0)] == prompt + expected, options


@pytest.mark.parametrize("text", ["The river runs.", " two  spaces\n\nand é, 中 ", "<|im_end|>the mill"])
def test_genai_and_transformers_read_the_tokenizer(genai, bundles, text):
    bundle = bundles["llama", "fp32"]
    expected = open_tokenizer(bundle).encode(text)
    assert expected[0] == 1
    tokenizer = genai.Tokenizer(genai.Model(bundle.folder))
    tokenizer.update_options(add_special_tokens="true")
    assert [int(each) for each in tokenizer.encode(text)] == expected
    assert AutoTokenizer.from_pretrained(bundle.folder)(text).input_ids == expected


def test_genai_and_transformers_read_the_chat_template(genai, bundles):
    bundle = bundles["llama", "fp32"]
    messages = [{"role": "user", "content": "Where is the mill?"}]
    expected = "<|im_start|>system\nYou are a small model.<|im_end|>\n<|im_start|>user\nWhere is the mill?<|im_end|>\n"
    expected += "<|im_start|>assistant\n"
    tokenizer = genai.Tokenizer(genai.Model(bundle.folder))
    assert tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True) == expected
    own = AutoTokenizer.from_pretrained(bundle.folder)
    assert own.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected
    kept = json.loads((Path(bundle.folder) / "tokenizer_config.json").read_text())
    assert kept["chat_template"] == chat_templates.CHATML  # transformers.js looks nowhere else


def files_of(bundle):
    return {file.path for file in bundle.files}


def test_the_files_are_the_bundles_own_and_portable_has_none(bundles, checkpoints, tmp_path):
    own = {"model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja"}
    assert files_of(bundles["opt", "fp32"]) - own == {"genai_config.json", "config.json", "tokenizer_config.json"}
    assert files_of(bundles["opt", "int4"]) - own == {"genai_config.json", "tokenizer_config.json"}
    assert files_of(bundles["design", "fp32"]) - own == {"genai_config.json", "tokenizer_config.json"}
    portable = export(
        load_source(str(checkpoints["llama"])), tmp_path / "portable", ExportRequest(dialect="portable")
    ).bundle
    assert files_of(portable) <= own


def test_a_bundle_without_tokenizer_and_of_a_shorter_context(decoder, tmp_path):
    save_model(decoder(MODELS["llama"], 1), tmp_path / "model")
    bundle = export(load_source(str(tmp_path / "model")), tmp_path / "bundle", ExportRequest(context=40)).bundle
    assert files_of(bundle) == {"model.onnx", "model.onnx.data", "genai_config.json", "config.json"}
    genai = json.loads((tmp_path / "bundle" / "genai_config.json").read_text())
    assert genai["model"]["context_length"] == genai["search"]["max_length"] == 40
    assert genai["model"]["eos_token_id"] == [] and "position_ids" not in genai["model"]["decoder"]["inputs"]
    assert json.loads((tmp_path / "bundle" / "config.json").read_text())["max_position_embeddings"] == 40


@pytest.mark.parametrize("name", [
    name if name in ("merino", "opt", *DAILY) else pytest.param(name, marks=pytest.mark.nightly) for name in FAMILIES
])  # fmt: skip
def test_config_json_is_the_geometry_where_transformers_has_the_family(name, decoder, tmp_path):
    geometry = GEOMETRIES[name]
    save_model(decoder(geometry, 2), tmp_path / "model")
    export(load_source(str(tmp_path / "model")), tmp_path / "bundle")
    family = family_of(geometry)
    if family.module != "transformers" or caches_inputs(geometry.operators) or has_states(geometry.operators):
        assert not (tmp_path / "bundle" / "config.json").exists()
        return
    config = AutoConfig.from_pretrained(tmp_path / "bundle")
    assert family.geometry.of_config(config) == geometry and config.architectures == [family.model_class().__name__]


OPTIMUM_RUN = """
import json, sys
import torch
from optimum.onnxruntime import ORTModelForCausalLM

prompt, steps, folders = json.loads(sys.argv[1])
for folder in folders:
    for bound in (False, True):
        model = ORTModelForCausalLM.from_pretrained(folder, use_io_binding=bound)
        ids = torch.tensor([prompt])
        generated = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False)
        print(json.dumps([folder, bound, generated[0].tolist()]))
"""
NODE_RUN = """
import { AutoModelForCausalLM, AutoTokenizer, Tensor, env } from '@huggingface/transformers';
env.allowRemoteModels = false;
env.localModelPath = '';
const [prompt, steps, text, folders] = JSON.parse(process.argv[2]);
const row = (values) => new Tensor('int64', BigInt64Array.from(values.map(BigInt)), [1, values.length]);
for (const folder of folders) {
  const model = await AutoModelForCausalLM.from_pretrained(
    folder, {subfolder: '', model_file_name: 'model', dtype: 'fp32'});
  const inputs = {input_ids: row(prompt), attention_mask: row(prompt.map(() => 1))};
  const generated = await model.generate({...inputs, max_new_tokens: steps, do_sample: false});
  const tokenizer = await AutoTokenizer.from_pretrained(folder);
  const messages = [{role: 'user', content: text}];
  console.log(JSON.stringify([folder, Array.from(generated.data).map(Number), tokenizer.encode(text),
    tokenizer.apply_chat_template(messages, {tokenize: false, add_generation_prompt: true})]));
}
"""

WEB_RUN = """
import * as ort from 'onnxruntime-web';
import fs from 'fs';
ort.env.wasm.numThreads = 1;
const [prompt, steps, folders] = JSON.parse(process.argv[2]);
const ids = (values) => new ort.Tensor('int64', BigInt64Array.from(values.map(BigInt)), [1, values.length]);
for (const folder of folders) {
  const read = (name) => new Uint8Array(fs.readFileSync(`${folder}/${name}`));
  const [graph, data] = ['model.onnx', 'model.onnx.data'].map(read);
  const session = await ort.InferenceSession.create(
    graph, {executionProviders: ['wasm'], externalData: [{path: 'model.onnx.data', data}]});
  let cache = {};
  for (const [layer, {heads, head_size}] of JSON.parse(fs.readFileSync(`${folder}/bundle.json`)).kv_layers.entries())
    for (const part of ['key', 'value'])
      cache[`${layer}.${part}`] = new ort.Tensor('float32', new Float32Array(0), [1, heads, 0, head_size]);
  const generated = [...prompt];
  for (let given = prompt; generated.length < prompt.length + steps; given = generated.slice(-1)) {
    const feeds = {input_ids: ids(given), attention_mask: ids(generated.map(() => 1))};
    for (const name in cache) feeds[`past_key_values.${name}`] = cache[name];
    const outputs = await session.run(feeds);
    const logits = outputs.logits.data;
    generated.push(logits.indexOf(logits.reduce((a, b) => Math.max(a, b))));
    for (const name in cache) cache[name] = outputs[`present.${name}`];
  }
  console.log(JSON.stringify([folder, generated]));
}
"""


def lines_of(*words, **options):
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


@pytest.mark.nightly
def test_optimum_chooses_our_ids(bundles):
    if not OPTIMUM.exists():
        pytest.skip("no optimum here: make .venv-others")
    known = {bundles[name, "fp32"].folder: greedy(bundles[name, "fp32"]) for name in ("opt", "llama")}
    for prompt in {tuple(prompt) for prompt, _ in known.values()}:
        result = lines_of(OPTIMUM, "-c", OPTIMUM_RUN, json.dumps([prompt, STEPS, list(known)]))
        assert len(result) == 2 * len(known)
        for folder, bound, ids in result:
            assert ids == [*prompt, *known[folder][1]], (folder, bound)


def in_node(script, folder, job):
    """What a script of JavaScript prints. Skips where there is no transformers.js."""
    if not (NODE / "node_modules").exists():
        pytest.skip("no transformers.js here: make .venv-others")
    (folder / "run.mjs").write_text(script)
    (folder / "node_modules").symlink_to(NODE / "node_modules")
    return lines_of("node", str(folder / "run.mjs"), json.dumps(job), cwd=folder)


@pytest.mark.slow
def test_onnxruntime_web_runs_designs_of_several_widths_as_a_browser_does(bundles, tmp_path):
    """In float32: wasm has no operators of this project."""
    bundle = bundles["design", "fp32"]
    prompt, expected = greedy(bundle)
    assert in_node(WEB_RUN, tmp_path, [prompt, STEPS, [bundle.folder]]) == [[bundle.folder, prompt + expected]]


@pytest.mark.slow
def test_transformers_js_chooses_our_ids_and_reads_tokenizer_and_template(bundles, tmp_path):
    known = {bundles[name, "fp32"].folder: greedy(bundles[name, "fp32"]) for name in ("opt", "llama")}
    prompt, text = next(iter(known.values()))[0], "The river runs past the old mill."
    result = in_node(NODE_RUN, tmp_path, [prompt, STEPS, text, list(known)])
    assert len(result) == len(known)
    for folder, ids, encoded, requested in result:
        assert ids == prompt + known[folder][1], folder
        assert encoded == open_tokenizer(load_bundle(folder)).encode(text)
        assert requested.endswith(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
