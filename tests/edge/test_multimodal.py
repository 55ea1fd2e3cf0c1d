"""Decoders of text within models of text and images: read without the other weights, and exported."""

import json

import pytest
import torch
import transformers

from merino_edge.export.export import export
from merino_edge.export.source import load_source
from merino_edge.families.hugging_face import read_checkpoint
from merino_runtime.backends import open_backend
from merino_runtime.errors import MerinoError

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
PROMPT, STEPS = [5, 9, 33, 71, 100, 17, 250, 12, 99], 16


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
            torch.tensor([PROMPT]), max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    continued = [int(backend.prefill(PROMPT).argmax())]
    while len(continued) < STEPS:
        continued.append(int(backend.step(continued[-1]).argmax()))
    backend.close()
    assert continued == expected[0, len(PROMPT) :].tolist()


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
