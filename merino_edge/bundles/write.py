"""Fills a bundle's folder: graph and weights, tokenizer, bundle.json, the board's application."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from merino_edge.bundles.board_app import write_board_app
from merino_edge.bundles.description import (
    RUNTIME_CHOOSES,
    GraphFacts,
    GraphFormat,
    ModelFacts,
    describe,
    write_description,
)
from merino_edge.bundles.files import APP_FILE, TOKENIZER_FILE
from merino_edge.storage.atomic import write_text
from merino_runtime.bundle import Bundle, Golden, Threads


class SavedGraph(GraphFacts, Protocol):
    """A graph that can write itself, with its weights, into a folder."""

    def save(self, folder: Path) -> None: ...


def write_bundle(
    folder: Path, model: ModelFacts, graph: SavedGraph, form: GraphFormat, golden: Golden, *,
    threads: Threads = RUNTIME_CHOOSES, tokenizer: Path | str | None = None, template: str | None = None,
    beside: Mapping[str, str] = MappingProxyType({}),
) -> Bundle:  # fmt: skip
    """Fill the empty `folder` and return its description.

    `tokenizer`: a tokenizer.json to copy, or the text of one; None where there is none.
    `template`: the text of the chat template that `model.chat` is of. `beside`: texts of further files by their names.
    """
    graph.save(folder)
    if isinstance(tokenizer, str):
        (folder / TOKENIZER_FILE).write_text(tokenizer, encoding="utf-8")
    elif tokenizer:
        shutil.copyfile(tokenizer, folder / TOKENIZER_FILE)
    if model.chat and template is not None:
        (folder / model.chat.template).write_text(template, encoding="utf-8", newline="")
    for name, text in beside.items():
        write_text(folder / name, text)
    bundle = describe(folder, model, graph, form, golden, threads)
    write_description(bundle)
    write_board_app(folder / APP_FILE)
    return bundle
