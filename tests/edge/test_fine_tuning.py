"""Fine-tuning: a trained model of any family goes on with a user's data, and is exported through the ordinary door."""

import json

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
from merino_edge.families.hugging_face import Checkpoint
from merino_edge.text.documents import END_OF_TEXT
from merino_edge.text.tokenizer import train_tokenizer
from merino_edge.training.recipe import OPTIMIZERS, Recipe
from merino_edge.training.train import train
from merino_runtime.api import open_model
from merino_runtime.errors import MerinoError
from merino_runtime.sampling import Sampling

TOKENIZER = train_tokenizer([story(seed) for seed in range(60)], 290)
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}{% if add_generation_prompt %}[assistant]"
    "{% endif %}"
)
DAILY = ("llama", "gpt2")
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


@pytest.mark.parametrize("family", sorted(set(SMALL) - {"granitemoehybrid"}))  # whose masks know no positions
def test_the_samples_of_a_row_see_only_themselves_in_every_family(family, decoder):
    model = decoder(geometry(family))
    ids = torch.randint(0, 290, (2, 24), generator=torch.Generator().manual_seed(0))
    positions = torch.from_numpy(np.concatenate([np.arange(7), np.arange(10), np.arange(7)]))[None].expand(2, -1)
    with torch.no_grad():
        together = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        for begin, end in ((0, 7), (7, 17), (17, 24)):
            alone = model(input_ids=ids[:, begin:end], use_cache=False).logits
            assert torch.allclose(together[:, begin:end], alone, atol=1e-4), (begin, end)


@pytest.mark.parametrize("family", [
    name if name in DAILY else pytest.param(name, marks=pytest.mark.nightly) for name in SMALL
])  # fmt: skip
@pytest.mark.parametrize("lora", [0, 4])
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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
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


def test_a_checkpoint_goes_on_learning_by_the_optimizer_that_is_named(tmp_path):
    (tmp_path / "arch.json").write_text(ARCH.model_dump_json())
    first, second = tmp_path / "first", tmp_path / "second"
    words = "--data", write_stories(tmp_path / "a.txt"), "--steps", 2, "--batch", 2, "--set", "optimizer=muon"
    main_ends(0, "train", tmp_path / "arch.json", *words, "-o", first)
    main_ends(0, "train", first, *words, "--preset", "laptop-hour", "--length", 32, "-o", second)
    assert json.loads((second / "training.json").read_text())["recipe"]["optimizer"] == "muon"
    _adamw, muon = torch.load(next(second.rglob("optimizer.pt")), weights_only=False)["parts"]
    assert muon["state"] and all(each.keys() == {"momentum_buffer"} for each in muon["state"].values())


def test_what_does_not_go_with_a_model_is_refused(folder_of, decoder, tmp_path, capfd):
    text = write_stories(tmp_path / "a.txt")
    folder = folder_of("llama")
    (tmp_path / "arch.json").write_text(ARCH.model_dump_json())
    bare = tmp_path / "bare"
    decoder(geometry("llama")).save_pretrained(bare)
    for words, message in (
        ([folder, "--tokenizer", folder / "tokenizer.json"], "--tokenizer goes with a design"),
        ([folder, "--length", 65], "--length 65 is more than the model's context, 64"),
        ([tmp_path / "arch.json", "--lora", 4], "--lora goes with a trained model"),
        ([folder, "--lora", -1], "--lora -1 must be"),
        ([folder, "--lora", 100_000], "--lora 100000 is more than the model's width, 64"),
        ([folder, "--set", "optimizer=sgd"], "--set optimizer=sgd must be adamw or muon"),
        ([folder, "--set", "momentum=0.9"], "--set momentum=0.9 is not known: give NAME=VALUE, with one of optimizer,"),
        ([folder, "--set", "evaluations=2.5"], "--set evaluations=2.5: '2.5' must be an integer"),
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
