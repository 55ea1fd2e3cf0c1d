"""One model, four ways to run it: torch without a cache, torch with it, and the exported graphs of both dialects.

Compared at the prefill and at every decode step until the last cache slot is filled, through the board's own runtime.

Quantized graphs of every published family are compared with torch with the weights that the codes stand for: with float
activations closely, at prefill and 32 steps; with rounded ones as the export itself judges.
"""

from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch

import merino_edge.export.parity as proving
from merino_edge.bundles.description import GraphFormat
from merino_edge.export.export import export
from merino_edge.export.parity import PARITY_STEPS, bundle_error, dequantized_model, torch_greedy, unrounded_error
from merino_edge.export.quantize.calibration import rows_to_read
from merino_edge.export.quantize.smoothquant import smoothed
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import Source, load_source
from merino_edge.families.designed import Architecture
from merino_edge.families.operators import caches_inputs
from merino_edge.families.opt import OptArchitecture
from merino_edge.families.registry import family_of, read_geometry
from merino_runtime.api import selftest
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError
from merino_runtime.generation.generate import shift
from tests.sample_models import DAILY, ROPE_SCALED, SMALL, quantized, small

PROMPT, STEPS = 9, 32
CONTEXT = PROMPT + STEPS  # so that the last step fills the last slot
TOLERANCE = 2e-5  # of the largest logit: ten times what float32 needs, and less than GELU by erf makes
DIALECTS = ("fused", "portable")


def decoder_of(head_size, *blocks, **constants):
    return Architecture(
        blocks=[
            dict(zip(("width", "ffn_ratio", "depth", "shared", "kv_heads"), block, strict=False)) for block in blocks
        ],
        vocab=311, head_size=head_size, context=CONTEXT, **constants,
    )


def opt_of(**keys):
    geometry = {"width": 64, "layers": 3, "heads": 4, "ffn_width": 96, "embed_width": 64, "vocab": 311}
    return OptArchitecture(**{**geometry, "context": CONTEXT, "pre_norm": True, **keys})


def published(family, **keys):
    return small(family, **{"vocab": 311, "context": CONTEXT, **keys})


def random_decoder(seed):
    """Any geometry the search may give, in small."""
    random = np.random.default_rng(seed)
    head_size = int(random.choice([32, 64]))
    widths = sorted(int(width) for width in random.choice([64, 128, 192], random.integers(1, 5)))
    return decoder_of(head_size, *(
        (
            width, float(random.choice([1.0, 1.5, 2.5, 4.0])), int(random.integers(1, 4)), bool(random.integers(2)),
            int(random.choice([count for count in (1, 2, 3, 4, 6) if width // head_size % count == 0])),
        )
        for width in widths
    ))  # fmt: skip


MODELS = {
    "one layer": decoder_of(32, (64, 1.0, 1)),
    "one head": decoder_of(64, (64, 2.0, 2)),
    "one shared block": decoder_of(32, (96, 1.5, 3, True)),
    "wider twice": decoder_of(32, (32, 0.5, 1), (64, 1.0, 2, True), (128, 4.0, 1)),
    "wider at once": decoder_of(
        64, (64, 1.0, 1), (64, 1.5, 1), (192, 1.0, 2, True), rms_norm_eps=0.1, rope_theta=500.0
    ),
    "random 1": random_decoder(1),
    "random 2": random_decoder(2),
    "random 3": random_decoder(3),
    "opt pre-norm": opt_of(),
    "opt post-norm": opt_of(pre_norm=False),
    "opt pre-norm projected": opt_of(embed_width=32, heads=2),
    "opt post-norm projected": opt_of(embed_width=32, pre_norm=False, heads=8),
    **{name: published(name) for name in SMALL},
    "llama scaled and untied": published("llama", tied=False, rope_scaling=ROPE_SCALED),
    "llama of one group": published("llama", kv_heads=1, norm_eps=0.1),
    "llama ungrouped, of heads wider than the stream": published("llama", kv_heads=4, head_size=32),
    "qwen2 untied": published("qwen2", tied=False, heads=6),
    "granite untied": published("granite", tied=False, rope_scaling=ROPE_SCALED),
    "gemma3 with windows only": published("gemma3_text", layers=1, windowed=(True,), window=2, kv_heads=4),
    "gemma3 with windows longer than the context": published("gemma3_text", window=CONTEXT),
    "gpt2 with erf": published("gpt2", activation="gelu"),
    "gpt_neo of heads of 8": published("gpt_neo", heads=8, window=16),
    "gpt_neox in sequence, tied, rotated whole": published("gpt_neox", parallel=False, tied=True, rotated=16),
    "grouped": decoder_of(32, (64, 1.0, 2, False, 1), (128, 1.5, 2, True, 2), (192, 1.0, 1, False, 3)),
    "padded wider, narrower, wider": decoder_of(
        32, (64, 1.0, 1), (128, 1.5, 2, True, 1), (96, 0.5, 1), (160, 1.0, 1), width_change="padding"
    ),
    "padded to narrower": decoder_of(32, (96, 1.0, 1), (64, 2.0, 2), width_change="padding"),
}
# By day what differs most.
DAILY_DECODERS = {
    "wider at once", "opt pre-norm", "opt post-norm projected", "grouped", "padded wider, narrower, wider", *DAILY,
}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name in DAILY_DECODERS else pytest.mark.nightly)
                            for name in MODELS]
)
def model(request, decoder):
    return decoder(MODELS[request.param], list(MODELS).index(request.param))


