"""GPTQ: the quantization alone, the Hessian that it uses, and exports that keep more of a model. Answers that an export
loses, and the matrices that are kept in 8 bits."""

import itertools
from itertools import chain, combinations

import numpy as np
import pytest
import tokenizers
import torch
from few_examples import examples
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import merino_edge.export.quantize.calibration as reading
from merino_edge.bundles.description import GraphFormat
from merino_edge.cli.app import app, main
from merino_edge.embedded import FOLDER
from merino_edge.export import divergence as measured
from merino_edge.export.divergence import QUESTIONS, Answer, answers_of, compare_step, divergence, keeps
from merino_edge.export.export import export
from merino_edge.export.mixed import Promotion, chosen
from merino_edge.export.plan import gptq_pays
from merino_edge.export.quantize.calibration import input_hessians
from merino_edge.export.quantize.gptq import compensated, damped_hessian, descended, fitted_scales, gptq
from merino_edge.export.quantize.matrix import dequantize, quantize_groups
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import Source, load_source
from merino_edge.families.opt import OptArchitecture
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError
from merino_runtime.generation.generate import Generation, Token
from merino_runtime.sampling import GREEDY, GenerateOptions
from tests.sample_models import SMALL, mean_loss, parts, quantized, small

TABLES = ("embed", "wte", "wpe", "head")  # in the names of what is gathered from, and of the head
MATRICES = arrays.arrays(np.float32, (3, 64), elements=st.floats(-4, 4, width=32, allow_subnormal=False))


@given(MATRICES, st.sampled_from([4, 8]), st.sampled_from([32, 64]), st.booleans(), st.sampled_from([0, 1e-6, 7]))
@example(np.full((3, 64), np.finfo(np.float32).tiny, np.float32), 8, 32, False, 1e-6)
@examples(100)
def test_inputs_that_do_not_hang_together_lose_no_more_than_by_rounding(matrix, bits, block, both_signs, power):
    result = gptq(matrix, power * np.eye(64, dtype=np.float32), bits, block, both_signs=both_signs)
    plain = quantize_groups(matrix, bits, block, both_signs=both_signs)
    assert result.bits == bits and result.group_size == block
    lost, plainly = (np.square(dequantize(codes) - matrix).sum(1) for codes in (result, plain))
    rounding = 1e-10 * np.square(matrix, dtype=np.float64).sum(1)  # of float32 numbers, squared
    assert (lost <= plainly * (1 + 1e-4) + rounding).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 8]), st.sampled_from([32, 96]), st.integers(8, 300))
@examples(60)
def test_no_step_behind_gptq_raises_the_error(seed, bits, size, tokens):
    """Of any row, on inputs of which some are the same, some larger, and some always 0."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((tokens, 96)) * random.choice([0, 0.1, 1, 30], 96)
    x[:, 50] = x[:, 3]
    damped = damped_hessian((x.T @ x / tokens).astype(np.float32))
    weights = random.standard_normal((96, 20)).astype(np.float32)
    weights[:32, 4] = 0
    codes, scales = compensated(weights, damped, bits, size, False)

    def error():
        lost = weights - codes * np.repeat(scales, size, 0)
        return np.einsum("cr,cd,dr->r", lost, damped, lost)

    errors = [error()]
    for _ in range(2):
        scales = fitted_scales(weights, codes, scales, damped.astype(np.float32))
        errors.append(error())
        codes = descended(weights, codes, scales, damped.astype(np.float32), (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
        errors.append(error())
    for before, after in itertools.pairwise(errors):
        assert (after <= before * (1 + 1e-3) + 1e-9 * damped.trace()).all()
    assert (errors[-1] < errors[0]).any()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("seed", range(2))
def test_the_output_loses_less_where_inputs_hang_together(bits, seed):
    """24 directions in 96 channels and a tenth of noise, as activations are; fewer tokens than channels with seed 0."""
    random = np.random.default_rng(seed)
    matrix = random.standard_normal((40, 96)).astype(np.float32)
    mixed = random.standard_normal((24, 96))
    x = random.standard_normal((64 if seed == 0 else 2000, 24)) @ mixed + 0.1 * random.standard_normal(96)
    x = x.astype(np.float32)
    result = gptq(matrix, x.T @ x / len(x), bits, 32)
    lost, plainly = (
        np.square(x @ (dequantize(codes) - matrix).T).mean() for codes in (result, quantize_groups(matrix, bits, 32))
    )
    assert lost < 0.5 * plainly
    assert result.codes.min() >= 0 and np.isfinite(result.scales).all()


@pytest.mark.parametrize("family", SMALL)
def test_moments_of_each_family_are_those_of_what_its_matrices_multiply(family, decoder):
    """By the matrices themselves: the mean square of an output is w' M w, with w as the graph has it."""
    arch = small(family, context=48)
    model = decoder(arch, 3)
    rows = np.random.default_rng(0).integers(0, arch.vocab, (3, 40))
    result = input_hessians(model, rows)
    source = Source(family, arch, model, "trained", "drawn", (), None)
    names = parts(quantized(source, GraphFormat("int4", "fused", 48)))
    matrices = {name for name in names if "unembed" in name or not any(part in name for part in TABLES)}
    assert {name for name in result if name in matrices or ".altup." not in name} == matrices  # which are floats
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in matrices}
    hooks = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_hook(
            lambda module, _, out, name=name: outputs[name].append(out - (0 if module.bias is None else module.bias))
        )
        for name in matrices
    ]
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.from_numpy(row)[None])
    for hook in hooks:
        hook.remove()
    layout = arch.layout
    for name in matrices:
        state, there = model.state_dict()[name].numpy(), layout(name)
        weights = there.to_graph(state) if there else state
        power = torch.cat([out.reshape(-1, out.shape[-1]) for out in outputs[name]]).square().mean(0).sum().item()
        assert np.einsum("oi,ij,oj", weights, result[name], weights, optimize=True) == pytest.approx(power, rel=1e-4)


