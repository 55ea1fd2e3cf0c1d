"""config.json of 60 popular small models: each is judged as expected, and those that export do so in tiny.

`published_configs.jsonl` has the facts of each config.json, without long lists that do not matter, and the verdict.
`checked` names the public code or page that has the same sizes, rotary base and eps. Entries without it were written
from memory.

Decoders of text within models of text and images are read without the other weights, and exported.
"""

import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from merino_edge.export.export import export
from merino_edge.export.source import load_source
from merino_edge.families.hugging_face import folder_geometry, read_checkpoint
from merino_runtime.backends import open_backend
from merino_runtime.errors import MerinoError

FILE = Path(__file__).resolve().parents[1] / "published_configs.jsonl"
PUBLISHED = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
EXPORTED = [entry for entry in PUBLISHED if entry["verdict"] == "exported"]
PROMPT, STEPS, CONTEXT = 24, 16, 64
SIZES = {  # of the tiny model; a key that the published config.json does not have stays absent
    "vocab_size": 311, "max_position_embeddings": CONTEXT, "n_positions": CONTEXT, "intermediate_size": 160,
    "ffn_dim": 160, "shared_intermediate_size": 160, "intermediate_size_mlp": 160, "sliding_window": 12,
    "window_size": 12, "original_max_position_embeddings": CONTEXT, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 32, "laurel_rank": 32,
    "block_ff_dim": 160,
}  # fmt: skip
WIDTHS = ("hidden_size", "n_embd", "n_embed", "word_embed_proj_dim")
HEADS = ("num_attention_heads", "num_heads", "n_head")


def inner(config):
    """The keys of the decoder of text."""
    return config.get("text_config", config)


def tiny(config):
    """The same config.json with a head of 32 channels, four heads, and six layers if the layers differ."""
    kinds = ("layer_types", "no_rope_layers", "sliding_window_pattern", "full_attn_idxs")
    layers = 6 if any(key in config for key in kinds) or config["model_type"] == "gemma3_text" else 2
    small = {key: SIZES.get(key, value) if value is not None else None for key, value in config.items()}
    kv_heads = config.get("num_key_value_heads")
    for key, value in config.items():
        if key in WIDTHS:
            small[key] = 128
        elif key in HEADS:
            small[key] = 4
        elif key in ("num_hidden_layers", "n_layer", "num_layers"):
            small[key] = layers
        elif key in ("layer_types", "no_rope_layers", "attention_layers", "activation_sparsity_pattern"):
            small[key] = value[-layers:]
        elif key == "num_kv_shared_layers":
            small[key] = 1
        elif key == "intermediate_size" and isinstance(value, list):
            small[key] = [160] * layers
        elif key == "attention_types":
            small[key] = [[value[0][0], 1]]
        elif key in ("rope_scaling", "rope_parameters") and isinstance(value, dict):
            small[key] = {name: part[:12] if isinstance(part, list) else part for name, part in value.items()}
    heads = next((config[key] for key in HEADS if key in config), None)
    if kv_heads:
        small["num_key_value_heads"] = 4 if kv_heads == heads else 2
    if config.get("head_dim"):
        small["head_dim"] = 32
    return small


def ids(entries):
    return [entry["model"].rpartition("/")[2] for entry in entries]


def test_there_are_as_many_as_the_project_promises():
    assert len(PUBLISHED) == 60 and len(EXPORTED) >= 50
    assert len({entry["model"] for entry in PUBLISHED}) == 60


@pytest.mark.parametrize("entry", PUBLISHED, ids=ids(PUBLISHED))
def test_a_published_config_is_judged_as_expected_and_a_refusal_has_a_next_step(entry, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(entry["config"]))
    if entry["verdict"] == "exported":
        geometry = folder_geometry(tmp_path, tmp_path)
        assert geometry.vocab == inner(entry["config"]).get("vocab_size", 262208)  # Gemma 3's, by its class
        return
    with pytest.raises(MerinoError) as caught:
        folder_geometry(tmp_path, tmp_path)
    assert entry["verdict"] in str(caught.value) and "merino-edge export" in str(caught.value)


