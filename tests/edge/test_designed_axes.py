"""The axes of the designed family: gated convolutions, causal taps and n-gram tables."""

import pytest
import torch
from pydantic import ValidationError
from transformers import DynamicCache

from merino_edge.families.designed import Architecture, Block, Ngrams
from merino_edge.families.hugging_face import build_model

VOCAB, CONTEXT = 1500, 24  # ids above 1,023 have two parts in the cache
AXES = {
    "convolution": {"blocks": (Block(width=64, ffn_ratio=2, depth=4, attention_every=4, kv_heads=1),)},
    "taps": {"taps": True},
    "tables": {"ngrams": (Ngrams(order=2, rows=512), Ngrams(order=3, rows=700))},
}


def architecture(*axes):
    fields = {"blocks": (Block(width=64, ffn_ratio=2, depth=3),), "vocab": VOCAB, "head_size": 32, "context": CONTEXT}
    for axis in axes:
        fields |= AXES[axis]
    return Architecture(**fields)


def random_model(arch, seed=0):
    """Its axes have weights of the size of trained ones: tables and taps begin at zero."""
    torch.manual_seed(seed)
    model = build_model(arch)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2 if weight.ndim != 2 else weight.shape[1] ** -0.5)
    return model.eval()


CASES = [(axis,) for axis in AXES] + [tuple(AXES)]


@pytest.mark.parametrize("axes", CASES, ids="+".join)
def test_cached_steps_equal_one_pass(axes):
    model, ids = random_model(architecture(*axes)), torch.randint(VOCAB, (2, CONTEXT))
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cache, parts = DynamicCache(config=model.config), []
        for start, end in ((0, 5), (5, 6), (6, 7), (7, 12), (12, CONTEXT)):
            parts.append(model(ids[:, start:end], cache=cache).logits)
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)
        cache.crop(9 - CONTEXT)  # a truncated cache continues with another text
        other = torch.cat((ids[:, :9], torch.randint(VOCAB, (2, 6))), 1)
        after = model(other[:, 9:], cache=cache).logits
        assert torch.allclose(after, model(other, use_cache=False).logits[:, 9:], atol=1e-4)


@pytest.mark.parametrize("axes", CASES, ids="+".join)
def test_samples_of_a_packed_row_do_not_see_each_other(axes):
    model, ids = random_model(architecture(*axes)), torch.randint(VOCAB, (1, 14))
    positions = torch.tensor([[*range(6), *range(8)]])
    with torch.no_grad():
        packed = model(ids, position_ids=positions, use_cache=False).logits
        apart = torch.cat([model(part, use_cache=False).logits for part in (ids[:, :6], ids[:, 6:])], 1)
    assert torch.allclose(packed, apart, atol=1e-4)


def test_no_position_sees_a_later_one():
    model, ids = random_model(architecture(*AXES)), torch.randint(VOCAB, (1, 10))
    changed = ids.clone()
    changed[0, 6] = (ids[0, 6] + 1) % VOCAB
    with torch.no_grad():
        before, after = (model(one, use_cache=False).logits for one in (ids, changed))
    assert torch.equal(before[:, :6], after[:, :6]) and not torch.allclose(before[:, 6:], after[:, 6:])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"blocks": ({"width": 64, "ffn_ratio": 2, "depth": 3, "attention_every": 4},)}, "at most depth 3"),
        ({"blocks": ({"width": 64, "ffn_ratio": 2, "depth": 3, "shared": True},), "taps": True}, "shared"),
        ({"ngrams": ({"order": 2, "rows": 2**31 + 1},)}, "2147483648"),
        ({"ngrams": ({"order": 2, "rows": 8}, {"order": 2, "rows": 9})}, "must differ"),
    ],
)
def test_impossible_axes_are_refused(fields, words):
    with pytest.raises(ValidationError, match=words):
        Architecture.model_validate({**architecture().model_dump(), **fields})
