"""Distillation: a teacher runs once, its logits are kept, and what they teach is what was said."""

import dataclasses
import json
import math
import os

import numpy as np
import pytest
import torch
from sample_models import ARCH, story, write_stories
from test_training_data import write_lines
from test_training_runs import ctrl_c_at, main_ends, same_weights

from merino_edge.families.hugging_face import Checkpoint, build_model, save_model
from merino_edge.text.tokenizer import train_tokenizer
from merino_edge.training.distill import TOP, Teacher, distillation_loss
from merino_edge.training.recipe import Recipe
from merino_edge.training.train import train
from merino_runtime.errors import MerinoError

pytestmark = pytest.mark.slow
RECIPE = Recipe(steps=40, batch=4, learning_rate=3e-3, temperature=2.0)
TOKENIZER = train_tokenizer([story(seed) for seed in range(60)], 290)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "merino_edge" / "teachers"


@pytest.fixture
def tokenizer_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(TOKENIZER.to_str())
    return path


class Counted:
    """A teacher whose forward passes are counted; it stops where it is told to."""

    def __init__(self, tokenizer=None, arch=ARCH, stop_at=None):
        torch.manual_seed(5)
        self.calls, self.model, self.stop_at = 0, build_model(arch), stop_at
        self.model.register_forward_pre_hook(self.count)
        self.teacher = Teacher(
            "the teacher", "5" * 64, lambda: Checkpoint(arch, self.model, (), tokenizer or TOKENIZER.to_str())
        )

    def count(self, *_):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt


def test_the_loss_is_the_cross_entropy_to_the_teachers_tokens():
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 5, 30), torch.randn(2, 5, 30)
    labels = torch.randint(0, 30, (2, 5))
    labels[0, 2:4] = -100
    top = teacher.topk(TOP)
    for heat in (1.0, 3.0):
        expected = 0.0
        for row in range(2):
            for place in range(4):
                if labels[row, place + 1] >= 0:
                    needed = torch.softmax(top.values[row, place] / heat, -1)
                    result = torch.log_softmax(logits[row, place] / heat, -1)[top.indices[row, place]]
                    expected -= heat**2 * float((needed * result).sum())
        result = float(distillation_loss(logits, labels, top.indices, top.values, heat))
        assert result == pytest.approx(expected, rel=1e-5)


def test_a_teacher_runs_once_and_what_it_knows_is_learned(tmp_path, tokenizer_file, cache):
    """A student with no other aim comes near its teacher, whose random weights nothing in the text tells."""
    text = write_stories(tmp_path / "a.txt")
    samples = write_lines(
        tmp_path / "b.jsonl", [{"prompt": story(seed, 1), "completion": " yes."} for seed in range(80)]
    )
    counted, recipe = Counted(), dataclasses.replace(RECIPE, teacher_weight=1.0, seed=3, steps=150)
    keys = {"tokenizer_file": tokenizer_file, "teacher": counted.teacher}
    record = train(ARCH, [text, samples], tmp_path / "out", recipe=recipe, **keys)
    assert record["teacher_sha256"] == "5" * 64 and record["recipe"]["temperature"] == 2.0
    (file,) = cache.glob("*.bin")
    assert counted.calls > 1
    losses = [entry["loss"] for entry in record["losses"] if "loss" in entry]
    alike = (
        math.log(TOP) * 4
    )  # the least that it can be: the entropy of the teacher's tokens, nearly uniform, times 2^2
    assert losses[0] > alike + 5 and losses[-1] < alike + 0.6 * (losses[0] - alike)
    calls = counted.calls
    messages = []
    other = dataclasses.replace(recipe, seed=4, steps=3)
    train(ARCH, [text, samples], tmp_path / "second", recipe=other, say=messages.append, **keys)
    assert counted.calls == calls and any("does not run again" in line for line in messages)
    os.truncate(file, file.stat().st_size // 2 - 7)  # within a row
    train(ARCH, [text, samples], tmp_path / "third", recipe=other, **keys)
    assert calls < counted.calls < calls + calls and same_weights(tmp_path / "second", tmp_path / "third")


def test_a_teacher_that_was_stopped_goes_on_and_so_does_its_student(tmp_path, tokenizer_file, cache, monkeypatch):
    monkeypatch.setattr("merino_edge.training.distill.BATCH_TOKENS", 320)
    text, stopped, going = write_stories(tmp_path / "a.txt"), Counted(stop_at=20), Counted()
    keys = {"recipe": RECIPE, "tokenizer_file": tokenizer_file}
    with pytest.raises(KeyboardInterrupt):
        train(ARCH, [text], tmp_path / "out", teacher=stopped.teacher, **keys)
    (file,) = cache.glob("*.bin")
    assert file.stat().st_size > 0 and not (tmp_path / "out" / "trainer" / "run.json").exists()
    with pytest.raises(KeyboardInterrupt):
        train(ARCH, [text], tmp_path / "out", teacher=going.teacher, progress=ctrl_c_at(8), **keys)
    train(ARCH, [text], tmp_path / "out", teacher=going.teacher, resume=True, **keys)
    whole = Counted()
    train(ARCH, [text], tmp_path / "whole", teacher=whole.teacher, **keys)
    assert whole.calls == 0 and same_weights(tmp_path / "out", tmp_path / "whole")
    with pytest.raises(MerinoError, match="--teacher is none; the run's is 55555555"):
        train(ARCH, [text], tmp_path / "out", **keys)


def test_a_teacher_that_does_not_go_with_the_run_is_refused(tmp_path, tokenizer_file):
    text = write_stories(tmp_path / "a.txt")
    short = ARCH.model_copy(update={"context": 16})
    for counted, message in (
        (
            Counted(train_tokenizer(["other text " * 99, story(1)], 280).to_str()),
            "another tokenizer .*--tokenizer.*generate",
        ),
        (Counted(arch=short), "reads 16 tokens, and a row has 32: give --length 16"),
    ):
        with pytest.raises(MerinoError, match=message):
            train(ARCH, [text], tmp_path / "out", recipe=RECIPE, tokenizer_file=tokenizer_file, teacher=counted.teacher)
        assert counted.calls == 0 and not (tmp_path / "out").exists()
    for name, value in (("teacher_weight", 0), ("teacher_weight", 1.5), ("temperature", 0), ("temperature", math.nan)):
        with pytest.raises(MerinoError, match=f"--set {name}={value} must be above 0"):
            Recipe(**{name: value})


def test_the_command_takes_a_checkpoint_or_a_gguf_as_teacher(tmp_path, tokenizer_file, capfd, cache):
    text, folder = write_stories(tmp_path / "a.txt"), tmp_path / "teacher"
    folder.mkdir()
    torch.manual_seed(1)
    save_model(build_model(ARCH, bos_token_id=0, eos_token_id=0), folder)
    (folder / "tokenizer.json").write_text(TOKENIZER.to_str())
    (tmp_path / "arch.json").write_text(ARCH.model_dump_json())
    words = [tmp_path / "arch.json", "--data", text, "--tokenizer", tokenizer_file, "--steps", 2, "--batch", 2]
    main_ends(0, "train", *words, "--teacher", folder, "--set", "temperature=3", "-o", tmp_path / "out")
    assert "rows, once; its 16 likeliest tokens are kept" in capfd.readouterr().err
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (
        record["teacher_sha256"] and record["recipe"]["temperature"] == 3 and record["recipe"]["teacher_weight"] == 0.5
    )
    for more, message in (
        (["--teacher", tmp_path / "arch.json"], "is a design, which has no weights"),
        (["--set", "temperature=2"], "go with a --teacher"),
        (["--teacher", "nobody"], "'nobody' names no model"),
    ):
        main_ends(1, "train", *words, *more, "-o", tmp_path / "other")
        assert message in " ".join(capfd.readouterr().err.split())
    ids = np.fromfile(next(cache.glob("*.bin")), "<u2", 5)
    assert (ids < ARCH.vocab).all()
