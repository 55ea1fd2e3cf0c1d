"""Reads the fields of a request's body. A wrong value is refused with the field's name, and so is a field that the
server does not implement. Unknown fields are ignored."""
import json
from typing import Any, Dict, List, Optional, Tuple

from merino_runtime.io.json_file import value_of
from merino_runtime.io.json_shape import shown
from merino_runtime.sampling import RANGES
from merino_runtime.serving.requests import RefusedError

Body = Dict[str, Any]
MOST_STOPS = 16
MOST_BIASES = 1024
MOST_VALUES = 2 ** 18  # per body; parsed values take up to 60 times its bytes
# Field -> values that request nothing, besides null, false and what is empty.
UNSUPPORTED: Dict[str, Tuple[Any, ...]] = {
    # Grammars.
    "grammar_lazy": (), "grammar_triggers": (), "guided_whitespace_pattern": (), "structural_tag": (),
    # Samplers and bounds on tokens.
    "mirostat": (0,), "typical_p": (1, 0), "typ_p": (1, 0), "tfs_z": (1,),
    "xtc_probability": (0,), "top_n_sigma": (-1, 0), "dynatemp_range": (0,), "min_tokens": (0,), "bad_words": (),
    "allowed_token_ids": (), "use_beam_search": (), "length_penalty": (1,), "truncate_prompt_tokens": (),
    # Parts of other interfaces.
    "functions": (), "function_call": ("auto", "none"), "suffix": (), "lora": (), "images": (), "audio": (),
    "web_search_options": (), "previous_response_id": (), "conversation": (), "background": (), "prompt_template": (),
    "context": (),
}


def body_of(data: bytes) -> Body:
    """Parse the JSON object of a request's body."""
    values = sum(map(data.count, (b",", b"[", b"{", b":")))  # at least as many
    if values > MOST_VALUES:
        raise RefusedError(f"the body may have {values:,} values, allowed are {MOST_VALUES:,}. Send less.", 413)
    try:
        value = value_of(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RefusedError(f"the body is not UTF-8 (byte {error.start}): convert it.") from error
    except ValueError as error:
        raise RefusedError(f"the body is not JSON that can be read: {error}. Correct it.") from error
    if not isinstance(value, dict):
        raise RefusedError(f"the body is {shown(value)}, it must be a JSON object.")
    return value


def check_fields(body: Body) -> None:
    """Raise RefusedError for a field that requests what is not implemented."""
    for name, neutral in UNSUPPORTED.items():
        value = body.get(name)
        if value and value not in neutral:
            raise RefusedError(f"{name} is not supported by this server, and ignoring it would change the answer. "
                               "Leave it out.", param=name, code="unsupported_parameter")


def wrong(name: str, value: Any, allowed: str) -> RefusedError:
    return RefusedError(f"{name} is {json.dumps(value)[:80]}, allowed: {allowed}.", param=name)


def number(body: Body, name: str, default: Any, low: float, high: float) -> Any:
    """Return a number in a range; the default if the field is absent or null."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise wrong(name, value, f"a number from {low:g} to {high:g}")
    return value


def integer(body: Body, name: str, default: Any, low: float, high: float) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, float) and value == int(value):  # as JavaScript may write it
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise wrong(name, value, f"an integer from {low} to {high}")
    return value


def flag(body: Body, name: str, default: bool = False) -> bool:
    return bool(_typed(body, name, bool, "true or false", default))


def text(body: Body, name: str, default: Optional[str] = None) -> Any:
    return _typed(body, name, str, "a string", default)


def an_object(body: Body, name: str) -> Body:
    return _typed(body, name, dict, "an object", {})


def a_list(body: Body, name: str) -> List[Any]:
    return _typed(body, name, list, "a list", [])


def _typed(body: Body, name: str, kind: type, allowed: str, default: Any) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise wrong(name, value, allowed)
    return value


def stops(body: Body, name: str = "stop") -> Tuple[str, ...]:
    value = body.get(name)
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > MOST_STOPS or any(
            not isinstance(stop, str) or not stop for stop in texts):
        raise wrong(name, value, f"a string, or a list of up to {MOST_STOPS} strings")
    return tuple(texts)


def logit_bias(body: Body) -> Tuple[Tuple[int, float], ...]:
    biases = an_object(body, "logit_bias")
    if len(biases) > MOST_BIASES:
        raise RefusedError(f"logit_bias has {len(biases)} ids, allowed are {MOST_BIASES}.", param="logit_bias")
    for token_id in biases:
        if not (token_id.isdigit() and len(token_id) < 10):
            raise wrong("logit_bias", token_id, "an object of token ids and numbers")
    return tuple((int(token_id), float(number(biases, token_id, 0, *RANGES["logit_bias"]))) for token_id in biases)


def texts_of(content: Any, name: str) -> str:
    """Return the text of a message's content: a string, null, or a list of text parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise wrong(name, content, "a string, or a list of text parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
            raise RefusedError(f"{name} has a part of type {json.dumps(kind)[:40]}: give text alone, as "
                          '{"type": "text", "text": ...}.', param=name)
        texts.append(part["text"])
    return "".join(texts)
