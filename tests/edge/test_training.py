"""Training from text to a checkpoint: it learns, it is recorded, unusable text is refused."""

import hashlib
import json
import math

import pytest
import torch
from sample_models import ARCH, story, write_stories
from tokenizers import Tokenizer, processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from merino_edge.families.designed import Architecture
from merino_edge.families.designed_torch import MerinoForCausalLM
from merino_edge.families.hugging_face import build_model
from merino_edge.text.documents import END_OF_TEXT, read_texts
from merino_edge.text.rows import packed_rows
from merino_edge.text.tokenizer import end_id, load_tokenizer, train_tokenizer
from merino_edge.training import train as training
from merino_edge.training.dataset import split
from merino_edge.training.optimizer import optimizer_for
from merino_edge.training.recipe import Recipe
from merino_edge.training.shards import Tokenization, load_shard
from merino_edge.training.sources import read_sources
from merino_edge.training.train import train
from merino_runtime.errors import MerinoError

RECIPE = Recipe(steps=300, batch=4, learning_rate=3e-3)
SMALL = Recipe(steps=1, batch=2)


def test_matrices_begin_by_their_inputs_and_what_adds_to_the_stream_smaller_by_the_number_of_branches():
    """Shared layers count at each use; norms and embedding begin as they did."""
    blocks = ({"width": 64, "ffn_ratio": 2, "depth": 3, "shared": True}, {"width": 128, "ffn_ratio": 1, "depth": 5})
    arch = Architecture.model_validate({"blocks": blocks, "vocab": 300, "head_size": 16, "context": 32})
    model = build_model(arch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.initialize_matrices()
    for name, weight in model.named_parameters():
        if weight.ndim != 2 or name == "embed_tokens.weight":
            assert torch.equal(weight, before[name])
            continue
        branches = 2 * 8 if name.endswith(("attention.out.weight", "down.weight")) else 1
        assert float(weight.detach().std() * (branches * weight.shape[1]) ** 0.5) == pytest.approx(1, abs=0.1), name


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 4e-3), ("muon", 1e-2)])
def test_steps_at_one_rate_change_what_a_decoder_computes_by_as_much_at_every_width(optimizer, rate):
    """The coordinate check of muP (arXiv 2203.03466, appendix D.1), of the last layer's output and of the logits. With
    rates that do not follow the widths both grow with them."""
    for by_width in (True, False):
        narrow, wide = (changed_by_steps(width, optimizer, rate, by_width) for width in (64, 512))
        grown = [one / other for one, other in zip(wide, narrow, strict=True)]
        assert all(1 / 1.5 < each < 1.5 if by_width else each > 1.5 for each in grown)


def changed_by_steps(width, optimizer, rate, by_width):
    """RMS of what four steps change in the last layer's output, and in the logits."""
    torch.manual_seed(0)
    block = {"width": width, "ffn_ratio": 2, "depth": 3}
    arch = Architecture.model_validate({"blocks": [block], "vocab": 300, "head_size": 32, "context": 64})
    model, ids, given = build_model(arch), torch.randint(300, (8, 64)), []
    model.initialize_matrices()
    steps = optimizer_for(model, Recipe(optimizer=optimizer, learning_rate=rate), by_width)
    model.norm.register_forward_pre_hook(lambda _, inputs: given.append([inputs[0].detach()]))
    for _ in range(5):
        logits = model(input_ids=ids, use_cache=False).logits
        given[-1].append(logits.detach())
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        steps.step()
        steps.zero_grad()
    return [float((after - before).square().mean().sqrt()) for before, after in zip(given[0], given[-1], strict=True)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_stories(tmp_path_factory.mktemp("data") / "stories.txt")


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """(folder, record) of a run without interruption."""
    out = tmp_path_factory.mktemp("run") / "checkpoint"
    return out, train(ARCH, [text], out, recipe=RECIPE)


def test_the_loss_falls_below_what_the_frequencies_of_tokens_give(finished, text):
    folder, record = finished
    losses = [entry["loss"] for entry in record["losses"] if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(ARCH.vocab), rel=0.05)
    rows = packed_rows(read_texts([text])[0], Tokenizer.from_file(str(folder / "tokenizer.json")), ARCH.context)
    shares = torch.bincount(rows.flatten()) / rows.numel()
    unigram = -sum(share * math.log(share) for share in shares.tolist() if share)
    assert sum(losses[-10:]) / 10 < 0.6 * unigram
    assert record["held_out_loss"] < 0.6 * unigram


def test_a_checkpoint_has_the_layout_of_the_ecosystem_and_its_record(finished, text):
    folder, record = finished
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json"} <= {
        path.name for path in folder.iterdir()
    }
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.architecture == ARCH
    assert model.config.eos_token_id == model.config.bos_token_id == tokenizer.eos_token_id == 0
    assert len(tokenizer) == ARCH.vocab
    ids = tokenizer("the miller counts é flour.")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the miller counts é flour."
    assert ids[0] == 0
    assert json.loads((folder / "training.json").read_text()) == json.loads(json.dumps(record))
    content = text.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    assert record["data"] == [{"name": "stories.txt", "bytes": len(content), "sha256": sha256, "weight": None}]
    assert Architecture.model_validate(record["architecture"]) == ARCH and Recipe(**record["recipe"]) == RECIPE
    assert record["seen_tokens"] == 300 * 4 * 32
    assert record["held_out_perplexity"] == pytest.approx(math.exp(record["held_out_loss"]), rel=1e-12)


