"""What can be exported: a checkpoint, a design, a bare architecture, a float32 bundle, or OPT by name.

Each becomes a torch model.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, OPTConfig, OPTForCausalLM, PreTrainedModel, set_seed

from merino_edge.design.design_file import Design, load_design
from merino_edge.export.recover import recover_weights
from merino_edge.families.merino.architecture import Architecture
from merino_edge.families.merino.model import MerinoConfig, MerinoForCausalLM
from merino_edge.families.opt.geometry import OPT_125M, OPT_350M, OptArchitecture
from merino_edge.storage.faults import fault_list
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError

DESIGN = "design.json"  # in a checkpoint's folder, where it was trained from one
OPT_NAMES = {"opt-350m": OPT_350M, "opt-125m": OPT_125M}
SEED = 0  # of random weights


class Source(NamedTuple):
    name: str
    family: str
    arch: Architecture | OptArchitecture
    model: PreTrainedModel
    weights: str  # `trained` or `random`
    weights_source: str
    eos_id: int | None
    tokenizer: Path | None
    design: Design | None = None  # what planned for a weight format and thread counts


def load_source(what: str, weights: Path | None = None) -> Source:
    """`weights` is a local Hugging Face folder for a baseline that is named, such as `opt-350m`.

    Raises MerinoError where `what` is none of the kinds or does not load.
    """
    if what in OPT_NAMES:
        return load_opt(weights, what) if weights else random_opt(OPT_NAMES[what], what)
    if weights:
        names = ", ".join(OPT_NAMES)
        raise MerinoError(f"--weights goes with {names}; a checkpoint folder is exported by its own path")
    path = Path(what)
    if is_bundle(path):
        return load_bundle_again(path)
    if path.is_dir():
        return load_checkpoint(path)
    if path.is_file():
        found = read_plan(path)
        design = found if isinstance(found, Design) else None
        return random_merino(read_architecture(path), path.stem)._replace(design=design)
    raise MerinoError(
        f"{what!r} is nothing to export: give a checkpoint folder, a design.json, an architecture's JSON,"
        f" a bundle in fp32, or {', '.join(OPT_NAMES)}"
    )


def read_architecture(path: Path) -> Architecture:
    """From a design.json, or from a file that holds an architecture object alone."""
    found = read_plan(path)
    return found.architecture if isinstance(found, Design) else found


def read_plan(path: Path) -> Design | Architecture:
    """Whichever of the two the file holds."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise MerinoError(f"{path} is not JSON: {error}. Give a design.json or an architecture's JSON") from error
    if isinstance(content, dict) and "architecture" in content:
        return load_design(path)
    try:
        return Architecture.model_validate(content)
    except ValidationError as error:
        raise MerinoError(f"{path} is neither a design.json nor an architecture: {fault_list(error)}") from error


def load_checkpoint(folder: Path) -> Source:
    """A trained checkpoint in Hugging Face's layout, of our family or of OPT's."""
    config = read_config(folder)
    if isinstance(config, OPTConfig):
        return load_opt(folder, folder.name)
    if not isinstance(config, MerinoConfig):
        raise MerinoError(f"{folder} is a {config.model_type!r} model: exported are merino and opt models")
    model = from_pretrained(MerinoForCausalLM, folder)
    return Source(
        folder.name, "merino", config.architecture, model, "trained", f"checkpoint {folder.name}",
        first_id(config.eos_token_id), existing(folder / "tokenizer.json"), kept_design(folder, config.architecture),
    )


def kept_design(folder: Path, arch: Architecture) -> Design | None:
    """The design that a checkpoint was trained from, if it is still of this geometry."""
    path = folder / DESIGN
    found = load_design(path) if path.is_file() else None
    return found if found and found.architecture == arch else None


def random_merino(arch: Architecture, name: str) -> Source:
    set_seed(SEED)
    model = MerinoForCausalLM(MerinoConfig.from_architecture(arch)).eval()
    return Source(name, "merino", arch, model, "random", f"random, seed {SEED}", None, None)


