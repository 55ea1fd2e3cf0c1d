"""Bundles of small random models that talk, for the tests of `chat`. Needs the workstation's side."""

import json
import shutil
from pathlib import Path

import chat_templates

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|eot_id|>", "<end_of_turn>")
TEXT = "The river runs past the old mill, and the miller counts the sacks of flour in the evening. "
LONGEST = 16384  # of which an answer fills no part unseen


def make_checkpoint(folder, decoder, template=chat_templates.CHATML, stops=(0, 2)):
    """A checkpoint with a tokenizer that has the marks of chat templates; ids of MARKS are their places."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    from merino_edge.families.designed import Architecture

    arch = Architecture(
        blocks=({"width": 64, "ffn_ratio": 1.0, "depth": 2},), vocab=320, head_size=32, context=LONGEST
    )
    decoder(arch, seed=3).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = [AddedToken(mark, special="think" not in mark, normalized=False) for mark in MARKS]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=marks, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(chat_templates.TOKENS))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(stops)}))
    return folder


def make_bundle(folder, decoder, dialect="portable", context=256, embeddings=False, adapters=(), **options):
    from sample_models import adapted

    from merino_edge.export.export import export
    from merino_edge.export.request import ExportRequest
    from merino_edge.export.source import load_source

    checkpoint = Path(str(folder) + "-checkpoint")
    checkpoint.mkdir()
    make_checkpoint(checkpoint, decoder, **options)
    source = load_source(str(checkpoint))
    for seed, path in enumerate(adapters):
        adapted(source.model, path, seed, r=4, target_modules="all-linear")
    request = ExportRequest(dialect=dialect, context=context, embeddings=embeddings, adapters=tuple(adapters))
    return export(source, folder, request).folder


def copied_checkpoint(checkpoint, folder, template):
    shutil.copytree(checkpoint, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder
