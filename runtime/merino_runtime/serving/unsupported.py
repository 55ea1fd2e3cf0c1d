"""What the server does not implement and refuses by name, because an answer that ignores it would be a wrong one."""
from typing import Any, Dict, Tuple

from merino_runtime.serving.requests import RefusedError

# Field -> values that request nothing, besides null, false and what is empty.
FIELDS: Dict[str, Tuple[Any, ...]] = {
    # Grammars.
    "grammar": (), "guided_choice": (), "guided_grammar": (), "guided_regex": (), "structured_outputs": (),
    "structural_tag": (),
    # Samplers and bounds on tokens.
    "mirostat": (0,), "typical_p": (1, 0), "typ_p": (1, 0), "tfs_z": (1,),
    "xtc_probability": (0,), "top_n_sigma": (-1, 0), "dynatemp_range": (0,), "min_tokens": (0,), "bad_words": (),
    "allowed_token_ids": (), "use_beam_search": (), "length_penalty": (1,), "truncate_prompt_tokens": (),
    # Parts of other interfaces.
    "functions": (), "function_call": ("auto", "none"), "suffix": (), "lora": (), "images": (), "audio": (),
    "web_search_options": (), "previous_response_id": (), "conversation": (), "background": (), "prompt_template": (),
    "context": (),
}
PATHS = dict.fromkeys(("/v1/embeddings", "/api/embed", "/api/embeddings"), "makes no embeddings")


def check_fields(body: Dict[str, Any]) -> None:
    """Raise RefusedError for a field that requests what is not implemented."""
    for name, neutral in FIELDS.items():
        value = body.get(name)
        if value and value not in neutral:
            raise RefusedError(f"{name} is not supported by this server, and ignoring it would change the answer. "
                               "Leave it out.", param=name, code="unsupported_parameter")


def check_path(path: str) -> None:
    """Raise RefusedError for a path of OpenAI's or Ollama's that is not implemented."""
    if path in PATHS:
        raise RefusedError(f"{path} is not supported: this server {PATHS[path]}. Use another server for it.", 404,
                           code="unsupported_path")
