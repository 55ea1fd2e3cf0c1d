"""Loads a SOURCE: a checkpoint's folder, a GGUF, a design.json, an architecture's JSON, a bundle in fp32 or int8, or a
name of the zoo or the hub. Each becomes a `Source`: a geometry and a torch model."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from merino_edge.bundles.files import is_bundle
from merino_edge.bundles.source_name import DesignFile, FoundSource, find_source
from merino_edge.design.design_file import DESIGN, Design, load_design
from merino_edge.export.dialects.graph import MODEL_FILE
from merino_edge.export.dialects.tiles import floats_of
from merino_edge.export.memory import room_for
from merino_edge.export.parity import MOST_LOGIT_ERROR, MOST_RMS_ERROR, bundle_error, torch_greedy
from merino_edge.families.checkpoint import ChatTemplate, trained_name
from merino_edge.families.geometry import Geometry
from merino_edge.families.gguf.checkpoint import GgufCheckpoint, read_gguf
from merino_edge.families.hub import HubModel, fetch
from merino_edge.families.hugging_face import SEED, TOKENIZER, Checkpoint, random_model, read_checkpoint
from merino_edge.families.registry import family_of, read_geometry
from merino_edge.families.weights import BlockSource, GraphWeights, Layout, model_weights
from merino_edge.families.zoo import Model
from merino_edge.text.rows import spread_rows
from merino_edge.text.tokenizer import load_tokenizer
from merino_runtime.bundle import Bundle, cache_formats, load_bundle, quantized_cache
from merino_runtime.bundle.verified import check_external_data
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_text


class Source(NamedTuple):
    """A model to export. `weights` is `trained` or `random`; `design` is the design that it was made from, if any."""

    name: str
    arch: Geometry
    model: PreTrainedModel
    weights: str
    weights_source: str
    stop_ids: tuple[int, ...]
    tokenizer: Path | str | None  # tokenizer.json, or the text of one
    design: Design | None = None
    bundle: Bundle | None = None  # the bundle that it was read from
    chat: ChatTemplate | None = None
    blocks: BlockSource | None = None  # the matrices of a GGUF, as stored

    @property
    def family(self) -> str:
        return family_of(self.arch).name


def load_source(
    what: str | FoundSource, weights: Path | None = None, say: Callable[[str], None] = lambda _: None, *,
    random: bool = False,
) -> Source:  # fmt: skip
    """Load the model that `what` names, or that `find_source` returned for it.

    `weights`, `random`: for a model of the zoo, such as `opt-350m`, a local Hugging Face folder or random weights. By
    default the published weights, from the hub or its cache; `say` gets a line on a download.

    Raises MerinoError if `what` is no source, is ambiguous, or does not load.
    """
    source = find_source(what, weights, random=random) if isinstance(what, str) else what
    if isinstance(source, Model):
        if random:
            return random_source(source.geometry, source.id, say)
        return load_zoo_model(source, weights, say) if weights else load_published(HubModel(source.hub), source.id, say)
    if isinstance(source, HubModel):
        return load_published(source, source.name.rpartition("/")[2], say)
    if isinstance(source, DesignFile):
        return random_source(source.geometry, source.name, say)._replace(design=source.design)
    if source.is_file():
        return load_gguf(source, say)
    return load_bundle_source(source, say) if is_bundle(source) else load_checkpoint(source, say)


def graph_weights(source: Source) -> GraphWeights:
    """Return the weights of the model's state dict, float32, in the layout of the graph."""
    return model_weights(source.model, source.arch.layout)


def not_finite(model: PreTrainedModel, name: str) -> MerinoError:
    """Return the error for a model whose logits are not finite."""
    wrong = [key for key, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return MerinoError(
            f"the weights of {name} hold values that are not finite, in {wrong[0]}{more}: copy or download them again,"
            " or, if they were trained here, train with a lower --learning-rate"
        )
    return MerinoError(f"the logits of {name} are not finite although its weights are: export another model")


def random_source(arch: Geometry, name: str, say: Callable[[str], None] = lambda _: None) -> Source:
    """Return a geometry with random weights, the same at each call. Speed does not depend on the values."""
    with room_for(arch, name, say):
        model = random_model(arch)
    return Source(name, arch, model, "random", f"random, seed {SEED}", stop_ids=(), tokenizer=None)


def load_published(model: HubModel, name: str, say: Callable[[str], None]) -> Source:
    """Load a model of the hub with its weights."""
    return load_checkpoint(fetch(model, say), say)._replace(name=name, weights_source=f"hub {model.name}", design=None)


def load_zoo_model(known: Model, folder: Path, say: Callable[[str], None] = lambda _: None) -> Source:
    """Load a model of the zoo with its published weights, from a local Hugging Face folder."""
    checkpoint = read_checkpoint(folder, lambda geometry: room_for(geometry, known.id, say), say)
    remedy = f"Give a folder of {known.id} by --set weights=FOLDER"
    family = family_of(checkpoint.geometry).name
    if family != known.family:
        raise MerinoError(f"{folder} is a {family!r} model, {known.id} is {known.family!r}. {remedy}")
    if checkpoint.geometry != known.geometry:
        raise MerinoError(
            f"{folder} is not {known.id}: it has {checkpoint.geometry.shape()}, {known.id} has"
            f" {known.geometry.shape()}. {remedy}"
        )
    return trained_source(known.id, checkpoint, f"local folder {folder.name}")


def load_gguf(path: Path, say: Callable[[str], None] = lambda _: None) -> Source:
    """Load a GGUF file: its weights dequantized for torch, and its blocks as stored, which the graph can keep."""
    gguf = read_gguf(path, lambda geometry: room_for(geometry, path.name, say))
    return trained_source(path.stem, gguf, f"file {path.name}")._replace(blocks=gguf.blocks)


def load_checkpoint(folder: Path, say: Callable[[str], None] = lambda _: None) -> Source:
    """Load a trained checkpoint in Hugging Face's layout, with its name and the design that it was trained from."""
    checkpoint = read_checkpoint(folder, lambda geometry: room_for(geometry, folder.name, say), say)
    path = folder / DESIGN
    design = load_design(path) if path.is_file() else None
    made_from = design if design and design.architecture == checkpoint.geometry else None
    source = trained_source(trained_name(folder) or folder.name, checkpoint, f"checkpoint {folder.name}")
    return source._replace(design=made_from)


def trained_source(name: str, checkpoint: Checkpoint | GgufCheckpoint, weights_source: str) -> Source:
    return Source(
        name, checkpoint.geometry, checkpoint.model, "trained", weights_source, stop_ids=checkpoint.stop_ids,
        tokenizer=checkpoint.tokenizer, chat=checkpoint.chat,
    )  # fmt: skip


def load_bundle_source(folder: Path, say: Callable[[str], None] = lambda _: None) -> Source:
    """Load a bundle in fp32 or int8: its weights are read back from its graph."""
    bundle = load_bundle(str(folder))
    source = random_source(read_geometry(bundle.family, bundle.architecture), bundle.name, say)
    recover_weights(bundle, source.model, source.arch.layout)
    tokenizer, chat = folder / TOKENIZER, None
    if bundle.chat:
        path = str(folder / bundle.chat.template)
        text = read_text(path, "a chat template", "Copy or export the bundle again.")
        chat = ChatTemplate(text, bundle.chat.tokens, path)
    return source._replace(
        weights=bundle.weights, weights_source=bundle.weights_source, stop_ids=bundle.stop_ids,
        tokenizer=tokenizer if tokenizer.is_file() else None, bundle=bundle, chat=chat,
    )  # fmt: skip


def recover_weights(bundle: Bundle, model: PreTrainedModel, layout: Callable[[str], Layout | None]) -> None:
    """Fill `model` with the weights in the bundle's graph. `layout`: returns the layout of a weight in the graph.

    The graph's constants carry the names of the state dict. A matrix that a MatMul reads is transposed. Several
    matrices of one input are joined into one constant, with `+` between their names. A head that is not the embedding
    is cut into slices, with the first row's number behind its name. Matrices in tiles of 8 bits are dequantized.

    Raises MerinoError if the bundle is in another format, lacks weights of the model, or computes other logits than it.
    """
    folder = bundle.folder
    in_tiles = (bundle.precision, bundle.dialect) == ("int8", "fused")
    if not in_tiles and (bundle.precision != "fp32" or quantized_cache(bundle)):
        raise MerinoError(
            f"{folder} has {bundle.precision} weights and a KV cache in {cache_formats(bundle)}, from which the model"
            " cannot be recovered: take a bundle in fp32 with --kv fp32, a fused one in int8, or the checkpoint"
        )
    check_external_data(bundle)
    weights, found = model_weights(model, layout), dict[str, np.ndarray]()
    graph = onnx.load(f"{folder}/{MODEL_FILE}").graph
    transposed = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    rows = {tiles: {one.name: one.i for one in node.attribute}["rows"] for node in graph.node
            for tiles in node.input if node.op_type in ("MatMul8", "Rows8")}  # fmt: skip
    slices: dict[str, dict[int, np.ndarray]] = defaultdict(dict)  # by embedding and number of the slice's first row
    for constant in graph.initializer:
        value = numpy_helper.to_array(constant)
        value = value.T if constant.name in transposed else value  # [out, in], as in the state dict
        joined = constant.name
        if joined in rows:
            joined, value = joined.removesuffix(".tiles"), floats_of(value, rows[joined])
        names, (table, _, row) = joined.split("+"), joined.rpartition(".")
        if set(names) <= set(weights):
            ends = np.cumsum([len(weights[name]) for name in names])[:-1]
            found |= dict(zip(names, np.split(value, ends), strict=True))
        elif table in set(weights) and row.isdecimal():
            slices[table][int(row)] = value
    for table in slices.keys() - found.keys():
        found[table] = np.concatenate([slices[table][row] for row in sorted(slices[table])])
    wrong = set(weights) - found.keys() - set(model.all_tied_weights_keys)
    wrong |= {name for name, value in found.items() if value.shape != weights[name].shape}
    if wrong:
        some = ", ".join(sorted(wrong)[:5])
        raise MerinoError(f"{folder} does not hold the model it describes: its graph lacks {some}. Export it again")
    for name, value in found.items():
        weights[name] = value

    # Equal weights do not suffice: torch has constants such as the base of the rotary frequencies from bundle.json, and
    # the graph has its own copy.
    prompt_ids, greedy_ids = bundle.golden.prompt_ids, list(bundle.golden.greedy_ids)
    if not prompt_ids or not greedy_ids:
        return
    decoded = torch_greedy(model, prompt_ids, len(greedy_ids))
    error, allowed = bundle_error(bundle, decoded), MOST_RMS_ERROR["int8"] if in_tiles else MOST_LOGIT_ERROR
    if not in_tiles and decoded.greedy_ids != greedy_ids or not error <= allowed:
        raise MerinoError(
            f"{folder}: bundle.json and the graph do not belong together. The model that bundle.json describes, with"
            f" the graph's weights, decodes the golden prompt to {decoded.greedy_ids} instead of {greedy_ids}, and its"
            f" logits differ by {error:.1e}, relative, allowed is {allowed:.0e}. Export from the checkpoint"
            " instead"
        )


def text_rows(source: Source, text: Path, length: int, tokens: int) -> torch.Tensor:
    """Return rows of ids [n, length], `tokens` ids at most, sampled evenly from the text. Raises MerinoError if the
    text cannot be read or is too short, or if the source has no tokenizer."""
    if source.tokenizer is None:
        raise MerinoError(f"--text {text}: {source.name} has no tokenizer. Export without --text")
    return spread_rows(text, tokenizer_of(source), length, tokens, "--text")


def tokenizer_of(source: Source) -> Tokenizer:
    """Return the tokenizer of a source, which must have one."""
    assert source.tokenizer is not None, source.name
    return load_tokenizer(source.tokenizer)
