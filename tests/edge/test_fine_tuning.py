"""Fine-tuning a trained model of any family with a user's data, and distillation from a teacher that runs once."""

import json
import math
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sample_models import ARCH, SMALL, small, story, write_stories
from test_training_data import CONVERSATION, write_lines
from test_training_runs import ctrl_c_at, main_ends, same_weights
from transformers import PreTrainedTokenizerFast

from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source
from merino_edge.families.hugging_face import Checkpoint, build_model, save_model
from merino_edge.text.documents import END_OF_TEXT
from merino_edge.text.tokenizer import train_tokenizer
from merino_edge.training.distill import TOP, Teacher, distillation_loss
from merino_edge.training.recipe import Recipe
from merino_edge.training.train import train
from merino_runtime.api import open_model
from merino_runtime.errors import MerinoError
from merino_runtime.sampling import Sampling

TOKENIZER = train_tokenizer([story(seed) for seed in range(60)], 290)
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}{% if add_generation_prompt %}[assistant]"
    "{% endif %}"
)
DAILY = (("llama", 4), ("gpt2", 0))
QUESTIONS = [
    {"prompt": f"{who} {what}:", "completion": f" {what}"}
    for who in ("miller", "baker", "child") for what in ("flour", "bread", "water") for _ in range(12)
]  # fmt: skip


def geometry(family):
    return small(family, vocab=290, context=64)


@pytest.fixture
def folder_of(decoder, tmp_path):
    """A function: (family) -> a checkpoint of it with random weights, a tokenizer and a chat template."""

    def make(family):
        folder = tmp_path / family
        model = decoder(geometry(family), bos_token_id=0, eos_token_id=0)
        model.save_pretrained(folder)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER, eos_token=END_OF_TEXT)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder)
        return folder

    return make


def pretrained(folder):
    result = load_source(str(folder))
    return result, Checkpoint(result.arch, result.model, result.stop_ids, result.tokenizer, result.chat)


ROWS_MIX = {"granitemoehybrid", "bloom", "lfm2"}  # masks without positions, and convolutions of transformers


@pytest.mark.parametrize("family", sorted(set(SMALL) - ROWS_MIX))
def test_the_samples_of_a_row_see_only_themselves_in_every_family(family, decoder):
    model = decoder(geometry(family))
    ids = torch.randint(0, 290, (2, 24), generator=torch.Generator().manual_seed(0))
    positions = torch.from_numpy(np.concatenate([np.arange(7), np.arange(10), np.arange(7)]))[None].expand(2, -1)
    with torch.no_grad():
        together = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        for begin, end in ((0, 7), (7, 17), (17, 24)):
            alone = model(input_ids=ids[:, begin:end], use_cache=False).logits
            assert torch.allclose(together[:, begin:end], alone, atol=1e-4), (begin, end)


@pytest.mark.parametrize(("family", "lora"), [
    pytest.param(name, lora, marks=() if (name, lora) in DAILY else pytest.mark.nightly)
    for name in SMALL for lora in (0, 4)
])  # fmt: skip
def test_a_family_learns_and_is_exported(family, lora, folder_of, tmp_path):
    """What the board's runtime answers is what was trained: the word of the prompt, and then the end."""
    source, begin = pretrained(folder_of(family))
    before = {name: weight.clone() for name, weight in source.model.state_dict().items()}
    path, out = write_lines(tmp_path / "questions.jsonl", QUESTIONS), tmp_path / "out"
    recipe = Recipe(steps=120 if not lora else 4, batch=8, learning_rate=5e-3, lora=lora, optimizer="adamw")
    record = train(source.arch, [path], out, recipe=recipe, name="tuned", pretrained=begin)
    assert record["family"] == family and len(record["weights_sha256"]) == 64
    again = load_source(str(out))
    assert again.arch == source.arch and again.name == "tuned" and again.stop_ids == (0,)
    assert again.chat.text == TEMPLATE
    assert (out / "adapter" / "adapter_model.safetensors").is_file() == bool(lora)
    after = again.model.state_dict()
    assert after.keys() == before.keys() and any(not torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(after[embedding(source.model)], before[embedding(source.model)]) == bool(lora)
    bundle = tmp_path / "bundle"
    export(again, bundle, ExportRequest())
    with open_model(str(bundle)) as model:
        text = "".join(model.stream("miller bread:", max_new_tokens=6, sampling=Sampling(temperature=0)))
    if not lora:
        assert record["held_out_loss"] < 0.2 and text.strip() == "bread"


def embedding(model):
    expected = model.get_input_embeddings().weight
    return next(name for name, weight in model.state_dict().items() if weight.data_ptr() == expected.data_ptr())


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.nightly)])
def test_a_lora_run_goes_on_as_it_began(optimizer, folder_of, tmp_path):
    folder = folder_of("llama")
    text = write_stories(tmp_path / "a.txt")
    keys = {"recipe": Recipe(steps=8, batch=2, lora=4, learning_rate=1e-2, optimizer=optimizer)}

    def run(out, **more):
        source, begin = pretrained(folder)
        return train(source.arch, [text], out, pretrained=begin, **keys, **more)

    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", progress=ctrl_c_at(4))
    run(tmp_path / "out", resume=True)
    assert same_weights(tmp_path / "out", tmp_path / "whole")
    other = load_file(folder / "model.safetensors")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == other.keys()
    keys["recipe"] = Recipe(steps=8, batch=2, lora=8, learning_rate=1e-2, optimizer=optimizer)
    with pytest.raises(MerinoError, match="--lora is 8; the run's is 4"):
        run(tmp_path / "whole")


def test_the_command_fine_tunes_a_folder_with_its_own_template_and_defaults(folder_of, tmp_path, capfd):
    folder = folder_of("llama")
    conversation = write_lines(tmp_path / "talk.jsonl", [{"messages": CONVERSATION[:2]}] * 40)
    main_ends(0, "train", folder, "--data", conversation, "--steps", 2, "--batch", 2, "-o", tmp_path / "out")
    assert "held-out loss" in capfd.readouterr().out
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["recipe"]["learning_rate"] == 5e-5 and record["recipe"]["length"] == 64
    assert record["recipe"]["optimizer"] == "adamw" and record["name"] == "llama"
    assert record["recipe"]["weight_decay"] == 0.1
    main_ends(0, "train", folder, "--data", conversation, "--steps", 2, "--batch", 2, "-o", tmp_path / "out")
    assert "this run is finished" in capfd.readouterr().err
    main_ends(0, "train", tmp_path / "out", "--data", conversation, "--steps", 1, "--lora", 2, "-o", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "training.json").read_text())
    assert again["recipe"]["learning_rate"] == 2e-4 and again["weights_sha256"] != record["weights_sha256"]


def test_what_does_not_go_with_a_model_is_refused(folder_of, decoder, tmp_path, capfd):
    text = write_stories(tmp_path / "a.txt")
    folder = folder_of("llama")
    (tmp_path / "arch.json").write_text(ARCH.model_dump_json())
    bare = tmp_path / "bare"
    decoder(geometry("llama")).save_pretrained(bare)
    for words, message in (
        ([folder, "--tokenizer", folder / "tokenizer.json"], "--tokenizer goes with a design"),
        ([folder, "--set", "length=65"], "--set length=65 is more than the model's context, 64"),
        ([tmp_path / "arch.json", "--lora", 4], "--lora goes with a trained model"),
        ([folder, "--lora", -1], "--lora -1 must be"), ([folder, "--lora", 0], "--lora 0 must be 1 or more"),
        ([folder, "--lora", 100_000], "--lora 100000 is more than the model's width, 64"),
        ([folder, "--set", "optimizer=sgd"], "--set optimizer=sgd must be 'adamw' or 'muon'"),
        ([folder, "--set", "momentum=0.9"], "--set momentum=0.9 is not known: give NAME=VALUE, with one of accumulate"),
        ([folder, "--set", "evaluations=2.5"], "--set evaluations=2.5 must be a valid integer"),
        ([bare], "has no tokenizer, so it cannot be fine-tuned"),
        (["opt-12"], "'opt-12' names no model"),
    ):
        main_ends(1, "train", *words, "--data", text, "-o", tmp_path / "out")
        assert message in " ".join(capfd.readouterr().err.split()), message
        assert not (tmp_path / "out").exists()
    source, begin = pretrained(folder)
    train(source.arch, [text], tmp_path / "out", recipe=Recipe(steps=1, batch=1), pretrained=begin)
    with torch.no_grad():
        begin.model.get_input_embeddings().weight.add_(1)
    with pytest.raises(MerinoError, match="SOURCE is .* weights .*; the run's is .* weights"):
        train(source.arch, [text], tmp_path / "out", recipe=Recipe(steps=1, batch=1), pretrained=begin)


RECIPE = Recipe(steps=40, batch=4, learning_rate=3e-3, temperature=2.0)


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


@pytest.mark.slow
def test_a_teacher_runs_once_and_what_it_knows_is_learned(tmp_path, tokenizer_file, cache):
    """A student with no other aim comes near its teacher, whose random weights nothing in the text tells."""
    text = write_stories(tmp_path / "a.txt")
    samples = write_lines(
        tmp_path / "b.jsonl", [{"prompt": story(seed, 1), "completion": " yes."} for seed in range(80)]
    )
    counted, recipe = Counted(), RECIPE.model_copy(update={"teacher_weight": 1.0, "seed": 3, "steps": 150})
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
    other = recipe.model_copy(update={"seed": 4, "steps": 3})
    train(ARCH, [text, samples], tmp_path / "second", recipe=other, say=messages.append, **keys)
    assert counted.calls == calls and any("does not run again" in line for line in messages)
    os.truncate(file, file.stat().st_size // 2 - 7)  # within a row
    train(ARCH, [text, samples], tmp_path / "third", recipe=other, **keys)
    assert calls < counted.calls < calls + calls and same_weights(tmp_path / "second", tmp_path / "third")


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_teacher_that_does_not_go_with_the_run_is_refused(tmp_path, tokenizer_file):
    text = write_stories(tmp_path / "a.txt")
    short = ARCH.model_copy(update={"context": 16})
    for counted, message in (
        (
            Counted(train_tokenizer(["other text " * 99, story(1)], 280).to_str()),
            "another tokenizer .*--tokenizer.*generate",
        ),
        (Counted(arch=short), "reads 16 tokens, and a row has 32: give --set length=16"),
    ):
        with pytest.raises(MerinoError, match=message):
            train(ARCH, [text], tmp_path / "out", recipe=RECIPE, tokenizer_file=tokenizer_file, teacher=counted.teacher)
        assert counted.calls == 0 and not (tmp_path / "out").exists()
    for name, value in (("teacher_weight", 0), ("teacher_weight", 1.5), ("temperature", 0), ("temperature", math.nan)):
        with pytest.raises(MerinoError, match=f"--set {name}={value} must be"):
            Recipe(**{name: value})


@pytest.mark.slow
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
