"""Which keys of a config.json there may be: a key that is not known may change what the model computes."""

from collections.abc import Collection, Mapping
from typing import Any

from merino_edge.storage.faults import shortened

# Of training, of output, of other programs, and ids that are read elsewhere: none of these changes the logits.
HARMLESS = frozenset({
    "_name_or_path", "architectures", "attention_dropout", "auto_map", "bos_token_id", "chunk_size_feed_forward",
    "classifier_dropout", "dtype", "eos_token_id", "id2label", "initializer_range", "is_decoder", "is_encoder_decoder",
    "is_llama_config", "label2id", "model_type", "output_attentions", "output_hidden_states", "output_past",
    "pad_token_id", "prefix", "pretraining_tp", "problem_type", "return_dict", "task_specific_params", "torch_dtype",
    "transformers.js_config", "transformers_version", "unk_token_id", "use_cache",
})  # fmt: skip


def unknown_keys(content: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """`key is value`, for each key of config.json that is neither in `known` nor harmless. A null says nothing."""
    return [
        f"{shortened(key)} is {shortened(repr(value))}" for key, value in content.items()
        if value is not None and key not in known and key not in HARMLESS
    ]  # fmt: skip
