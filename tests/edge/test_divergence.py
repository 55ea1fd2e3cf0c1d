"""What a format changes of a model's answers: measured without generating them, and said where it is too much."""

from functools import partial

import numpy as np
import pytest
import torch

from merino_edge.cli.app import main
from merino_edge.embedded import FOLDER
from merino_edge.export import divergence as measured
from merino_edge.export import export as exporting
from merino_edge.export.divergence import Answer, answers_of, compare_step, divergence, keeps
from merino_edge.export.export import export
from merino_edge.export.questions import questions
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
    return answers_of(source, source.arch.context, 24)


def test_there_are_200_questions_and_fewer_are_of_every_kind():
    assert len(set(questions())) == 200
    few = questions(20)
    assert len(set(few)) == 20 and {"What", "Name", "Why", "How"} <= {each.split()[0] for each in few}


def test_answers_are_those_that_the_model_gives(source, answers):
    assert len(answers) == 24 and max(len(each.ids) for each in answers) == measured.ANSWER_TOKENS
    for each in answers[::5]:
        with torch.no_grad():
            whole = torch.tensor([each.prompt + each.ids])
            logprobs = source.model(input_ids=whole).logits[0, len(each.prompt) - 1 : -1].log_softmax(-1)
        assert logprobs.argmax(-1).tolist() == each.ids
        rows = np.arange(len(each.ids))[:, None]
        assert np.abs(logprobs.numpy()[rows, each.tokens] - each.logprobs).max() < 1e-4


def test_a_bundle_is_compared_with_every_token_and_float32_keeps_all(source, answers, embedded_bundles):
    same = divergence(load_bundle(str(embedded_bundles["fused", "fp32"])), answers)
    assert same.kl_mean < 1e-6 and same.top1 == 1 and same.kept == same.answers == 24 and keeps(same)
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
    assert result.kept == same < result.answers == 24


def test_a_near_tie_costs_no_answer():
    expected = np.log([[0.41, 0.39, 0.15], [0.6, 0.3, 0.05]])
    answer = Answer([1], [7, 2], np.array([[7, 3, 1], [2, 5, 0]]), expected.astype(np.float32))
    logits = np.full(9, -5.0, np.float32)
    assert compare_step(np.where(np.arange(9) == 3, 2.0, logits), answer, 0)[1:] == (False, True)
    assert compare_step(np.where(np.arange(9) == 1, 2.0, logits), answer, 0)[1:] == (False, False)
    assert compare_step(np.where(np.arange(9) == 5, 2.0, logits), answer, 1)[1:] == (False, False)
    assert compare_step(np.where(np.arange(9) == 2, 2.0, logits), answer, 1)[1:] == (True, True)


@pytest.mark.parametrize(
    "named", ["int8", *(pytest.param(each, marks=pytest.mark.nightly) for each in ("fp32", None))]
)
def test_an_export_says_what_is_lost_and_names_a_format_that_keeps_it(named, tmp_path, capsys, monkeypatch):
    """Where the bar is such that int4 alone misses it, that none but float32 passes, and that all do."""
    monkeypatch.setattr(exporting, "answers_of", partial(answers_of, count=20))
    bar = {"fp32": -1, None: 1}.get(named)
    if bar is None:
        made = [export(load_source(str(FOLDER)), tmp_path / each, ExportRequest(precision=each))
                for each in ("int8", "int4")]  # fmt: skip
        bar, lost = (each.divergence.lost for each in made)
        assert bar < lost
    monkeypatch.setattr(measured, "MOST_LOST", bar)
    with pytest.raises(SystemExit):
        main(["export", "embedded", "--precision", "int4", "-o", str(tmp_path / "bundle")])
    message = capsys.readouterr()
    assert "KL from float32 0." in message.out and "of 20 answers kept" in message.out
    if named:
        assert f"answers of embedded; --precision {named} does not" in message.err.replace("\n", " ")
    else:
        assert "warning" not in message.err
    left = ["bundle", "int4", "int8"] if named == "int8" else ["bundle"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
