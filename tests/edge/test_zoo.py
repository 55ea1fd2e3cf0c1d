"""The zoo against what was published and against real transformers models; the switches of a geometry each."""

import pytest
import torch
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import DynamicCache

from merino_edge.export.export import export
from merino_edge.export.parity import GOLDEN_STEPS, greedy_ids
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import random_source
from merino_edge.families import operators
from merino_edge.families.registry import FAMILIES
from merino_edge.families.zoo import Model, load_models

MODELS = {each.id: each for each in load_models()}
KNOWN = {
    "opt-350m": 331_196_416, "gpt2": 124_439_808, "pythia-70m": 70_426_624, "smollm-135m": 134_515_008,
    "tinystories-1m": 3_745_984, "qwen2.5-0.5b": 494_032_768,
}  # fmt: skip


def real_config(family, geometry):
    """transformers' own config of a geometry, in the words of its family."""
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return FAMILIES[family].config_of(geometry, **ids)


def real_model(family, geometry, device):
    with torch.device(device):
        return FAMILIES[family].model_class()(real_config(family, geometry))


@pytest.mark.parametrize("each", MODELS.values(), ids=MODELS)
def test_a_models_parameters_are_those_published(each):
    counted = operators.params(each.geometry.operators)
    if each.params.exact:
        assert counted == each.params.value
    assert counted == pytest.approx(each.params.value, rel=0.01)
    assert counted == KNOWN.get(each.id, counted)


@pytest.mark.parametrize("each", MODELS.values(), ids=MODELS)
def test_a_models_parameters_are_those_of_a_real_one(each):
    real = real_model(each.family, each.geometry, "meta")
    assert operators.params(each.geometry.operators) == sum({id(p): p.numel() for p in real.parameters()}.values())


@st.composite
def geometries(draw):
    """Small ones of each family, with what that family may vary."""
    family = draw(st.sampled_from(sorted({each.family for each in MODELS.values()})))
    size, heads = draw(st.sampled_from([8, 16])), draw(st.sampled_from([2, 4]))
    base = next(each.geometry for each in MODELS.values() if each.family == family)
    layers, width = 2 * draw(st.integers(1, 2)), heads * size * draw(st.integers(1, 1 if family == "stablelm" else 2))
    possible = {
        "layers": layers, "width": width, "heads": heads, "kv_heads": draw(st.sampled_from([heads, heads // 2])),
        "head_size": size, "ffn_width": draw(st.sampled_from([24, 64])), "vocab": draw(st.integers(50, 200)),
        "context": 16, "embed_width": draw(st.sampled_from([width, 8])), "pre_norm": draw(st.booleans()),
        "windowed": [getattr(base, "window", None) is not None and draw(st.booleans()) for _ in range(layers)],
        "rotated": size // 2,
        "rope_scaling": None, "rotated_layers": [True] * layers, "attends": [True] * layers,
        "tied": draw(st.booleans()), "parallel": draw(st.booleans()),
        "activation": draw(st.sampled_from(["gelu", "relu"])),
    }  # fmt: skip
    update = {key: value for key, value in possible.items() if key in type(base).model_fields}
    return family, base.model_validate({**base.model_dump(), **update})


@given(geometries())
@examples(25)
def test_parameters_and_cache_are_those_of_a_real_model_whatever_its_shape(sample):
    family, geometry = sample
    real, tokens = real_model(family, geometry, "cpu").eval(), 12
    assert operators.params(geometry.operators) == sum({id(p): p.numel() for p in real.parameters()}.values())
    cache = DynamicCache()
    with torch.no_grad():
        real(input_ids=torch.arange(tokens)[None] % geometry.vocab, cache=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert operators.kv_bytes(geometry.operators, tokens) == held


def test_each_id_names_one_model():
    assert len(MODELS) == len(load_models())


@pytest.mark.parametrize("change", [
    {"ID": 1}, {"id": "GPT 2"}, {"family": "nobody's"}, {"geometry": {}},
    {"params": {"value": 0, "exact": True, "source": ""}},
    {"scores": {"source": "", "percent": {"helaswag": 30.0}}},
], ids=lambda change: next(iter(change)))  # fmt: skip
def test_a_fault_of_an_entry_is_an_error(change):
    entry = {**MODELS["gpt2"].model_dump(), "geometry": MODELS["gpt2"].geometry.model_dump()}
    assert Model.model_validate(entry) == MODELS["gpt2"]
    with pytest.raises((ValidationError, KeyError)):
        Model.model_validate({**entry, **change})


def few_layers(geometry):
    """The geometry with its last layers alone, of which each kind is there, and with a small vocabulary and context."""
    fields = geometry.model_dump()
    layered = {
        name: value for name, value in fields.items() if isinstance(value, tuple) and len(value) == geometry.layers
    }
    count = next(
        count for count in range(1, geometry.layers + 1)
        if all(set(value[-count:]) == set(value) for value in layered.values())
    )  # fmt: skip
    cut = {name: value[-count:] for name, value in layered.items()}
    return type(geometry)(**{**fields, **cut, "layers": count, "vocab": 311, "context": 64})


@pytest.mark.nightly
@pytest.mark.parametrize("each", MODELS.values(), ids=MODELS)
def test_layers_of_each_geometry_export_with_random_weights_and_continue_as_torch_does(each, tmp_path):
    arch = few_layers(each.geometry)
    dialect = "portable" if any(size % 16 for _, size in arch.kv_layers) else "fused"
    done = export(random_source(arch, each.id), tmp_path / "bundle", ExportRequest(dialect=dialect))
    golden = done.bundle.golden
    assert done.error < 1e-4 and len(golden.greedy_ids) == GOLDEN_STEPS
    assert greedy_ids(done.bundle, golden.prompt_ids, GOLDEN_STEPS) == golden.greedy_ids
