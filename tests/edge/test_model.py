"""The decoder in transformers' form: cache, loading, sharing, generation, padding, gradients, faults. Counts against
what torch really does: parameters, bytes of caches and activations, multiply-adds."""

import json
from math import prod

import pytest
import torch
from few_examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache

from merino_edge.families import designed_torch, operators
from merino_edge.families.designed import FAMILY, Architecture, Block
from merino_edge.families.designed_torch import MerinoConfig, MerinoForCausalLM
from merino_edge.families.opt import OptArchitecture
from merino_runtime.errors import MerinoError

IDS = torch.tensor([[5, 9, 100, 3, 77, 31, 2, 200, 41, 7]])
BLOCKS = [
    {"width": 32, "ffn_ratio": 1.5, "depth": 1},
    {"width": 64, "ffn_ratio": 1.0, "depth": 3, "shared": True},
    {"width": 96, "ffn_ratio": 0.5, "depth": 2},
]


@pytest.fixture(scope="module")
def arch():
    return Architecture(blocks=BLOCKS, vocab=257, head_size=32, context=32)


@pytest.fixture
def model(decoder, arch):
    return decoder(arch, seed=2)


def logits(model, ids, **keys):
    with torch.no_grad():
        return model(input_ids=ids, **keys).logits


def assert_close(computed, expected):
    assert (computed - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_change_of_width_keeps_the_size_of_the_stream(arch):
    """initializer_range alone would shrink it to a tenth, and training would crawl."""
    torch.manual_seed(0)
    model = MerinoForCausalLM(FAMILY.config_of(arch))
    projections = [model.blocks[1].enter, model.blocks[2].enter, model.leave]
    assert isinstance(model.blocks[0].enter, nn.Identity)
    for projection in projections:
        with torch.no_grad():
            stream = projection(torch.randn(1000, projection.in_features))  # [positions, E]
        assert 0.9 < stream.square().mean().sqrt() < 1.1


def test_the_cache_gives_what_the_whole_sequence_gives(model):
    whole = logits(model, IDS, use_cache=False)
    with torch.no_grad():
        output = model(input_ids=IDS[:, :3])
        steps = [output.logits]
        for index in range(3, IDS.shape[1]):
            output = model(input_ids=IDS[:, index : index + 1], cache=output.cache)
            steps.append(output.logits)
    assert_close(torch.cat(steps, dim=1), whole)
    assert output.cache.get_seq_length() == IDS.shape[1]
    assert len(output.cache.layers) == model.config.num_hidden_layers == 6


def test_what_is_saved_is_what_is_loaded(model, arch, tmp_path):
    model.save_pretrained(tmp_path)
    expected = logits(model, IDS)
    for loaded in (MerinoForCausalLM.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert isinstance(loaded, MerinoForCausalLM)
        assert loaded.config.architecture == arch
        assert torch.equal(logits(loaded, IDS), expected)


def test_a_padded_decoder_learns_and_is_loaded_as_it_was_saved(tmp_path):
    """Its changes of width have no weights; a step downhill lowers the loss; widths may shrink."""
    blocks = [{**block, "width": width} for block, width in zip(BLOCKS, (64, 32, 96), strict=True)]
    arch = Architecture(blocks=blocks, vocab=257, head_size=32, context=32, width_change="padding")
    torch.manual_seed(1)
    model = MerinoForCausalLM(FAMILY.config_of(arch))
    assert not [name for name, _ in model.named_parameters() if "enter" in name or "leave" in name]
    before = model(input_ids=IDS, labels=IDS).loss
    before.backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight -= 0.01 * weight.grad
        assert model(input_ids=IDS, labels=IDS).loss < before
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.architecture == arch
    assert torch.equal(logits(loaded, IDS), logits(model, IDS))
    with pytest.raises(ValueError, match="must not shrink from block to block by a projection"):
        Architecture(blocks=blocks, vocab=257, head_size=32, context=32)


def test_a_shared_block_is_its_one_layer_repeated(decoder, arch):
    """The same logits as a decoder of layers of their own that hold equal weights."""
    shared = decoder(arch, seed=4)
    blocks = [{**block, "shared": False} for block in BLOCKS]
    own = decoder(Architecture(blocks=blocks, vocab=257, head_size=32, context=32))
    state = shared.state_dict()
    for use in (1, 2):
        for name in [name for name in state if name.startswith("blocks.1.layers.0.")]:
            state[name.replace("layers.0.", f"layers.{use}.")] = state[name]
    own.load_state_dict(state)
    assert torch.equal(logits(shared, IDS), logits(own, IDS))
    assert len(shared.blocks[1].layers) == 1
    assert len(own.blocks[1].layers) == 3


def test_greedy_generation_is_the_argmax_of_each_step(model):
    ids = IDS[:, :4]
    for _ in range(12):
        ids = torch.cat((ids, logits(model, ids)[:, -1:].argmax(dim=-1)), dim=1)
    for use_cache in (True, False):
        generated = model.generate(IDS[:, :4], max_new_tokens=12, do_sample=False, use_cache=use_cache)
        assert generated.tolist() == ids.tolist()


def test_prompts_padded_on_the_left_give_what_each_gives_alone(model):
    prompts = [IDS[:, :4], IDS[:, :7], IDS]
    batch = torch.cat([nn.functional.pad(ids, (IDS.shape[1] - ids.shape[1], 0), value=9) for ids in prompts])
    mask = torch.cat([nn.functional.pad(torch.ones_like(ids), (IDS.shape[1] - ids.shape[1], 0)) for ids in prompts])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    together = logits(model, batch, attention_mask=mask, position_ids=positions)
    for row, ids in enumerate(prompts):
        assert_close(together[row, -ids.shape[1] :], logits(model, ids)[0])
    generated = model.generate(batch, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=9)
    for row, ids in enumerate(prompts):
        alone = model.generate(ids, max_new_tokens=8, do_sample=False)
        assert generated[row, IDS.shape[1] :].tolist() == alone[0, ids.shape[1] :].tolist()


BAD = {
    "shrinking": ({"blocks": [BLOCKS[1], BLOCKS[0]]}, "must not shrink"),
    "heads": ({"head_size": 64}, "multiples of head_size 64"),
    "fraction": ({"blocks": [{"width": 32, "ffn_ratio": 1.51, "depth": 1}]}, "ffn_ratio 1.51"),
    "depth": ({"blocks": [{"width": 32, "ffn_ratio": 1.0, "depth": 0}]}, "depth"),
    "key": ({"blocks": [{**BLOCKS[0], "color": 1}]}, "color"),
    "missing": ({"blocks": [{"width": 32}]}, "depth: missing"),
    "no blocks": ({"blocks": []}, "blocks"),
    "vocabulary": ({"vocab_size": 1}, "vocab"),
    "context": ({"max_position_embeddings": 0}, "context"),
    "untied": ({"tie_word_embeddings": False}, "tie_word_embeddings"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_configuration_that_is_no_decoder_is_refused(change, message, model, tmp_path):
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(MerinoError, match=message):
        MerinoConfig(**{"blocks": BLOCKS, **change})
    with pytest.raises(MerinoError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_what_follows_from_the_blocks_cannot_be_said_otherwise(arch):
    config = FAMILY.config_of(arch, hidden_size=1, num_hidden_layers=1, num_attention_heads=1)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (96, 6, 3)


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
    eager = designed_torch.eager_attention_forward
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
        patch.setattr(designed_torch, "eager_attention_forward", seen)
        model(input_ids=ids(arch), use_cache=False)
    assert operators.activation_bytes(arch.operators, TOKENS) == alive.worst
