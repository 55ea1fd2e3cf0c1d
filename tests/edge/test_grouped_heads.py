"""KV heads that several query heads share, by block: from the search to each format of a bundle."""

import json
from math import prod

import numpy as np
import pytest
import torch
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from sample_models import write_stories
from typer.testing import CliRunner

from merino_edge.cli.app import app
from merino_edge.design.design_file import load_design
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import Source, load_source
from merino_edge.export.tensorrt.check import check_bundle
from merino_edge.families.designed import Architecture
from merino_edge.training.recipe import Recipe
from merino_edge.training.train import train
from merino_runtime.backends import open_backend
from merino_runtime.generation.selftest import selftest

VOCAB, CONTEXT, PROMPT = 211, 24, 7
KINDS = [
    ("fused", "fp32", "dotprod"), ("fused", "fp16", "dotprod"), ("fused", "int8", "dotprod"),
    ("fused", "int4", "dotprod"), ("fused", "int8", "no-dotprod"), ("fused", "int4", "no-dotprod"),
    ("portable", "fp32", "dotprod"), ("portable", "fp16", "dotprod"), ("portable", "int8", "dotprod"),
]  # fmt: skip


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
    return Architecture(blocks=blocks, vocab=VOCAB, head_size=32, context=CONTEXT)


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
    ids = np.random.default_rng(seed).integers(0, VOCAB, CONTEXT).tolist()
    with torch.no_grad():
        expected = with_repeated_keys(model, decoder)(input_ids=torch.tensor([ids])).logits[0].numpy()  # [T, V]
        results = {"torch": model(input_ids=torch.tensor([ids])).logits[0, PROMPT - 1 :].numpy()}
    for dialect in ("fused", "portable"):
        bundle = export(
            source_of(arch, model), tmp_path_factory.mktemp("grouped") / "bundle", ExportRequest(dialect=dialect)
        ).bundle
        assert [(layer.heads, layer.head_size) for layer in bundle.kv_layers] == arch.kv_layers
        backend = open_backend(bundle)
        rows = [backend.prefill(ids[:PROMPT]).copy(), *(backend.step(token).copy() for token in ids[PROMPT:])]
        results[dialect] = np.stack(rows)
        backend.close()
    for name, logits in results.items():
        assert np.abs(logits - expected[PROMPT - 1 :]).max() <= 2e-5 * np.abs(expected).max(), name


@pytest.fixture(scope="module")
def grouped(decoder):
    block = {"ffn_ratio": 1.5, "depth": 2, "shared": False}
    blocks = [
        {**block, "width": 64, "kv_heads": 1, "gated": True}, {**block, "width": 128, "kv_heads": 2, "shared": True}
    ]
    arch = Architecture(blocks=blocks, vocab=VOCAB, head_size=32, context=64)
    return source_of(arch, decoder(arch, 3))


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_every_format_is_exported_and_its_cache_has_the_bytes_that_are_counted(grouped, kind, tmp_path):
    """The export itself proves the graph against torch, with the weights that the codes stand for."""
    dialect, precision, core = kind
    done = export(grouped, tmp_path / "bundle", ExportRequest(dialect=dialect, precision=precision, core=core))
    sizes = {"float32": 4, "float16": 2}
    caches = [port for port in done.bundle.inputs if port.name.startswith("past_key_values.")]
    fixed = [[size if isinstance(size, int) else 64 for size in port.shape] for port in caches]
    held = sum(prod(shape) * sizes[port.dtype] for shape, port in zip(fixed, caches, strict=True))
    assert done.bundle.kv_bytes == held == 2 * 32 * (2 * 1 + 2 * 2) * 64 * (2 if precision == "fp16" else 4)
    if precision != "fp16":
        backend = open_backend(done.bundle)
        assert selftest(done.bundle, backend) is None
        backend.close()
    if dialect == "portable" and precision != "int8":  # whose matmuls TensorRT does not have
        assert not check_bundle(done.bundle, "8.2").problems


def test_a_design_with_grouped_heads_and_a_gated_ffn_is_trained_and_exported(tmp_path):
    path = tmp_path / "design.json"
    words = ["--device", "raspberry-pi-4", "--vocab", "300", "--context", "64", "--decode-ms", "0.7", "--kv", "fp32",
             "--params-m", "0.4", "--precision", "fp32"]  # fmt: skip
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
            vocab=VOCAB, head_size=32, context=CONTEXT,
        )  # fmt: skip