@pytest.mark.nightly
@pytest.mark.parametrize("entry", EXPORTED, ids=ids(EXPORTED))
def test_a_published_config_exports_in_tiny_and_continues_as_transformers_does(entry, tmp_path, randomize):
    words = tiny(inner(entry["config"]))
    config = AutoConfig.for_model(words.pop("model_type"), **words)
    model = randomize(AutoModelForCausalLM.from_config(config, dtype=torch.float32), 3)
    model.save_pretrained(tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **words, "architectures": None}))
    bundle = export(load_source(str(tmp_path / "checkpoint")), tmp_path / "bundle").bundle
    prompt = [(37 + 7 * index) % 300 + 3 for index in range(PROMPT)]
    with torch.no_grad():
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    backend = open_backend(bundle)
    continued = [int(backend.prefill(prompt).argmax())]
    while len(continued) < STEPS:
        continued.append(int(backend.step(continued[-1]).argmax()))
    backend.close()
    assert continued == expected[0, PROMPT:].tolist()


TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
BLOCKS = {"depth": 1, "num_heads": 2}
BY_SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
GEMMA = {**TEXT, "num_hidden_layers": 4, "head_dim": 32, "sliding_window": 8}
YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0, "original_max_position_embeddings": 64, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
MODELS = {  # the beginning of the names of transformers' classes, and the arguments of the configuration
    "gemma3": ("Gemma3", {
        "text_config": {**GEMMA, "query_pre_attn_scalar": 32}, "vision_config": VISION, "mm_tokens_per_image": 4,
    }),
    "idefics3": ("Idefics3", {
        "text_config": {**TEXT, "model_type": "llama"}, "vision_config": VISION, "pad_token_id": 0,
    }),
    "smolvlm": ("SmolVLM", {
        "text_config": {**TEXT, "model_type": "llama"}, "vision_config": VISION, "pad_token_id": 0,
    }),
    "qwen2_vl": ("Qwen2VL", {
        "text_config": {**TEXT, "rope_parameters": BY_SECTIONS}, "tie_word_embeddings": True,
        "vision_config": {**BLOCKS, "embed_dim": 32, "hidden_size": 64},
    }),
    "qwen2_5_vl": ("Qwen2_5_VL", {
        "text_config": {**TEXT, "rope_parameters": BY_SECTIONS}, "tie_word_embeddings": False,
        "vision_config": {**BLOCKS, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 32},
    }),
    "mistral3": ("Mistral3", {
        "text_config": {**TEXT, "model_type": "ministral3", "head_dim": 16, "rope_parameters": YARN},
        "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 16},
    }),
}  # fmt: skip
IDS, MORE = [5, 9, 33, 71, 100, 17, 250, 12, 99], 16


def save_random(name, folder):
    classes, words = MODELS[name]
    torch.manual_seed(1)
    config = getattr(transformers, f"{classes}Config")(**words)
    model = getattr(transformers, f"{classes}ForConditionalGeneration")(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_its_text_continues_as_the_whole_model_does(name, tmp_path):
    model, lines = save_random(name, tmp_path / "whole"), []
    source = load_source(str(tmp_path / "whole"), say=lines.append)
    (skipped,) = [line for line in lines if "skipped" in line]
    assert skipped.endswith("weights for images and sound are skipped: the bundle reads and writes text")
    backend = open_backend(export(source, tmp_path / "bundle").bundle)
    with torch.no_grad():
        expected = model.generate(
            torch.tensor([IDS]), max_new_tokens=MORE, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    continued = [int(backend.prefill(IDS).argmax())]
    while len(continued) < MORE:
        continued.append(int(backend.step(continued[-1]).argmax()))
    backend.close()
    assert continued == expected[0, len(IDS) :].tolist()


def test_a_config_without_text_config_is_read_as_its_class_reads_it(tmp_path):
    """Qwen2-VL's first checkpoints have the keys of the text beside those of the images."""
    save_random("qwen2_vl", tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    nested = read_checkpoint(tmp_path).geometry
    text = content.pop("text_config")
    rope = text.pop("rope_parameters")
    scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    flat = {**text, **content, "rope_theta": rope["rope_theta"], "rope_scaling": scaling}
    path.write_text(json.dumps({**flat, "model_type": "qwen2_vl", "vocab_size": 300}))
    assert read_checkpoint(tmp_path).geometry == nested


def test_weights_of_text_that_are_missing_are_an_error(tmp_path):
    save_random("smolvlm", tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["text_config"]["num_hidden_layers"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(MerinoError, match=r"do not fit its config.json: model.layers.2"):
        read_checkpoint(tmp_path)
