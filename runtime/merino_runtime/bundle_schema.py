"""The schema of bundle.json: its keys, and what each value must be. Standard library only.

All problems of a file are found at once; `bundle` raises them as one error. What the keys mean: docs/formats.md.
"""
import json
import re
from typing import Any, Callable, Dict, List, Optional

SCHEMA = 1
# Beyond these no machine runs a bundle, and sums of them no longer fit the numbers of other programs.
LONGEST_CONTEXT = LARGEST_VOCAB = 2 ** 24
LARGEST_LAYER = 2 ** 14  # heads, and channels of a head
LARGEST = 2 ** 53  # to which JSON's numbers are exact everywhere
MOST_THREADS = 1024
CACHE_BYTES = {"float16": 2, "float32": 4}
LONGEST_TEXT = 1000  # characters
MOST_LISTED = 50  # problems of one message
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")  # would break a message's line, or steer a terminal


def problems_of(description: Any) -> List[str]:
    """In words, one for each wrong key or value; contradictions between values only where each value is valid."""
    problems: List[str] = []
    _check(description, BUNDLE_SHAPE, "", problems)
    return problems or _contradictions(description)


# A shape is a nested description of JSON: {...} is an object of exactly these keys, [x] a list of x, and a leaf is a
# function that takes a value and returns what was expected, or None where the value is valid.

def _integer(low: int, high: int = LARGEST) -> Callable[[Any], Optional[str]]:
    def leaf(value: Any) -> Optional[str]:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole and low <= value <= high else f"an integer, {low} to {high}"
    return leaf


def _one_of(*names: str) -> Callable[[Any], Optional[str]]:
    return lambda value: None if isinstance(value, str) and value in names else " or ".join(map(repr, names))


def _or_null(leaf: Callable[[Any], Optional[str]]) -> Callable[[Any], Optional[str]]:
    def either(value: Any) -> Optional[str]:
        expected = leaf(value)
        return None if value is None or expected is None else expected + " or null"
    return either


def _text(value: Any) -> Optional[str]:
    good = isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT and not _CONTROL.search(value)
    return None if good else f"a string of up to {LONGEST_TEXT} characters, no control characters"


def _version(value: Any) -> Optional[str]:
    good = isinstance(value, str) and re.match(r"\d{1,6}(\.\d{1,6}){1,3}\Z", value, re.ASCII)
    return None if good else "a version such as 1.18"


def _object(value: Any) -> Optional[str]:
    return None if isinstance(value, dict) else "an object"


def _axis(value: Any) -> Optional[str]:
    return None if _size(value) is None or _text(value) is None else "a length or a name"


def _sha256(value: Any) -> Optional[str]:
    good = isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")
    return None if good else "64 lower-case hex digits"


def _inner_path(value: Any) -> Optional[str]:
    """Refuses paths that lead out of the folder, since a bundle may come from anyone."""
    good = isinstance(value, str) and value not in ("", ".") and bool(re.match(r"[ -~]+\Z", value))
    good = good and not set(value) & set("\\:") and not value.startswith("/") and ".." not in value.split("/")
    return None if good else "a path inside the bundle (ASCII, not absolute, no '..')"


_count, _size, _threads, _layer = _integer(0), _integer(1), _integer(1, MOST_THREADS), _integer(1, LARGEST_LAYER)
_port = {"name": _text, "dtype": _one_of("int32", "int64", "float16", "float32"), "shape": [_axis]}
BUNDLE_SHAPE: Dict[str, Any] = {
    "schema": _size, "name": _text, "family": _text, "architecture": _object,
    "precision": _one_of("fp32", "fp16", "int8", "int4"), "dialect": _one_of("fused", "portable"),
    "weights": _one_of("trained", "random"), "weights_source": _text,
    "context": _integer(1, LONGEST_CONTEXT), "vocab": _integer(1, LARGEST_VOCAB),
    "eos_id": _or_null(_count), "kv_layers": [{"heads": _layer, "head_size": _layer}], "inputs": [_port],
    "outputs": [_port], "params": _count, "flops_per_token": _count, "head_flops": _count,
    "weight_bytes": _count, "decode_weight_bytes": _count, "kv_bytes": _count, "isa": [_text], "boards": [_text],
    "backend": {"name": _text, "min_version": _version, "refused_versions": [_version]},
    "threads": {"prefill": _or_null(_threads), "decode": _or_null(_threads)},
    "golden": {"prompt_ids": [_count], "greedy_ids": [_count]},
    "files": [{"path": _inner_path, "bytes": _count, "sha256": _sha256}],
}


