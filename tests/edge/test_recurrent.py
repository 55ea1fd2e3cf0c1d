"""Layers with recurrent states (gated DeltaNet of Qwen3.5): exact against transformers, and truncated by copies."""

import numpy as np
import pytest
import torch
from sample_models import QWEN35

from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import Source, load_source
from merino_edge.families.hugging_face import build_model
from merino_edge.families.operators import kv_bytes, params
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile
from merino_runtime.api import selftest
from merino_runtime.backends import open_backend
from merino_runtime.bundle.schema import STATE_COPIES
from merino_runtime.errors import MerinoError
from merino_runtime.generation.cache_file import save_cache

TOLERANCE = 2e-5  # of the largest logit, as of the other families


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    made = build_model(QWEN35).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3 if "conv1d" in name else weight.shape[-1] ** -0.5)
            elif "A_log" not in name:
                weight.add_(0.2 * torch.randn_like(weight))
    return made


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(1).integers(0, QWEN35.vocab, QWEN35.context).tolist()


@pytest.fixture(scope="module")
def expected(model, ids):
    """float32 [positions, vocab], without any cache."""
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def exported(model, folder, precision="fp32", **more):
    source = Source("hybrid", QWEN35, model, "random", "drawn", (), None)
    return export(source, folder, ExportRequest(precision=precision, **more)).bundle


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    return exported(model, tmp_path_factory.mktemp("recurrent") / "bundle")


@pytest.fixture
def near(expected):
    def compare(logits, place):
        assert np.abs(logits - expected[place]).max() <= TOLERANCE * np.abs(expected).max(), place
        assert logits.argmax() == expected[place].argmax()

    return compare


def test_every_step_equals_transformers(bundle, ids, near):
    backend = open_backend(bundle)
    near(backend.prefill(ids[:1]), 0)
    near(backend.prefill(ids[1:9]), 8)
    for place in range(9, 30):
        near(backend.step(ids[place]), place)
    near(backend.prefill(ids[30:]), len(ids) - 1)
    assert selftest(bundle, backend) is None and len(bundle.golden.greedy_ids) == 16


@pytest.mark.parametrize("cut", [0, 3, 7, 8, 9, 12, 19, 20])
def test_a_truncated_backend_continues_as_if_the_rest_had_not_been(bundle, ids, near, cut):
    backend, others = open_backend(bundle), ids[::-1]
    backend.prefill(ids[:8])
    backend.prefill(ids[8:12])
    for one in ids[12:20]:
        backend.step(one)
    backend.truncate(cut)
    assert backend.ids == ids[:cut]
    if cut:
        backend.step(others[cut])  # another text
        backend.truncate(cut)
    near(backend.step(ids[cut]), cut)
    near(backend.prefill(ids[cut + 1 : cut + 5]), cut + 4)
    assert backend.ids == ids[: cut + 5]


def test_forks_and_slots_have_states_of_their_own(bundle, ids, near):
    origin = open_backend(bundle)
    origin.prefill(ids[:10])
    origin.step(ids[10])
    twin = origin.fork()
    origin.step(ids[3])
    near(twin.step(ids[11]), 11)
    slots = origin.rows(2)
    slots[0].copy_prefix(twin, 10)
    slots[1].copy_prefix(twin, 6)  # shorter than each state that there is
    near(slots[0].step(ids[10]), 10)
    near(slots[1].prefill(ids[6:9]), 8)
    assert slots[0].step_ahead([(slots[0], ids[11]), (slots[1], ids[9])]) == []
    near(slots[1].step(ids[9]), 9)


def test_an_interrupted_run_leaves_a_state_that_fits_its_ids(bundle, ids, near, monkeypatch):
    backend = open_backend(bundle)
    backend.prefill(ids[:9])

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(backend._states, "computed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backend.step(ids[4])
    near(backend.step(ids[9]), 9)
    backend._states.computed(11)  # as if the ids had not been written any more
    near(backend.step(ids[10]), 10)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_every_format_computes_what_torch_does(model, ids, expected, precision, tmp_path):
    bundle = exported(model, tmp_path / "bundle", precision)
    backend = open_backend(bundle)
    logits = [backend.prefill(ids[:5]).copy(), *(backend.step(one).copy() for one in ids[5:])]
    errors = np.square(logits - expected[4:]).mean() / np.square(expected).mean()
    assert errors < {"int8": 0.01, "int4": 0.35}[precision]
    assert selftest(bundle, backend) is None


def test_a_float32_bundle_is_a_source(model, bundle):
    again = load_source(bundle.folder)
    for name, weight in model.state_dict().items():
        assert torch.allclose(again.model.state_dict()[name], weight, atol=1e-6), name


def test_costs_are_those_of_the_bundle(model, bundle):
    states = [port for port in bundle.inputs if port.name.startswith("past_states.")]
    assert sum(int(np.prod(port.shape)) for port in states) == sum(op.state for op in QWEN35.operators)
    assert bundle.kv_bytes == kv_bytes(QWEN35.operators, QWEN35.context)
    of_states = STATE_COPIES * 4 * sum(op.state for op in QWEN35.operators)
    cached = sum(2 * 4 * heads * size * QWEN35.context for heads, size in QWEN35.kv_layers)
    assert bundle.kv_bytes == of_states + cached
    assert params(QWEN35.operators) == model.num_parameters()


@pytest.mark.parametrize("request_", [{"dialect": "portable"}, {"precision": "fp16"}, {"kv": "int8"}])
def test_what_has_no_states_is_refused_by_name(model, request_, tmp_path):
    with pytest.raises(MerinoError, match="recurrent states .gated DeltaNet., which are exported with --dialect fused"):
        exported(model, tmp_path / "bundle", **request_)


def test_a_cache_file_and_tensorrt_are_refused_by_name(bundle, tmp_path):
    with pytest.raises(MerinoError, match="is not stored, because its layers have recurrent states"):
        save_cache(bundle, open_backend(bundle), str(tmp_path / "cache"))
    with pytest.raises(MerinoError, match="not possible in TensorRT"):
        cost_model(load_profile("jetson-orin-nano"), InferenceShape("fp32", 64, 32)).predict(QWEN35.operators)