@pytest.fixture(scope="module")
def tales(tmp_path_factory):
    """A file of what the embedded model writes."""
    return write_tales(tmp_path_factory.mktemp("tales") / "read.txt", 0)


def write_tales(path, seed):
    """Write four tales that the embedded model samples with this seed."""
    bundle, random, texts = load_bundle(str(FOLDER)), np.random.default_rng(seed), []
    tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    backend = open_backend(bundle)
    for _ in range(4):
        backend.truncate(0)
        ids = [0]
        while len(ids) < bundle.context:
            logits = backend.step(ids[-1]).astype(np.float64)
            chances = np.exp(logits - logits.max())
            ids.append(int(random.choice(len(chances), p=chances / chances.sum())))
        texts.append(tokenizer.decode(ids[1:]))
    path.write_text("<|endoftext|>".join(texts), "utf-8")
    backend.close()
    return path


@pytest.mark.nightly
def test_an_int4_export_loses_less_by_gptq_on_its_own_text_and_on_text_of_the_kind_that_is_read(tales, tmp_path):
    held_out = write_tales(tmp_path / "held-out.txt", 1)
    source, exact, losses = load_source(str(FOLDER)), mean_loss(FOLDER, held_out)[0], {}
    exports = {"plain": (source._replace(weights="random"), None), "own text": (source, None), "text": (source, tales)}
    for name, (weights, text) in exports.items():
        done = export(weights, tmp_path / name, ExportRequest(precision="int4", calibration=text))
        losses[name] = mean_loss(done.folder, held_out)[0] - exact
        matrices = sum(len(row.name.split("+")) for row in done.matrices) - 1  # without the table
        assert done.calibrated == (0 if name == "plain" else matrices)
    assert losses["own text"] < 0.8 * losses["plain"] and losses["text"] < 0.7 * losses["plain"]


def test_gptq_without_a_text_is_for_trained_floats_in_narrow_matrices():
    """Of a layer of 1,536 columns, as SmolLM2-135M's, its own text tells too little."""
    source = load_source(str(FOLDER))
    large = OptArchitecture(
        width=576, layers=1, heads=9, ffn_width=1536, embed_width=576, vocab=100, context=64, pre_norm=True
    )
    assert gptq_pays(source)
    assert not gptq_pays(source._replace(weights="random"))
    assert not gptq_pays(source._replace(arch=large))


GRAPHS = [
    ("fused", "int4"), pytest.param("portable", "int8", marks=pytest.mark.nightly),
    pytest.param("fused", "int8", marks=pytest.mark.nightly),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "precision"), GRAPHS)
