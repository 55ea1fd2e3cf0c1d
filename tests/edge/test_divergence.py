"""What a format changes of a model's answers: measured without generating them, and said where it is too much."""

import numpy as np
import pytest
import torch

from merino_edge.cli.app import main
from merino_edge.embedded import FOLDER
from merino_edge.export import divergence as measured
from merino_edge.export.divergence import QUESTIONS, Answer, answers_of, compare_step, divergence, keeps
from merino_edge.export.source import load_source
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.generation.generate import Token, generate
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
        events = generate(backend, each.prompt, GenerateOptions(max_new_tokens=len(each.ids), sampling=GREEDY))
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
