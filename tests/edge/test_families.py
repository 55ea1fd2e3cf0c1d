"""The contract of each model family in the registry, and what importing the registry loads."""

import subprocess
import sys

import pytest
import torch

from merino_edge.benchmarking.random_bundle import write_random_bundle
from merino_edge.families import operators
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
    for name in FAMILIES:
        build_model(GEOMETRIES[name]).save_pretrained(tmp_path / name)
    code = (
        "import sys, merino_edge.families.hugging_face; from transformers import AutoModelForCausalLM;"
        " print(*(AutoModelForCausalLM.from_pretrained(each).config.model_type for each in sys.argv[1:]))"
    )
    folders = [tmp_path / name for name in FAMILIES]
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(FAMILIES)