def test_each_quantized_graph_takes_the_rounding(dialect, precision, tales, tmp_path):
    """Its logits are compared with torch's for the same weights. Dialect `portable` has one scale for each row, the
    others one for each group of 32."""
    source = load_source(str(FOLDER))
    request = ExportRequest(precision, dialect=dialect, calibration=tales)
    done = export(source, tmp_path / "bundle", request)
    assert done.calibrated > 0 and done.unrounded is not None and done.unrounded < 1e-4
    plain = quantized(source, GraphFormat(precision, dialect, 512))
    groups = {row.name: row.group_size for row in done.matrices}
    assert groups.keys() == plain.keys()
    if dialect == "portable":
        assert groups == {name: result.columns for name, result in plain.items()}
    else:
        assert set(groups.values()) == {32}


def test_blocks_of_a_source_are_not_rounded_again_and_the_text_is_not_run(tales, tmp_path, monkeypatch):
    from tests.edge.test_gguf import WIDE, write_in_blocks

    path = tmp_path / "model.gguf"
    write_in_blocks(path, "llama", "Q4_0", "Q8_0", num_hidden_layers=1, **WIDE)
    source = load_source(str(path))
    monkeypatch.setattr(reading, "input_hessians", lambda *_: pytest.fail("nothing is rounded"))
    done = export(source, tmp_path / "bundle", ExportRequest(precision="int4", context=64, calibration=tales))
    assert done.calibrated == 0 and sum(exact for _, exact, _ in done.stored) == len(
        parts(quantized(source, GraphFormat("int4", "fused", 64)))
    )


