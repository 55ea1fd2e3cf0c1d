"""The contract of each model family in the registry, and what importing the registry loads. Published checkpoints that
no graph builder supports are refused with the key and its value, before any work."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from merino_edge.benchmarking.random_bundle import write_random_bundle
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import random_source
from merino_edge.families import operators
from merino_edge.families.checkpoint import split_keys
from merino_edge.families.designed import Architecture
from merino_edge.families.geometry import LayerShape
from merino_edge.families.hugging_face import build_model, random_model, read_checkpoint
from merino_edge.families.opt import OptArchitecture
from merino_edge.families.registry import FAMILIES, family_of, read_geometry
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError
from tests.sample_models import DAILY, QWEN35, ROPE_SCALED, SMALL, small

GEOMETRIES = {
    "merino": Architecture(
        blocks=({"width": 32, "ffn_ratio": 3, "depth": 1}, {"width": 64, "ffn_ratio": 1, "depth": 2, "shared": True}),
        vocab=96, head_size=32, context=16, rope_theta=500.0, rms_norm_eps=0.1,
    ),
    "opt": OptArchitecture(
        width=64, layers=2, heads=4, ffn_width=96, embed_width=32, vocab=96, context=16, pre_norm=False
    ),
    **{name: small(name) for name in SMALL},
    "qwen3_5_text": QWEN35,
    "llama": small("llama", tied=False, rope_scaling=ROPE_SCALED),
}  # fmt: skip


MOST = ("opt", "qwen3_5_text", *DAILY)


@pytest.fixture(params=FAMILIES)
def geometry(request):
    """A family without a geometry here fails: each one is judged."""
    return GEOMETRIES[request.param]


def test_a_geometry_survives_a_configuration_a_checkpoint_and_a_description(geometry, tmp_path):
    family = family_of(geometry)
    config = family.config_of(geometry)
    assert (config.model_type, family.geometry.of_config(config)) == (family.name, geometry)
    build_model(geometry, bos_token_id=None, eos_token_id=None).save_pretrained(tmp_path)
    assert read_checkpoint(tmp_path).geometry == geometry
    assert read_geometry(family.name, geometry.model_dump()) == geometry


def test_the_neutral_view_is_that_of_the_operators(geometry):
    """What peers and scores ask of any geometry agrees with what costs are counted from."""
    kinds = {kind: [op for op in geometry.operators if op.kind == kind] for kind in ("activation", "head")}
    mixers = [op for op in geometry.operators if op.kind in ("attention", "taps", "delta")]
    for layer, mixer in zip(geometry.layer_shapes, mixers, strict=True):
        assert mixer.heads == (layer.heads if mixer.kind == "attention" else 0)
    assert [layer.ffn_width for layer in geometry.layer_shapes] == [op.vectors for op in kinds["activation"]]
    assert [heads * size for heads, size in geometry.kv_layers] == [op.width for op in mixers if op.width]
    assert [op.matrix for op in kinds["head"]] == [geometry.vocab * geometry.embed_width]


def test_layers_are_listed_in_order_of_use():
    assert GEOMETRIES["merino"].layer_shapes == [LayerShape(32, 96, 1), LayerShape(64, 64, 2), LayerShape(64, 64, 2)]
    assert GEOMETRIES["opt"].layer_shapes == [LayerShape(64, 96, 4)] * 2


def test_random_models_are_the_same_each_time_and_store_what_is_counted(geometry):
    first, second = (random_model(geometry).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert random_model(geometry).num_parameters() == operators.params(geometry.operators)


@pytest.mark.parametrize(("geometry", "precision"), [
    pytest.param(name, form, marks=() if name in ("merino", "llama") or form == "int4" and name in MOST else
                 pytest.mark.nightly)
    for name in FAMILIES for form in ("fp32", "int4", "int8")
], indirect=["geometry"])  # fmt: skip
def test_any_family_gives_a_bundle_for_timing_alone(geometry, precision, tmp_path):
    """It runs, and has no golden ids to pass a self-test with."""
    write_random_bundle(geometry, precision, tmp_path / "bundle", "timed")
    bundle = load_bundle(str(tmp_path / "bundle"))
    assert (bundle.family, bundle.golden.greedy_ids) == (family_of(geometry).name, ())
    backend = open_backend(bundle)
    assert backend.prefill([1, 2, 3]).shape == (geometry.vocab,)
    backend.close()


def test_an_unknown_family_is_refused_with_those_known():
    with pytest.raises(MerinoError, match="family 'mamba' is not known: known are merino, opt, llama"):
        read_geometry("mamba", {})
    with pytest.raises(MerinoError, match="none of family opt: .*layers: missing"):
        read_geometry("opt", {"width": 64})


@pytest.mark.parametrize("module", ["families.registry", "families.zoo", "families.names", "families.designed"])
def test_what_names_families_loads_neither_torch_nor_transformers_nor_scipy(module):
    code = f"import sys, merino_edge.{module}; print(*{{'torch', 'transformers', 'scipy', 'onnx'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow
def test_the_documented_import_registers_what_transformers_does_not_have(tmp_path):
    """In a fresh interpreter: here everything is imported already."""
    ours = [name for name in FAMILIES if not FAMILIES[name].model_class().__module__.startswith("transformers.")]
    assert "merino" in ours
    for name in ours:
        build_model(GEOMETRIES[name]).save_pretrained(tmp_path / name)
    code = (
        "import sys, merino_edge.families.hugging_face; from transformers import AutoModelForCausalLM;"
        " print(*(AutoModelForCausalLM.from_pretrained(each).config.model_type for each in sys.argv[1:]))"
    )
    folders = [tmp_path / name for name in ours]
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ours


UNTIED = {"llama": {"tied": False}}
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
OLD_SCALING = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}  # fmt: skip
VARIANTS = [
    ("llama", {"attention_bias": True}, "attention_bias is True, supported is False"),
    ("llama", {"mlp_bias": True}, "mlp_bias is True, supported is False"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu', supported is 'silu'"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved is True, supported is False"),
    ("llama", {"quantization_config": {"bits": 4}}, "has a quantization_config: its weights were quantized for"),
    ("llama", {"rope_scaling": {"rope_type": "proportional", "factor": 4.0}}, "the type 'proportional', known are"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, supported is 1"),
    ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "short_factor"),
    ("stablelm", {"qk_layernorm": True}, "qk_layernorm is True, supported is False"),
    ("llama4_text", {"moe_layers": [1]}, "moe_layers is [1], supported is []"),
    ("bloom", {"apply_residual_connection_post_layernorm": True}, "supported is False"),
    ("phi", {"num_key_value_heads": 2}, "num_key_value_heads is 2, supported is num_attention_heads"),
    ("llama", {"num_key_value_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "use_sliding_window is True"),
    ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has 'sliding_attention'"),
    ("qwen3", {"attention_bias": True}, "attention_bias is True, supported is False"),
    ("granite", {"mlp_bias": True}, "mlp_bias is True, supported is False"),
    ("granitemoehybrid", {"num_local_experts": 4}, "num_local_experts is 4, supported is 0"),
    ("granitemoehybrid", {"layer_types": ["mamba", "attention"]}, "layer_types has 'mamba'"),
    ("granitemoehybrid", {"position_embedding_type": "nope"}, "position_embedding_type is 'nope', supported is 'rope'"),
    ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, supported is None"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, supported is None"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("gemma3_text", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
    ("gemma3_text", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types has 'chunked_attention'"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True, supported is False"),
    ("gpt2", {"activation_function": "swish"}, "activation_function is 'swish', supported is 'gelu_new' or 'gelu_py"),
    ("gpt2", {"tie_word_embeddings": False}, "tie_word_embeddings is False, supported is True"),
    ("gpt2", {"n_head": 3}, "width 64 does not split into 3 heads"),
    ("gpt_neo", {"activation_function": "relu"}, "activation_function is 'relu', supported is 'gelu_new'"),
    ("gpt_neo", {"attention_types": [[["global"], 1]]}, "attention_types"),
    ("gpt_neox", {"attention_bias": False}, "attention_bias is False, supported is True"),
    ("gpt_neox", {"hidden_act": "gelu_fast"}, "hidden_act is 'gelu_fast', supported is 'gelu'"),
    ("gpt_neox", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "the type 'linear', known is default"),
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A function: family -> the folder of a small checkpoint of it, which nobody writes to."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            build_model(small(family, context=32, **UNTIED.get(family, {})), **NO_IDS).save_pretrained(made[family])
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


@pytest.mark.parametrize(("family", "keys", "message"), VARIANTS, ids=lambda value: str(value)[:40])
def test_a_variant_is_refused_with_its_key_its_value_and_what_is_known(changed, family, keys, message):
    folder = changed(family, keys, without=("rope_parameters",) if "rope_scaling" in keys else ())
    with pytest.raises(MerinoError) as caught:
        read_checkpoint(folder)
    assert message in str(caught.value) and str(folder) in str(caught.value)


def test_a_config_in_the_words_of_older_transformers_is_read(changed):
    """Published ones have `rope_theta` and `rope_scaling` side by side, and keys of other programs."""
    keys = {"rope_theta": 500_000.0, "rope_scaling": OLD_SCALING, "is_llama_config": True, "torch_dtype": "bfloat16"}
    result = read_checkpoint(changed("llama", keys, without=("rope_parameters", "dtype"))).geometry
    assert result.rope_theta == 500_000.0 and result.rope_scaling.divisors[-1] == 32.0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hidden_size": 96, "head_dim": 16}, "do not"), ({"num_hidden_layers": 3}, "layers.2"),
        ({"num_hidden_layers": 1}, "layers.1"), ({"vocab_size": 97}, "do not"),
        ({"num_key_value_heads": 4}, "do not"), ({"intermediate_size": 56}, "do not"),
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_lies_about_its_weights_is_refused(changed, keys, message):
    with pytest.raises(MerinoError, match="the weights in .* do not") as caught:
        read_checkpoint(changed("llama", keys))
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "more"])
def test_tensors_that_are_missing_or_that_the_model_has_not_are_named(changed, kind):
    folder = changed("llama", {})
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if kind == "missing":
        del tensors[name]
    else:
        name = "model.layers.1.self_attn.q_norm.weight"
        tensors[name] = torch.ones(16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MerinoError, match=name):
        read_checkpoint(folder)


def test_a_head_that_the_config_calls_tied_and_that_is_not_is_refused(changed):
    """transformers would drop the table and multiply by the embedding."""
    folder = changed("llama", {"tie_word_embeddings": True})
    with pytest.raises(MerinoError, match="lm_head.weight"):
        read_checkpoint(folder)


def test_keys_that_nothing_reads_are_ignored_and_noted_in_one_line(changed):
    lines = []
    keys = {"use_mrope": False, "unsloth_version": "2025.1", "use_qk_norm": False, "_attn_implementation_autoset": True}
    assert read_checkpoint(changed("qwen2", keys), say=lines.append).geometry.layers == 2
    assert lines == [
        "config.json: use_mrope is False, unsloth_version is '2025.1', use_qk_norm is False ignored, because"
        " transformers' qwen2 class does not read it"
    ]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_knows_each_key_that_transformers_declares(family):
    """So that only a key of a newer transformers is refused by its name alone."""
    declared = FAMILIES[family].declared_keys()
    known = FAMILIES[family].keys | set(FAMILIES[family].supported)
    assert split_keys(dict.fromkeys(declared, 1), known, declared) == ([], [])
    assert split_keys({"from_tomorrow": 1}, known, declared | {"from_tomorrow"}) == (["from_tomorrow is 1"], [])


@pytest.mark.parametrize("family", sorted(SMALL))
def test_keys_that_change_nothing_are_read_over(changed, family):
    keys = {"torch_dtype": "float16", "_name_or_path": "x", "sliding_window_unknown": None}
    assert read_checkpoint(changed(family, keys, without=("dtype",))).geometry.layers == SMALL[family]["layers"]


def test_published_words_of_pythia_are_read(changed):
    """Its files name the head `embed_out`, and have `rotary_pct` and `rotary_emb_base`."""
    keys = {"rotary_pct": 0.25, "rotary_emb_base": 10_000, "rope_scaling": None}
    folder = changed("gpt_neox", keys, without=("rope_parameters",))
    tensors = load_file(folder / "model.safetensors")
    assert not any("embed_out" in name for name in tensors) or "lm_head.weight" not in tensors
    tensors = {name.replace("lm_head", "embed_out"): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    result = read_checkpoint(folder)
    assert (result.geometry.rotated, result.geometry.rope_theta) == (4, 10_000.0)
    assert torch.equal(result.model.state_dict()["lm_head.weight"], tensors["embed_out.weight"])


@pytest.mark.parametrize(("family", "heads", "size"), [("llama", 8, 8), ("gpt2", 16, 4), ("gpt_neox", 8, 8)])
def test_heads_that_fused_attention_refuses_are_sent_to_the_other_dialect(family, heads, size, tmp_path):
    keys = {"heads": heads, "context": 16} | ({"head_size": size} if family == "llama" else {})
    source = random_source(small(family, **keys), "narrow")
    with pytest.raises(MerinoError, match=f"heads of {size} channels .* --dialect portable"):
        export(source, tmp_path / "fused")
    assert not (tmp_path / "fused").exists()
    export(source, tmp_path / "portable", ExportRequest(dialect="portable"))


def test_a_window_asks_for_the_version_that_counts_it_as_torch_does(tmp_path):
    """Shorter contexts need no window, and portable graphs have a mask."""
    source = random_source(small("gemma3_text"), "windowed")
    for dialect, context, oldest in (("fused", 16, "1.24"), ("portable", 16, "1.10")):
        bundle = export(source, tmp_path / dialect, ExportRequest(dialect=dialect, context=context)).bundle
        assert bundle.backends[0].min_version == oldest
    wide = random_source(small("gemma3_text", window=16), "wide")
    assert export(wide, tmp_path / "wide").bundle.backends[0].min_version == "1.18"