def _check(value: Any, shape: Any, where: str, problems: List[str]) -> None:
    if callable(shape):
        expected = shape(value)
        if expected:
            problems.append(f"{where} is {shown(value)}, expected {expected}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            problems.append(f"{where} is {shown(value)}, expected a list")
            return
        for index, item in enumerate(value):
            _check(item, shape[0], f"{where}[{index}]", problems)
    elif not isinstance(value, dict):
        problems.append(f"{where} is {shown(value)}, expected an object")
    else:
        prefix = where + "." if where else ""
        problems.extend(f"unknown key {prefix}{_spelled(key)}" for key in value if key not in shape)
        problems.extend(f"missing key {prefix}{key}" for key in shape if key not in value)
        for key in shape:
            if key in value:
                _check(value[key], shape[key], prefix + key, problems)


def shown(value: Any) -> str:
    """A wrong value as an error message shows it."""
    if isinstance(value, (list, dict)):
        return f"a list of {len(value)}" if isinstance(value, list) else "an object"
    return json.dumps(value)[:80]


def listed(problems: List[str]) -> str:
    """All, or the first ones and how many more."""
    more = len(problems) - MOST_LISTED
    return "; ".join(problems[:MOST_LISTED] + [f"and {more} more"] * (more > 0))


def _spelled(key: str) -> str:
    return key if re.match(r"\w+\Z", key, re.ASCII) else json.dumps(key)[:80]


def _contradictions(description: Dict[str, Any]) -> List[str]:
    """Values that are valid by themselves and contradict each other."""
    problems = []
    vocab, paths = description["vocab"], [file["path"] for file in description["files"]]
    ids = description["golden"]["prompt_ids"] + description["golden"]["greedy_ids"]
    if max(ids + [description["eos_id"] or 0]) >= vocab:
        problems.append(f"golden or eos_id has an id of {vocab} (vocab) or more")
    if "model.onnx" not in paths:
        problems.append("files has no model.onnx")
    problems.extend(f"files has {path} twice" for path in sorted(set(paths)) if paths.count(path) > 1)
    if "logits" not in [port["name"] for port in description["outputs"]]:
        problems.append("outputs has no logits")
    ports = {port["name"]: port for port in description["inputs"]}
    problems.extend(f"inputs has no {name}" for name in ("input_ids", "attention_mask") if name not in ports)
    return problems + _cache_contradictions(description, ports)


def _cache_contradictions(description: Dict[str, Any], ports: Dict[str, Any]) -> List[str]:
    """The inputs that hold keys and values are those of kv_layers and have kv_bytes: by these the memory is judged
    before it is allocated."""
    problems, total = [], 0
    wanted = {f"past_key_values.{index}.{part}": [1, layer["heads"], description["context"], layer["head_size"]]
              for index, layer in enumerate(description["kv_layers"]) for part in ("key", "value")}
    for name, shape in wanted.items():
        port = ports.get(name)
        if port is None:
            problems.append(f"inputs has no {name}")
        elif port["shape"] != shape or port["dtype"] not in CACHE_BYTES:
            problems.append(f"{name} is {port['dtype']} of another shape than {shape}, float16 or float32")
        else:
            total += shape[1] * shape[2] * shape[3] * CACHE_BYTES[port["dtype"]]
    problems.extend(f"inputs has {shown(name)}, which is of no layer" for name in ports
                    if name.startswith("past_key_values.") and name not in wanted)
    if not problems and total != description["kv_bytes"]:
        problems.append(f"kv_bytes is {description['kv_bytes']}, the inputs hold {total}")
    return problems