FAULTS = {
    "missing": (["embedded", "--precision", "int4"], None, r"--text .* does not exist"),
    "bytes": (["embedded", "--precision", "int4"], b"\xff\xfe", r"--text .* is not UTF-8 text"),
    "empty": (["embedded", "--precision", "int4"], b" ", r"no text in .*: --text"),
    "short": (["embedded", "--precision", "int4"], b"Once", r"--text .* gives \d+ tokens"),
    "fp32": (["embedded"], b"Once upon", r"the weights are fp32 .*: give --precision int4 or int8"),
    "random": (["design.json", "--precision", "int4"], b"Once upon", r"has no tokenizer"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_text_that_cannot_be_used_is_told_and_nothing_written(fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "design.json").write_text(
        '{"blocks": [{"width": 64, "ffn_ratio": 1, "depth": 1, "shared": false}], "vocab": 300, "head_size": 32,'
        ' "context": 64}'
    )
    call, content, message = FAULTS[fault]
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(MerinoError, match=message):
        app(["export", *call, "--text", "text.txt", "-o", "bundle"], standalone_mode=False)
    assert not (tmp_path / "bundle").exists()


@pytest.fixture(scope="module")
def source():
    return load_source(str(FOLDER))


@pytest.fixture(scope="module")
def answers(source):
    return answers_of(source, source.arch.context, QUESTIONS[::3])


def test_answers_are_those_that_the_model_gives(source, answers):
    assert len(answers) == 22 and max(len(each.ids) for each in answers) == measured.ANSWER_TOKENS
    for each in answers[::5]:
        with torch.no_grad():
            whole = torch.tensor([each.prompt + each.ids])
            logprobs = source.model(input_ids=whole).logits[0, len(each.prompt) - 1 : -1].log_softmax(-1)
        assert logprobs.argmax(-1).tolist() == each.ids
        rows = np.arange(len(each.ids))[:, None]
        assert np.abs(logprobs.numpy()[rows, each.tokens] - each.logprobs).max() < 1e-4


def test_a_bundle_is_compared_with_every_token_and_float32_keeps_all(source, answers, embedded_bundles):
    same = divergence(load_bundle(str(embedded_bundles["fused", "fp32"])), answers)
    assert same.kl_mean < 1e-6 and same.top1 == 1 and same.kept == same.answers == 22 and keeps(same)
    bundle = load_bundle(str(embedded_bundles["fused", "int4"]))
    result = divergence(bundle, answers)
    expected = []
    backend = open_backend(bundle)
    for each in answers:
        backend.truncate(0)
        rows = [backend.prefill(each.prompt).copy(), *(backend.step(one).copy() for one in each.ids[:-1])]
        own = torch.tensor(np.stack(rows)).log_softmax(-1)
        with torch.no_grad():
            other = source.model(input_ids=torch.tensor([each.prompt + each.ids])).logits[0, len(each.prompt) - 1 : -1]
        other = other.log_softmax(-1)
        expected += (other.exp() * (other - own)).sum(-1).tolist()
    backend.close()
    assert result.kl_mean == pytest.approx(np.mean(expected), rel=0.05) and result.kl_mean > 1e-4
    assert result.kl_p99 == pytest.approx(np.quantile(expected, 0.99), rel=0.05) and result.tokens == len(expected)


def test_what_is_kept_is_what_the_bundle_would_write(answers, embedded_bundles, monkeypatch):
    monkeypatch.setattr(measured, "TIE", 1e-9)
    bundle = load_bundle(str(embedded_bundles["fused", "int4"]))
    backend = open_backend(bundle)
    same = 0
    for each in answers:
        events = Generation(backend, each.prompt, GenerateOptions(max_new_tokens=len(each.ids), sampling=GREEDY))
        same += [event.id for event in events if isinstance(event, Token)] == each.ids
    backend.close()
    result = divergence(bundle, answers)
    assert result.kept == same < result.answers == 22


def test_a_near_tie_costs_no_answer():
    expected = np.log([[0.41, 0.39, 0.15], [0.6, 0.3, 0.05]])
    answer = Answer([1], [7, 2], np.array([[7, 3, 1], [2, 5, 0]]), expected.astype(np.float32))
    logits = np.full(9, -5.0, np.float32)
    assert compare_step(np.where(np.arange(9) == 3, 2.0, logits), answer, 0)[1:] == (False, True)
    assert compare_step(np.where(np.arange(9) == 1, 2.0, logits), answer, 0)[1:] == (False, False)
    assert compare_step(np.where(np.arange(9) == 5, 2.0, logits), answer, 1)[1:] == (False, False)
    assert compare_step(np.where(np.arange(9) == 2, 2.0, logits), answer, 1)[1:] == (True, True)


@pytest.mark.parametrize(("bar", "warns"), [(-1, True), pytest.param(1, False, marks=pytest.mark.nightly)])
def test_an_export_warns_if_too_many_answers_are_lost(bar, warns, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measured, "MOST_LOST", bar)
    with pytest.raises(SystemExit):
        main(["export", "embedded", "--precision", "int4", "-o", str(tmp_path / "bundle")])
    message = capsys.readouterr()
    assert "KL from float32 0." in message.out and "answers kept" in message.out
    assert ("warning: int4 loses" in message.err) == ("--precision auto" in message.err) == warns


some_parts = st.tuples(st.integers(-3, 60), st.integers(1, 20), st.integers(1, 20))


@given(st.lists(some_parts, min_size=1, max_size=7), st.integers(0, 60) | st.none(), st.integers(0, 60) | st.none())
def test_the_choice_saves_as_much_as_the_best_subset(values, most_bytes, most_ms):
    candidates = [Promotion(f"m{place}", kl / 1e4, nbytes, ms) for place, (kl, nbytes, ms) in enumerate(values)]

    def fits(subset):
        spent = sum(each.nbytes for each in subset), sum(each.ms for each in subset)
        return all(most is None or one <= most for one, most in zip(spent, (most_bytes, most_ms), strict=True))

    subsets = chain.from_iterable(combinations(candidates, size) for size in range(len(candidates) + 1))
    best = max(sum(each.kl for each in subset) for subset in subsets if fits(subset))
    taken = chosen(candidates, most_bytes, most_ms)
    assert fits(taken) and sum(each.kl for each in taken) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize(("options", "message"), [
    (["--precision", "int4", "--set=file_mb=3"], "--set file_mb is a limit of --precision mixed"),
    (["--precision", "auto", "--board", "raspberry-pi-5", "--set=decode_ms=3"], "is a limit of --precision mixed"),
    (["--precision", "mixed", "--set=decode_ms=3"], "name it with --board"),
    (["--precision", "mixed", "--set=file_mb=-1"], "--set file_mb=-1 is not allowed"),
    (["--precision", "mixed", "--set=file_mb=0.1"], "--set file_mb=0.1 is less than"),
    (["--precision", "mixed", "--set=file_mb=0.1"], "take in int4: give more"),
    (["--precision", "mixed", "--board", "raspberry-pi-5", "--set=decode_ms=0.001"], "predicted in int4: give more"),
])  # fmt: skip
def test_limits_that_are_not_possible_are_refused(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["export", "embedded", "-o", str(tmp_path / "out"), *options])
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_random_weights_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["export", "opt-125m", "--set=weights=random", "--precision", "mixed", "-o", str(tmp_path / "out"),
              "--context", "32"])  # fmt: skip
    assert "random weights or no tokenizer" in " ".join(capsys.readouterr().err.split())
