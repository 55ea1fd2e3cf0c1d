"""config.json judged by its text alone: a model that is not exported is refused before torch and transformers are
imported, which takes seconds.

A model of text and images has its decoder of text in `text_config`. Only that decoder is read.
"""

import re
from collections.abc import Mapping
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple

from merino_edge.families.checkpoint import CONFIG, COPY_AGAIN, check_not_quantized
from merino_edge.families.equal_layers import EqualLayers
from merino_edge.families.registry import FAMILIES
from merino_edge.families.rotary import PART
from merino_edge.families.zoo import Model, load_models
from merino_edge.storage.faults import shortened
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json

# By `model_type` of a model of text and images: keys of its decoder of text that `text_config` may leave out. Without
# images the positions of Qwen2-VL are those of Qwen2.
MULTIMODAL: Mapping[str, dict[str, Any]] = {
    "gemma3": {"model_type": "gemma3_text"}, "gemma3n": {"model_type": "gemma3n_text"},
    "idefics3": {"model_type": "llama", "rms_norm_eps": 1e-5}, "smolvlm": {"model_type": "llama", "rms_norm_eps": 1e-5},
    "qwen2_vl": {"model_type": "qwen2"}, "qwen2_5_vl": {"model_type": "qwen2"}, "mistral3": {"model_type": "mistral"},
}  # fmt: skip
SAME = dict.fromkeys(("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"), "qwen2")
OUTER = ("tie_word_embeddings", "eos_token_id", "bos_token_id")  # keys that may stand beside `text_config`
OTHER_KEYS = re.compile(r"(image|video|vision|audio|boi|eoi|boa|eoa|mm)_\w+")
# Names of weights: of the decoder of text within such a model, and of its other parts.
TEXT_WEIGHTS = {
    r"^(model\.)?language_model\.lm_head\.": "lm_head.", r"^(model\.)?(language|text)_model\.(model\.)?": "model.",
}  # fmt: skip
OTHER_WEIGHTS = re.compile(
    r"(model\.)?(vision_\w+|visual|audio_\w+|multi_modal_projector|connector|embed_vision|embed_audio)\."
)


class Judged(NamedTuple):
    """A config.json that was judged: `words` are those of the decoder of text, `inner` whether it is within a model of
    text and images."""

    kind: str
    words: dict[str, Any]
    inner: bool


def judged_config(folder: Path) -> Judged:
    """Read the config.json of a folder. Loads neither torch nor transformers.

    Raise MerinoError for an unknown family, for quantized weights, and for a switch or a kind of layer that the
    family's graph builder does not have, with the next step.
    """
    path = folder / CONFIG
    content = read_json(str(path), COPY_AGAIN)
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind is None:
        raise MerinoError(f"{path} has no model_type, which names the family: {', '.join(FAMILIES)}. {COPY_AGAIN}")
    check_not_quantized(content, path)
    judged = text_decoder(str(kind), content)
    if judged.kind not in FAMILIES:
        raise MerinoError(
            f"{folder} is a {shortened(repr(judged.kind))} model: exported are {', '.join(FAMILIES)}."
            f" {nearest(judged.kind)}"
        )
    family, layers = FAMILIES[judged.kind], judged.words.get("layer_types")
    faults = switch_faults(judged.kind, {key: value for key, value in judged.words.items() if value is not None})
    if not faults and layers and issubclass(family.geometry, EqualLayers):
        faults = family.geometry.layers_fault("full_attention" if layer == "attention" else layer for layer in layers)
    if faults:
        raise variant(folder, judged.kind, faults)
    return judged


def text_decoder(kind: str, content: Mapping[str, Any]) -> Judged:
    """Return the decoder of text of a model of text and images; of another model the model itself."""
    inner = content.get("text_config")
    if kind in FAMILIES or not (inner or kind in MULTIMODAL):
        return Judged(kind, dict(content), inner=False)
    outer = {key: content[key] for key in OUTER if content.get(key) is not None}
    words = {**MULTIMODAL.get(kind, {}), **outer, **(inner or content)}
    if "tie_word_embeddings" in outer:  # the head is the outer model's
        words["tie_word_embeddings"] = outer["tie_word_embeddings"]
    kind = str(words.get("model_type", kind))
    words["model_type"] = SAME.get(kind, kind)
    for key in ("rope_scaling", "rope_parameters"):
        if "mrope_section" in (words.get(key) or {}):
            theta = words[key].get("rope_theta", words.get("rope_theta"))
            part = {PART: words[key][PART]} if PART in words[key] else {}
            words[key] = {"rope_type": "default", "rope_theta": theta, **part}
    words = {key: value for key, value in words.items() if not OTHER_KEYS.fullmatch(key)}
    return Judged(words["model_type"], words, inner=True)


def switch_faults(kind: str, values: Mapping[str, Any]) -> str:
    """Return the keys with a value that the family's graph builder does not have; empty if there is none."""
    faults = []
    for key, value in FAMILIES[kind].supported.items():
        allowed = value if isinstance(value, tuple) else (value,)
        found = values.get(key, allowed[0])
        if found not in allowed and not (found is None and value is False):
            faults.append(f"{key} is {shortened(repr(found))}, supported is {' or '.join(map(repr, allowed))}")
    return "; ".join(faults)


def variant(source: Path | str, kind: str, faults: str) -> MerinoError:
    """Return the refusal of a variant of a known family."""
    return MerinoError(f"{source} is a variant of {kind} that is not exported: {faults}. {nearest(kind)}")


def nearest(kind: str) -> str:
    """Return which model of the catalog is of the nearest family, by the beginning of its name, and its export."""

    def shared(model: Model) -> int:
        return len(commonprefix([kind, model.family]))

    model = max(load_models(), key=shared)
    if shared(model) < 3:
        model = next(iter(load_models()))
    return f"The nearest model that works is {model.name}: `merino-edge export {model.id} -o {model.id}-bundle`"
