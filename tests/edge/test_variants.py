"""Published checkpoints that are not what a walk knows: each is refused with the key and its value, before any work."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from merino_edge.families.hugging_face import build_model, read_checkpoint
from merino_edge.families.llama.geometry import LlamaArchitecture
from merino_runtime.errors import MerinoError

SMALL = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 8, "ffn_width": 48, "vocab": 64}
GATED = {**SMALL, "context": 32, "tied": False, "norm_eps": 1e-5, "rope_theta": 10_000.0}
MODELS = {"llama": LlamaArchitecture(**GATED)}
OLD_SCALING = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}  # fmt: skip
VARIANTS = [
    ("llama", {"attention_bias": True}, "attention_bias is True, supported is False"),
    ("llama", {"mlp_bias": True}, "mlp_bias is True, supported is False"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu', supported is 'silu'"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved is True, supported is False"),
    ("llama", {"sliding_window": 16}, "keys that a llama model is not known to have: sliding_window is 16"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "the type 'yarn', known are default, llama3"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "the type 'linear', known are default, llama3"),
    ("llama", {"num_key_value_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A function: family -> the folder of a small checkpoint of it, which nobody writes to."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            build_model(MODELS[family]).save_pretrained(made[family])
        return made[family]

    return folder


@pytest.fixture
def changed(checkpoints, tmp_path):
    """A function: (family, keys of config.json to set, those to drop) -> the folder of a copy with them."""

    def copy(family, keys, without=()):
        for path in checkpoints(family).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        config = json.loads((tmp_path / "config.json").read_text())
        kept = {key: value for key, value in config.items() if key not in without}
        (tmp_path / "config.json").write_text(json.dumps({**kept, **keys}))
        return tmp_path

    return copy


@pytest.mark.parametrize(("family", "keys", "says"), VARIANTS, ids=lambda value: str(value)[:40])
def test_a_variant_is_refused_with_its_key_its_value_and_what_is_known(changed, family, keys, says):
    folder = changed(family, keys, without=("rope_parameters",) if "rope_scaling" in keys else ())
    with pytest.raises(MerinoError) as caught:
        read_checkpoint(folder)
    assert says in str(caught.value) and str(folder) in str(caught.value)


def test_a_config_in_the_words_of_older_transformers_is_read(changed):
    """Published ones have `rope_theta` and `rope_scaling` side by side, and keys of other programs."""
    keys = {"rope_theta": 500_000.0, "rope_scaling": OLD_SCALING, "is_llama_config": True, "torch_dtype": "bfloat16"}
    found = read_checkpoint(changed("llama", keys, without=("rope_parameters", "dtype"))).geometry
    assert found.rope_theta == 500_000.0 and found.rope_scaling.factor == 32.0
    assert found.rope_scaling.original_context == 8


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"hidden_size": 64, "head_dim": 8}, "do not"), ({"num_hidden_layers": 3}, "layers.2"),
        ({"num_hidden_layers": 1}, "layers.1"), ({"vocab_size": 65}, "do not"),
        ({"num_key_value_heads": 4}, "do not"), ({"intermediate_size": 56}, "do not"),
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_lies_about_its_weights_is_refused(changed, keys, says):
    with pytest.raises(MerinoError, match="the weights in .* do not") as caught:
        read_checkpoint(changed("llama", keys))
    assert says in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "more"])
def test_tensors_that_are_missing_or_that_the_model_has_not_are_named(changed, kind):
    folder = changed("llama", {})
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if kind == "missing":
        del tensors[name]
    else:
        name = "model.layers.1.self_attn.q_norm.weight"
        tensors[name] = torch.ones(8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MerinoError, match=name):
        read_checkpoint(folder)
