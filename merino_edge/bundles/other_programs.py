"""Files of a `fused` bundle for other programs: onnxruntime-genai, transformers.js, optimum.

merino_runtime does not read them. They follow from the geometry, the tokenizer and the chat template, so that a bundle
has them whatever its source was. Which program takes which graph: docs/decisions/export.md.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from merino_edge.bundles.description import ModelFacts
from merino_edge.families.family import TRANSFORMERS
from merino_edge.families.operators import caches_inputs, has_states
from merino_edge.families.registry import family_of

GENAI, CONFIG, TOKENIZER_CONFIG = "genai_config.json", "config.json", "tokenizer_config.json"
LIBRARY = "kernels.so"  # this project's operators, copied there by the user for the machine at hand


def files_for_others(
    model: ModelFacts, inputs: Iterable[str], context: int, tokenizer: Path | str | None, template: str | None,
    library: bool = False,
) -> dict[str, str]:  # fmt: skip
    """Texts by the names of their files. `inputs`: names of the graph's; `context` in tokens; `tokenizer`: a
    tokenizer.json that the runtime can read, or the text of one; `template`: the chat template's text; `library`:
    whether the graph has this project's operators, which transformers.js and optimum cannot load.
    """
    if has_states(model.geometry.operators):  # none of these programs binds them
        return {}
    files = {GENAI: genai_config(model, set(inputs), context, library)}
    config = None if library else hugging_face_config(model, context)
    if config:
        files[CONFIG] = config
    if tokenizer:
        text = tokenizer if isinstance(tokenizer, str) else tokenizer.read_text(encoding="utf-8")
        files[TOKENIZER_CONFIG] = tokenizer_config(model, text, context, template)
    return {name: json.dumps(content, indent=1) + "\n" for name, content in files.items()}


def genai_config(model: ModelFacts, inputs: set[str], context: int, library: bool) -> dict[str, Any]:
    """onnxruntime-genai's description of a decoder, as its version 0.18 reads it. It looks for LIBRARY in the folder
    of the bundle.

    Heads, widths and the length of a head are those of one layer. genai takes each layer's own from the graph.
    """
    geometry = model.geometry
    layers, (kv_heads, head_size) = geometry.layer_shapes, max(geometry.kv_layers)
    named = [name for name in ("input_ids", "attention_mask", "position_ids") if name in inputs]
    decoder: dict[str, Any] = {
        "filename": "model.onnx",
        "session_options": {"provider_options": [], **({"custom_ops_library": LIBRARY} if library else {})},
        "hidden_size": layers[0].width,
        "num_attention_heads": layers[0].heads,
        "num_key_value_heads": kv_heads,
        "head_size": head_size,
        "num_hidden_layers": len(geometry.kv_layers),
        "inputs": {
            **{name: name for name in named},
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    stops = list(model.stop_ids)
    return {
        "model": {
            "type": "decoder",
            "eos_token_id": stops,
            "pad_token_id": stops[0] if stops else 0,
            "vocab_size": geometry.vocab,
            "context_length": context,
            "decoder": decoder,
        },
        # One buffer for past and present, of max_length positions.
        "search": {"max_length": context, "past_present_share_buffer": True},
    }


def hugging_face_config(model: ModelFacts, context: int) -> dict[str, Any] | None:
    """transformers' configuration; None for a family that transformers does not have, and for a graph that caches
    inputs of convolutions, which requires a cache of full length.

    The version of transformers is left out: a bundle's bytes, and so its hash, do not depend on it.
    """
    family = family_of(model.geometry)
    if family.module != TRANSFORMERS or caches_inputs(model.geometry.operators):
        return None
    stops = list(model.stop_ids)
    config = family.config_of(
        model.geometry, bos_token_id=None, eos_token_id=stops or None, pad_token_id=stops[0] if stops else None,
        architectures=[family.model_name],
    )  # fmt: skip
    config.max_position_embeddings = context
    content = config.to_dict()
    content.pop("transformers_version", None)
    return dict(sorted(content.items()))


def tokenizer_config(model: ModelFacts, tokenizer: str, context: int, template: str | None) -> dict[str, Any]:
    """tokenizer_config.json. Its special tokens are the chat template's; without a template, BOS is the token that the
    tokenizer puts before a text, and EOS is the first stop token."""
    known = Tokenizer.from_str(tokenizer)
    known.no_truncation()
    known.no_padding()
    encoded = known.encode("a")
    first = encoded.ids[:1] if encoded.special_tokens_mask[:1] == [1] else []
    content: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    content["clean_up_tokenization_spaces"] = False
    for name, ids in (("bos_token", first), ("eos_token", model.stop_ids[:1])):
        if ids and known.id_to_token(ids[0]) is not None:
            content[name] = known.id_to_token(ids[0])
    if model.chat:
        content |= model.chat.tokens
        content |= {} if template is None else {"chat_template": template}
    # genai's tokenizer does not read tokenizer.json's post-processor, which adds BOS.
    content["add_bos_token"] = bool(first) and content.get("bos_token") == known.id_to_token(first[0])
    return content