def test_the_recorded_held_out_loss_is_that_of_the_checkpoint(finished, text):
    folder, record = finished
    tokenization = Tokenization(Tokenizer.from_file(str(folder / "tokenizer.json")))
    trained, held_out = split(load_shard(read_sources([text])[0], tokenization, str), ARCH.context)
    rows = torch.tensor(held_out.ids[: len(held_out.ids) // 32 * 32].astype("int64")).reshape(-1, 32)
    assert record["held_out_tokens"] == rows.numel() and record["train_tokens"] == len(trained.ids) // 32 * 32
    with torch.no_grad():
        loss = MerinoForCausalLM.from_pretrained(folder)(input_ids=rows, labels=rows).loss.item()
    assert record["held_out_loss"] == pytest.approx(loss, rel=1e-4)


def test_held_out_files_take_the_place_of_the_split(text, tmp_path):
    other = tmp_path / "held.txt"
    other.write_text(story(999))
    record = train(ARCH, [text], tmp_path / "out", recipe=SMALL, held_out=[other])
    assert record["held_out"][0]["name"] == "held.txt"
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert record["train_tokens"] == packed_rows(read_texts([text])[0], tokenizer, ARCH.context).numel()


# What tokenizer.json files put around a text: (post-processor, tokens before and after, the token that ends a text).
HUB_FILES = {
    "GPT-2": (processors.ByteLevel(trim_offsets=False), [], [], "<|endoftext|>"),
    "none": (None, [], [], "<|endoftext|>"),
    "beginning": (("<s> $A", ["<s>"]), ["<s>"], [], "<s>"),
    "both": (("<s> $A </s>", ["<s>", "</s>"]), ["<s>"], ["</s>"], "</s>"),
}


def hub_file(path, kind, **without):
    """A tokenizer.json with truncation and padding, as the hub has many."""
    tokenizer = train_tokenizer([story(1)], 290)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    processor = HUB_FILES[kind][0]
    if isinstance(processor, tuple):
        ids = [(name, tokenizer.token_to_id(name)) for name in processor[1]]
        processor = processors.TemplateProcessing(single=processor[0], special_tokens=ids)
    tokenizer.post_processor = processor or processors.Sequence([])
    if not without:
        tokenizer.enable_truncation(16)
        tokenizer.enable_padding(length=64, pad_id=0, pad_token=END_OF_TEXT)
    path.write_text(tokenizer.to_str())
    return path


@pytest.mark.parametrize("kind", HUB_FILES)
def test_a_tokenizer_of_the_hub_gives_all_ids_of_each_document_and_separates_them(kind, tmp_path):
    tokenizer = load_tokenizer(hub_file(tmp_path / "tokenizer.json", kind))
    documents = [story(1), "a child carries water.", story(2)]
    before, after = ([tokenizer.token_to_id(name) for name in side] for side in HUB_FILES[kind][1:3])
    text_ids = [tokenizer.encode(each, add_special_tokens=False).ids for each in documents]
    assert len(text_ids[0]) > 64 > len(text_ids[1])
    between = [] if before or after else [tokenizer.token_to_id("<|endoftext|>")]
    expected = [each for ids in text_ids for each in [*between, *before, *ids, *after]]
    assert packed_rows(documents, tokenizer, 1).flatten().tolist() == expected
    assert tokenizer.id_to_token(end_id(tokenizer)) == HUB_FILES[kind][3]


def test_documents_that_no_token_would_separate_are_refused(text, tmp_path):
    tokenizer = train_tokenizer([story(1)], 290)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"], data["post_processor"] = [], None
    del data["model"]["vocab"][END_OF_TEXT]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(MerinoError, match="60 documents|58 documents|59 documents"):
        train(ARCH, [text], tmp_path / "out", recipe=SMALL, tokenizer_file=tmp_path / "tokenizer.json")


@pytest.mark.parametrize("vocab", [257, 300])
def test_a_tokenizer_has_exactly_the_entries_asked_for_and_spells_any_text(vocab):
    tokenizer = train_tokenizer([story(2), story(3)], vocab)
    assert tokenizer.get_vocab_size() == vocab
    assert tokenizer.token_to_id(END_OF_TEXT) == 0
    odd = "naïve €\n\t 日本語 \U0001f600 \x00"
    assert tokenizer.decode(tokenizer.encode(odd).ids) == odd


def refused(message, data, out, arch=ARCH, **keys):
    with pytest.raises(MerinoError, match=message):
        train(arch, data, out, recipe=SMALL, **keys)


def test_a_vocabulary_that_cannot_be_is_refused(finished, text, tmp_path):
    small, large = (ARCH.model_copy(update={"vocab": vocab}) for vocab in (256, 5000))
    refused("256 is too small, allowed: 257", [text], tmp_path / "a", arch=small)
    refused("5000 was requested.*--vocab 3.. or fewer", [text], tmp_path / "b", arch=large)
    less = ARCH.model_copy(update={"vocab": 270})
    given = finished[0] / "tokenizer.json"
    refused("290 entries, the design's vocabulary 270.*--vocab 290", [text], tmp_path / "c", less, tokenizer_file=given)
    (tmp_path / "torn.json").write_text("{")
    refused("torn.json is not a tokenizer.json", [text], tmp_path / "d", tokenizer_file=tmp_path / "torn.json")


def test_too_little_text_is_refused_and_leaves_nothing_in_the_way(text, tmp_path):
    """The user gives more text and runs the same command again."""
    short = tmp_path / "short.txt"
    short.write_text("the miller counts flour. " * 8)
    out = tmp_path / "out"
    refused("fewer than one sequence of 32", [short], out, arch=ARCH.model_copy(update={"vocab": 260}))
    train(ARCH, [text], out, recipe=SMALL)
    assert (out / "model.safetensors").exists()


class InterruptedAtOnce(training.CheckedTrainer):
    def training_step(self, *_, **__):
        raise KeyboardInterrupt


def test_a_run_begun_again_with_other_data_trains_its_own_tokenizer(text, tmp_path, monkeypatch):
    """The tokenizer of the run that was stopped before its first save is that of other text."""
    other, out = tmp_path / "other.txt", tmp_path / "out"
    other.write_text(END_OF_TEXT.join(story(seed).upper() for seed in range(60)))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "CheckedTrainer", InterruptedAtOnce)
        train(ARCH, [other], out, recipe=SMALL)
    train(ARCH, [text], out, recipe=SMALL)
    expected = train_tokenizer(read_texts([text])[0], ARCH.vocab)
    assert Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab() == expected.get_vocab()


def test_a_folder_in_use_and_a_run_that_is_none_are_refused(text, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    refused("holds other files", [text], tmp_path / "full")
    refused("is a file", [text], text)
    refused("holds no run to resume", [text], tmp_path / "full", resume=True)
    refused("holds no run to resume", [text], tmp_path / "absent", resume=True)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