@pytest.fixture(scope="module")
def bundles(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    model.save_pretrained(folder / "checkpoint")
    for dialect in DIALECTS:
        export(load_source(str(folder / "checkpoint")), folder / dialect, ExportRequest(dialect=dialect))
    return {dialect: load_bundle(str(folder / dialect)) for dialect in DIALECTS}


@pytest.fixture(scope="module")
def reference(model):
    """(ids [prompt + steps], logits [1 + steps, vocab]): torch without a cache after the prompt and each further id.

    The ids are drawn: greedy ones of a random model soon repeat themselves. The choice is compared at each step.
    """
    ids = np.random.default_rng(5).integers(0, 311, CONTEXT).tolist()
    with torch.no_grad():
        rows = [
            model(input_ids=torch.tensor([ids[:length]]), use_cache=False).logits[0, -1].numpy()
            for length in range(PROMPT, CONTEXT + 1)
        ]
    return ids, np.stack(rows)


def assert_same(computed, expected, step):
    error = np.abs(computed - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCE, (step, error)
    assert computed.argmax() == expected.argmax(), step


def test_the_reference_is_worth_comparing_with(reference):
    """No near ties, and another choice nearly every time: equal greedy ids then mean something."""
    _, logits = reference
    first, second = np.sort(logits, axis=1)[:, ::-1].T[:2]
    assert ((first - second) / np.abs(logits).max(axis=1)).min() > 2 * TOLERANCE
    assert len(set(logits.argmax(axis=1))) > 10


@torch.no_grad()
def test_torch_with_its_cache_agrees_at_every_step(model, reference):
    ids, expected = reference
    output = model(input_ids=torch.tensor([ids[:PROMPT]]), use_cache=True)
    for step, row in enumerate(expected):
        assert_same(output.logits[0, -1].numpy(), row, step)
        if step < STEPS:
            output = model(input_ids=torch.tensor([[ids[PROMPT + step]]]), cache=output.cache, use_cache=True)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_graph_agrees_at_every_step(bundles, reference, dialect):
    ids, expected = reference
    backend = open_backend(bundles[dialect])
    logits = backend.prefill(ids[:PROMPT])
    for step, row in enumerate(expected):
        assert_same(logits, row, step)
        if step < STEPS:
            logits = backend.step(ids[PROMPT + step])
    assert backend.length == CONTEXT
    backend.close()


def test_sequences_of_several_lengths_that_are_decoded_together_agree(bundles, reference):
    ids, expected = reference
    origin = open_backend(bundles["fused"])
    rows = origin.rows(4)
    for row, more in zip(rows, (0, 11, STEPS - 5, 3), strict=True):  # the third is full first, and then lies between
        row.prefill(ids[: PROMPT + more])
    while going := [row for row in rows if row.length < CONTEXT]:
        computed = going[0].step_ahead([(row, ids[row.length]) for row in going])
        assert len(computed) == {4: 4, 3: 2, 2: 0, 1: 0}[len(going)]
        for row in going:
            assert_same(row.step(ids[row.length]), expected[row.length - PROMPT], row.length)
    for backend in (origin, *rows):
        backend.close()


def test_a_cache_that_grows_by_what_the_graph_returns_agrees(bundles, reference):
    """As other programs run a graph: an empty cache at first, and then the outputs `present.*` as they come."""
    ids, expected = reference
    bundle = bundles["fused"]
    if caches_inputs(read_geometry(bundle.family, bundle.architecture).operators):
        pytest.skip("inputs of convolutions are written into a cache of full length")
    session = onnxruntime.InferenceSession(f"{bundle.folder}/model.onnx", providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    caches = {one.name: one.shape for one in session.get_inputs() if one.name.startswith("past_key_values.")}
    assert all(shape[2] == "past_sequence_length" for shape in caches.values())
    feeds = {name: np.empty((1, heads, 0, size), np.float32) for name, (_, heads, _, size) in caches.items()}
    given = ids[:PROMPT]
    for step, row in enumerate(expected):
        length = PROMPT + step
        feeds |= {"input_ids": np.array([given]), "attention_mask": np.ones((1, length), np.int64)}
        if "position_ids" in [port.name for port in bundle.inputs]:
            feeds["position_ids"] = np.arange(length - len(given), length)[None]
        result = dict(zip(names, session.run(None, feeds), strict=True))
        assert_same(result["logits"][0, 0], row, step)
        feeds |= {name: result[name.replace("past_key_values", "present")] for name in caches}
        assert {value.shape[2] for name, value in feeds.items() if name in caches} == {length}
        given = ids[length : length + 1]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("cut", [4, *(pytest.param(cut, marks=pytest.mark.nightly) for cut in (1, PROMPT - 1))])
def test_a_prefill_in_two_parts_agrees(bundles, reference, dialect, cut):
    ids, expected = reference
    backend = open_backend(bundles[dialect])
    backend.prefill(ids[:cut])
    assert_same(backend.prefill(ids[cut:PROMPT]), expected[0], 0)
    for step in range(4):
        assert_same(backend.step(ids[PROMPT + step]), expected[step + 1], step + 1)
    backend.close()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_whole_context_at_once_agrees(bundles, reference, dialect):
    ids, expected = reference
    backend = open_backend(bundles[dialect])
    assert_same(backend.prefill(ids), expected[-1], STEPS)
    backend.close()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_after_a_shift_the_graph_agrees_with_a_fresh_cache_and_with_torch(model, bundles, reference, dialect):
    ids, _ = reference
    kept = ids[-(CONTEXT // 2) :] + [7]
    backend, fresh = open_backend(bundles[dialect]), open_backend(bundles[dialect])
    backend.prefill(ids)
    logits, expected = shift(backend, [7]).copy(), fresh.prefill(kept).copy()
    assert backend.ids == kept and np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    for token in ids[:4]:
        logits, expected = backend.step(token), fresh.step(token)
        assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    with torch.no_grad():
        assert_same(logits, model(input_ids=torch.tensor([kept + ids[:4]])).logits[0, -1].numpy(), 4)
    backend.close()
    fresh.close()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_golden_ids_are_torchs_greedy_ids(model, bundles, dialect):
    golden = bundles[dialect].golden
    ids = list(golden.prompt_ids)
    with torch.no_grad():
        for expected in golden.greedy_ids:
            result = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            assert result == expected
            ids.append(result)


@pytest.mark.nightly
def test_a_shorter_context_changes_nothing_before_its_end(model, reference, tmp_path):
    ids, expected = reference
    model.save_pretrained(tmp_path / "checkpoint")
    for dialect in DIALECTS:
        export(
            load_source(str(tmp_path / "checkpoint")), tmp_path / dialect, ExportRequest(dialect=dialect, context=25)
        )
        backend = open_backend(load_bundle(str(tmp_path / dialect)))
        assert_same(backend.prefill(ids[:PROMPT]), expected[0], 0)
        for step in range(25 - PROMPT):
            assert_same(backend.step(ids[PROMPT + step]), expected[step + 1], step + 1)
        backend.close()


SCALED = ("fused", "int8")  # its channels are scaled first
KINDS = [SCALED, ("fused", "int4"), ("portable", "int8"), ("portable", "int4")]
TWO_KINDS = ("llama", "gpt_neox")  # by day, beside SCALED
CLOSE = 1e-5  # of the largest logit
FAMILIES = {name: small(name, context=48) for name in SMALL} | {
    "llama untied": small("llama", context=48, tied=False, rope_scaling=ROPE_SCALED)
}


@pytest.fixture(scope="module", params=FAMILIES)
def source(request, decoder):
    arch = FAMILIES[request.param]
    return Source(request.param, arch, decoder(arch, 3), "trained", "drawn", (), None)


@pytest.mark.parametrize(("source", "kind"), [
    pytest.param(name, kind, id="-".join((name, *kind)), marks=() if name in DAILY and kind == SCALED or
                 kind in KINDS[:3] and name in TWO_KINDS else pytest.mark.nightly)
    for name in FAMILIES for kind in KINDS
], indirect=["source"])  # fmt: skip
def test_codes_and_torchs_weights_compute_the_same(source, kind, tmp_path):
    """A window (Gemma 3, GPT-Neo) wants a later ONNX Runtime than the format does, but not in attention by groups; a
    layer that reads another's cache (Gemma 3n) wants a later one still."""
    dialect, precision = kind
    given = source if kind == SCALED else source._replace(weights="random")  # rounded without GPTQ
    exported = export(given, tmp_path / "bundle", ExportRequest(dialect=dialect, precision=precision, kv="fp32"))
    if kind == SCALED:
        source = smoothed(source, partial(rows_to_read, source, 48, None), {})
    matrices = quantized(source, GraphFormat(precision, dialect, 48))
    oldest = exported.bundle.backends[0].min_version
    by_groups = dialect == "fused" and source.arch.heads >= 3 * source.arch.kv_layers[0][0]
    windowed = any(getattr(source.arch, "windowed", ())) and not by_groups
    if dialect == "fused" and getattr(source.arch, "shared_layers", 0):
        assert oldest == "1.26"
    else:
        assert (oldest == "1.24") == (dialect == "fused" and windowed)
    twin = dequantized_model(source.model, matrices, source.arch.layout)
    ids = np.random.default_rng(1).integers(0, source.arch.vocab, 9).tolist()
    assert unrounded_error(exported.bundle, torch_greedy(twin, ids, PARITY_STEPS)) <= CLOSE
    assert 1e-4 < exported.error < 0.1  # rounded, and not by much
    backend = open_backend(exported.bundle)
    assert selftest(exported.bundle, backend) is None
    backend.close()


@pytest.mark.parametrize("dialect", ["fused", pytest.param("portable", marks=pytest.mark.nightly)])
def test_a_float32_bundle_gives_back_the_weights_of_any_family(source, dialect, tmp_path):
    exported = export(source, tmp_path / "bundle", ExportRequest(dialect=dialect))
    assert exported.error <= 1e-5
    folder = exported.folder
    again = load_source(str(folder))
    for name, weight in source.model.state_dict().items():
        assert np.abs(again.model.state_dict()[name] - weight).max() <= 1e-6, name
    assert family_of(again.arch) is family_of(source.arch)


def test_a_wrong_operator_is_seen_through_the_rounding(decoder, tmp_path, monkeypatch):
    """A base of the rotary frequencies that is not torch's: within the coarse bound, and not within the close one."""
    arch = small("llama", context=48)
    right, wrong = decoder(arch, 3), decoder(arch.model_copy(update={"rope_theta": 510.0}), 3)
    source = Source("lying", arch, wrong, "trained", "drawn", (), None)
    request = ExportRequest(precision="int8", kv="fp32")
    with pytest.raises(MerinoError, match="graph with float activations differs from torch"):
        export(source, tmp_path / "bundle", request)
    assert not (tmp_path / "bundle").exists()
    monkeypatch.setattr(proving, "unrounded_error", lambda *_: 0.0)
    export(source, tmp_path / "bundle", request)
    monkeypatch.undo()
    export(source._replace(model=right), tmp_path / "bundle", request)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_one_step_that_is_not_a_number_makes_the_error_not_a_number(precision, decoder, tmp_path):
    model = decoder(small("llama", context=48), 3)
    source = Source("llama", small("llama", context=48), model, "random", "drawn", (), None)
    bundle = export(source, tmp_path / "bundle", ExportRequest(precision=precision)).bundle
    golden = torch_greedy(model, [1, 2, 3], 5)
    assert bundle_error(bundle, golden) < 0.1
    golden.logits[3, 7] = np.nan
    assert np.isnan(bundle_error(bundle, golden))
