"""What a format changes of a model's answers, and `--precision mixed`, which spends bytes where it changes most."""

from itertools import chain, combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.cli.app import main
from merino_edge.embedded import FOLDER
from merino_edge.export import divergence as measured
from merino_edge.export.divergence import QUESTIONS, Answer, answers_of, compare_step, divergence, keeps
from merino_edge.export.export import calibrate, export, export_planned
from merino_edge.export.mixed import Promotion, chosen, promotions
from merino_edge.export.plan import resolve_plan
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.generation.generate import Generation, Token
from merino_runtime.sampling import GREEDY, GenerateOptions


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


@pytest.mark.parametrize(("bar", "warns"), [(-1, True), (1, False)])
def test_an_export_warns_if_too_many_answers_are_lost(bar, warns, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measured, "MOST_LOST", bar)
    with pytest.raises(SystemExit):
        main(["export", "embedded", "--precision", "int4", "-o", str(tmp_path / "bundle")])
    message = capsys.readouterr()
    assert "KL from float32 0." in message.out and "answers kept" in message.out
    assert ("warning: int4 loses" in message.err) == ("--precision auto" in message.err) == warns


parts = st.tuples(st.integers(-3, 60), st.integers(1, 20), st.integers(1, 20))


@given(st.lists(parts, min_size=1, max_size=7), st.integers(0, 60) | st.none(), st.integers(0, 60) | st.none())
def test_the_choice_saves_as_much_as_the_best_subset(values, most_bytes, most_ms):
    candidates = [Promotion(f"m{place}", kl / 1e4, nbytes, ms) for place, (kl, nbytes, ms) in enumerate(values)]

    def fits(subset):
        spent = sum(each.nbytes for each in subset), sum(each.ms for each in subset)
        return all(most is None or one <= most for one, most in zip(spent, (most_bytes, most_ms), strict=True))

    subsets = chain.from_iterable(combinations(candidates, size) for size in range(len(candidates) + 1))
    best = max(sum(each.kl for each in subset) for subset in subsets if fits(subset))
    taken = chosen(candidates, most_bytes, most_ms)
    assert fits(taken) and sum(each.kl for each in taken) == pytest.approx(best, abs=1e-9)


def test_the_chosen_matrices_save_more_than_others_of_as_many_bytes(tmp_path):
    source = load_source(str(FOLDER))
    lines = []
    made = export(source, tmp_path / "mixed", ExportRequest(precision="mixed"), say=lines.append)
    assert made.bundle.precision == "int4" and len(lines) == 1 and "MB more than int4" in lines[0]
    bits = {each.name: each.bits for each in made.matrices}
    plan = resolve_plan(ExportRequest(precision="int4"), source, tmp_path / "int4")
    measured = calibrate(source, plan)
    candidates, _ = promotions(source, plan.form, measured.answers, 0.0)
    spare = sum(each.nbytes for each in candidates) / 2
    spent = sum(each.nbytes for each in candidates if bits[each.name] == 8)
    assert 0.8 * spare < spent <= spare
    others = chosen([each._replace(kl=float(bits[each.name] != 8)) for each in candidates], spare, None)
    kl = {"mixed": made.divergence.kl_mean}
    for name, promoted in {"int4": [], "others": others}.items():
        names = frozenset(part for each in promoted for part in each.name.split("+"))
        planned = plan._replace(eight_bits=names)
        kl[name] = export_planned(source, tmp_path / name, planned, measured).divergence.kl_mean
    assert kl["mixed"] < 0.7 * kl["int4"] and kl["mixed"] < 0.8 * kl["others"], kl
    rise = sum(each.kl for each in candidates)  # of int4 over int8, predicted to second order
    assert 0.3 * kl["int4"] < rise < 3 * kl["int4"], (rise, kl)
    assert divergence(made.bundle, measured.answers).kl_mean == pytest.approx(kl["mixed"])


@pytest.mark.parametrize(("options", "message"), [
    (["--precision", "int4", "--file-mb", "3"], "--file-mb is a limit of --precision mixed"),
    (["--precision", "auto", "--for", "raspberry-pi-5", "--decode-ms", "3"], "is a limit of --precision mixed"),
    (["--precision", "mixed", "--decode-ms", "3"], "name it with --for"),
    (["--precision", "mixed", "--file-mb", "-1"], "--file-mb -1 is not allowed"),
    (["--precision", "mixed", "--file-mb", "0.1"], "--file-mb 0.1 is less than"),
    (["--precision", "mixed", "--file-mb", "0.1"], "take in int4: give more"),
    (["--precision", "mixed", "--for", "raspberry-pi-5", "--decode-ms", "0.001"], "predicted in int4: give more"),
])  # fmt: skip
def test_limits_that_are_not_possible_are_refused(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["export", "embedded", "-o", str(tmp_path / "out"), *options])
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_random_weights_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["export", "opt-125m", "--weights", "random", "--precision", "mixed", "-o", str(tmp_path / "out"),
              "--context", "32"])  # fmt: skip
    assert "random weights or no tokenizer" in " ".join(capsys.readouterr().err.split())
