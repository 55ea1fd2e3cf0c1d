"""Counts against what torch really does: parameters, bytes of caches and activations, multiply-adds."""

from math import prod

import pytest
import torch
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from merino_edge.families import designed_torch, operators
from merino_edge.families.designed import Architecture, Block
from merino_edge.families.opt import OptArchitecture

TOKENS = 12
OPTS = {
    f"{norm}-{width}": OptArchitecture(
        width=64, layers=2, heads=4, ffn_width=96, embed_width=width, vocab=101, context=32,
        pre_norm=norm == "pre",
    )
    for norm in ("pre", "post")
    for width in (64, 32)
}


@st.composite
def architectures(draw):
    head_size = draw(st.sampled_from([8, 32, 64]))
    widths = sorted(draw(st.lists(st.sampled_from([64, 128, 192]), min_size=1, max_size=3)))
    blocks = tuple(
        Block(
            width=width,
            ffn_ratio=draw(st.sampled_from([0.5, 1.0, 1.5, 4.0])),
            depth=draw(st.integers(1, 3)),
            shared=draw(st.booleans()),
            kv_heads=draw(st.sampled_from([None, *divisors(width // head_size)])),
        )
        for width in widths
    )
    return Architecture(blocks=blocks, vocab=draw(st.integers(2, 300)), head_size=head_size, context=TOKENS)


def divisors(count):
    return [divisor for divisor in range(1, count + 1) if count % divisor == 0]


def nbytes(*tensors):
    return sum(prod(tensor.shape) * 4 for tensor in tensors)


def stored(model):
    """Parameters, each memory once."""
    return {weight.data_ptr(): weight for weight in model.parameters()}.values()


def ids(arch, tokens=TOKENS):
    return torch.arange(tokens)[None] % arch.vocab


def filled_cache(model, arch, tokens):
    return model(input_ids=ids(arch, tokens), use_cache=True).cache


def check_storage(model, arch):
    weights = stored(model)
    assert operators.params(arch.operators) == sum(weight.numel() for weight in weights)
    assert operators.weight_bytes(arch.operators, "fp32") == sum(weight.nbytes for weight in weights)


@torch.no_grad()
def check_kv(model, arch):
    cache = filled_cache(model, arch, TOKENS)
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    assert operators.kv_bytes(arch.operators, TOKENS) == sum(nbytes(*layer) for layer in layers)
    shapes = [tuple(keys.shape) for keys, _ in layers]
    assert shapes == [(1, heads, TOKENS, size) for heads, size in arch.kv_layers]


@torch.no_grad()
def check_flops(model, arch):
    """`eager` attention: torch counts its two matmuls like any other."""
    model.set_attn_implementation("eager")
    head = 2 * model.lm_head.weight.numel()
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids(arch), use_cache=False)
    assert operators.flops(arch.operators, TOKENS) == counter.get_total_flops() - TOKENS * head
    for cached in (0, TOKENS - 1):
        cache = filled_cache(model, arch, cached) if cached else DynamicCache(config=model.config)
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids(arch, 1), use_cache=True, cache=cache)
        assert operators.decode_flops(arch.operators, cached) == counter.get_total_flops()


@torch.no_grad()
def check_reads(model, arch):
    """Every use of a weight counts, of the embedding its one row."""
    read = []

    def count(module, _, output):
        if isinstance(module, nn.Embedding):
            read.append(nbytes(output))
        else:
            read.append(nbytes(*module.parameters(recurse=False)))

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(count) for module in leaves]
    model(input_ids=ids(arch, 1), use_cache=False)
    for handle in handles:
        handle.remove()
    assert operators.decode_weight_bytes(arch.operators, "fp32") == sum(read)


def check_counts(model, arch):
    check_storage(model, arch)
    check_reads(model, arch)
    check_kv(model, arch)
    check_flops(model, arch)


@given(architectures())
@examples(12)
def test_merino_stores_reads_caches_and_computes_what_is_counted(decoder, arch):
    check_counts(decoder(arch), arch)


@pytest.mark.parametrize("arch", OPTS.values(), ids=OPTS)
def test_opt_stores_reads_caches_and_computes_what_is_counted(decoder, arch):
    check_counts(decoder(arch), arch)


class Alive:
    """The most bytes of float tensors around one operator: its inputs, its outputs, the residual beside."""

    def __init__(self):
        self.residual = None  # the tensor a layer began with
        self.worst = 0

    def at(self, *tensors):
        beside = [] if self.residual is None else [self.residual]
        tensors = {tensor.data_ptr(): tensor for tensor in (*beside, *tensors)}.values()
        self.worst = max(self.worst, nbytes(*tensors))

    def watch_layer(self, layer):
        layer.register_forward_pre_hook(lambda _, given: setattr(self, "residual", given[0]))
        layer.register_forward_hook(lambda *_: setattr(self, "residual", None))

    def watch(self, module):
        """Embeddings take ids, which are no floats."""
        module.register_forward_hook(
            lambda at, given, output: self.at(*([] if isinstance(at, nn.Embedding) else given), output)
        )


@given(architectures())
@examples(12)
def test_merino_holds_the_activations_that_are_counted(decoder, arch):
    """The largest tensors of a prefill of a real model, its attention scores among them."""
    model, alive = decoder(arch), Alive()
    eager = designed_torch.eager_attention
    packed = {}

    def seen(module, query, *rest, **keys):
        mixed, weights = eager(module, query, *rest, **keys)
        alive.at(packed["qkv"], mixed, weights)
        return mixed, weights

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.RMSNorm | nn.Embedding) and module is not model.lm_head:
            alive.watch(module)
        if isinstance(module, designed_torch.Attention):
            module.qkv.register_forward_hook(lambda *call: packed.update(qkv=call[2]))
        if isinstance(module, designed_torch.Layer):
            alive.watch_layer(module)
            module.up.register_forward_hook(lambda *call: packed.update(up=call[2]))
            module.down.register_forward_pre_hook(lambda _, given: alive.at(packed["up"], given[0]))
    model.set_attn_implementation("eager")
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(designed_torch, "eager_attention", seen)
        model(input_ids=ids(arch), use_cache=False)
    assert operators.activation_bytes(arch.operators, TOKENS) == alive.worst


@pytest.mark.parametrize("tokens", [2, 24])  # the FFN is the worst operator, then the attention
@pytest.mark.parametrize("arch", OPTS.values(), ids=OPTS)
def test_opt_holds_the_activations_that_are_counted(decoder, arch, tokens):
    arch = arch.model_copy(update={"ffn_width": 256})
    model, alive, packed = decoder(arch), Alive(), {}

    def attended(_module, _inputs, output):
        mixed, weights = output
        alive.at(packed["q"], packed["k"], packed["v"], mixed, weights)

    for layer in model.model.decoder.layers:
        alive.watch_layer(layer)
        attention = layer.self_attn
        for part in "qkv":
            projection = getattr(attention, f"{part}_proj")
            projection.register_forward_pre_hook(lambda _, given: packed.update(x=given[0]))
            projection.register_forward_hook(lambda *call, part=part: packed.update({part: call[2]}))
        attention.v_proj.register_forward_hook(lambda *_: alive.at(*packed.values()))
        attention.register_forward_hook(attended)
        for module in (attention.out_proj, layer.fc1, layer.activation_fn, layer.fc2):
            alive.watch(module)
    for module in (model.model.decoder.project_in, model.model.decoder.project_out):
        if module is not None:
            alive.watch(module)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        model(input_ids=ids(arch, tokens), use_cache=False, output_attentions=True)
    assert operators.activation_bytes(arch.operators, tokens) == alive.worst