def load_bundle_again(folder: Path) -> Source:
    """From a bundle in float32; see `recover`."""
    bundle = load_bundle(str(folder))
    if bundle.family == "opt":
        source = random_opt(OptArchitecture.model_validate(bundle.architecture), bundle.name)
    else:
        source = random_merino(Architecture.model_validate(bundle.architecture), bundle.name)
    recover_weights(folder, source.model)
    return source._replace(
        weights=bundle.weights, weights_source=bundle.weights_source, eos_id=bundle.eos_id,
        tokenizer=existing(folder / "tokenizer.json"),
    )  # fmt: skip


def random_opt(arch: OptArchitecture, name: str) -> Source:
    """The true geometry with random weights: speed does not depend on the values."""
    set_seed(SEED)
    config = OPTConfig(
        hidden_size=arch.width,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads,
        ffn_dim=arch.ffn_width,
        word_embed_proj_dim=arch.embed_width,
        vocab_size=arch.vocab,
        max_position_embeddings=arch.context,
        do_layer_norm_before=arch.pre_norm,
        dropout=0.0,
    )
    return Source(name, "opt", arch, OPTForCausalLM(config).eval(), "random", f"random, seed {SEED}", None, None)


def load_opt(folder: Path, name: str) -> Source:
    config = read_config(folder)
    if not isinstance(config, OPTConfig):
        raise MerinoError(f"{folder} is a {config.model_type!r} model, an opt model is wanted")
    arch = opt_architecture(config, folder)
    if name in OPT_NAMES and arch != OPT_NAMES[name]:
        raise MerinoError(f"{folder} is not {name}: found {arch.shape()}, {name} has {OPT_NAMES[name].shape()}")
    model = from_pretrained(OPTForCausalLM, folder)
    return Source(
        name, "opt", arch, model, "trained", f"local folder {folder.name}",
        first_id(config.eos_token_id), opt_tokenizer(folder),
    )


def opt_architecture(config: OPTConfig, folder: Path) -> OptArchitecture:
    """Raises MerinoError for variants of OPT that the walk does not know."""
    unknown = {
        "activation_function": (config.activation_function, "relu"),
        "enable_bias": (config.enable_bias, True),
        "layer_norm_elementwise_affine": (config.layer_norm_elementwise_affine, True),
        "tie_word_embeddings": (config.tie_word_embeddings, True),
        "_remove_final_layer_norm": (config._remove_final_layer_norm, False),
    }
    faults = [f"{key} is {found!r}, known is {known!r}" for key, (found, known) in unknown.items() if found != known]
    if faults:
        raise MerinoError(f"{folder} is a variant of OPT that is not exported: {'; '.join(faults)}")
    return OptArchitecture(
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        ffn_width=config.ffn_dim,
        embed_width=config.word_embed_proj_dim or config.hidden_size,
        vocab=config.vocab_size,
        context=config.max_position_embeddings,
        pre_norm=config.do_layer_norm_before,
    )


def opt_tokenizer(folder: Path) -> Path | None:
    """tokenizer.json; made from vocab.json and merges.txt where the folder has only those."""
    if not (folder / "tokenizer.json").is_file() and (folder / "merges.txt").is_file():
        raise MerinoError(
            f"{folder} has merges.txt but no tokenizer.json: write one with"
            " transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return existing(folder / "tokenizer.json")


def read_config(folder: Path) -> Any:
    """Of a local folder: transformers would look on the network for one that is not there."""
    if not (folder / "config.json").is_file():
        raise MerinoError(
            f"{folder} is no checkpoint: it has no config.json. `merino-edge train -o` writes one, and so do models"
            " downloaded from Hugging Face"
        )
    try:
        return AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise MerinoError(f"{folder / 'config.json'} does not load: {error}") from error


def from_pretrained(kind: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    """Load in float32. A weight that is missing would be made up at random: that is an error."""
    try:
        loaded: Any = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except (ValueError, OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise MerinoError(f"the weights in {folder} do not load: {error}") from error
    model, info = loaded
    wrong = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
    if wrong or info["mismatched_keys"]:
        raise MerinoError(f"the weights in {folder} do not fit its config.json: {', '.join(wrong[:5])} ...")
    return model.eval()


def first_id(eos: int | list[int] | None) -> int | None:
    return eos[0] if isinstance(eos, list) else eos


def is_bundle(folder: Path) -> bool:
    return (folder / "bundle.json").is_file()


def existing(path: Path) -> Path | None:
    return path if path.is_file() else None
