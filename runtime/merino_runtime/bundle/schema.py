"""The schema of bundle.json: its keys, and what each value must be. Standard library only.

All problems of a file are reported at once; `bundle` raises them as one error. What the keys mean: docs/formats.md.
"""
import collections
import functools
import operator
from typing import Any, Dict, List, Optional

from merino_runtime.io.json_shape import (
    Maybe,
    an_object,
    count,
    inner_path,
    integer,
    one_of,
    or_null,
    passage,
    problems_in,
    sha256,
    shown,
    size,
    text,
    texts_by_name,
    version,
)

SCHEMA = 2
# Beyond these no machine runs a bundle, and sums of them no longer fit the numbers of other programs.
LONGEST_CONTEXT = LARGEST_VOCAB = 2 ** 24
LARGEST_LAYER = 2 ** 14  # heads, and channels of a head
MOST_THREADS = 1024
MOST_FILES = 256  # a bundle that was exported has about ten
# By the format of keys and values: the type of their arrays, its bytes, how many of them an element holds.
CACHE_TYPES = {"fp32": ("float32", 4, 1), "fp16": ("float16", 2, 1), "int8": ("int8", 1, 1), "int4": ("uint8", 1, 2)}
STATE_COPIES = 4  # of a recurrent state in memory: before and behind a run, and two of earlier prefixes
STATES = "past_states."  # begins the names of inputs that hold recurrent states; outputs begin with present_states.
EMBEDDING = "embedding"  # the optional output [1, width]: the sum of the last hidden states
# What a chat template uses of a message's text: all of it; without white space around it; what follows the last
# </think>; the same without line feeds at its beginning; or without white space around it. `filled`: all of it, and an
# empty system message is left out.
MESSAGE_TEXTS = ("whole", "stripped", "answer", "answer_lines", "answer_stripped", "filled")


def problems_of(description: Any) -> List[str]:
    """Return a sentence for each wrong key or value; contradictions between values only if each value is valid."""
    return problems_in(description, BUNDLE_SHAPE) or _contradictions(description)


def _axis(value: Any) -> Optional[str]:
    return None if size(value) is None or text(value) is None else "a length or a name"


_threads, _layer = integer(1, MOST_THREADS), integer(1, LARGEST_LAYER)
_port = {"name": text, "dtype": one_of("int32", "int64", "int8", "uint8", "float16", "float32"), "shape": [_axis]}
_message_text = one_of(*MESSAGE_TEXTS)
_parts = {"begin": passage, "system": Maybe({"before": passage, "after": passage}), "answer": passage, "user": passage,
          "generation": passage, "no_think": or_null(passage), "date_format": or_null(text),
          "texts": {"system": _message_text, "user": _message_text, "assistant": _message_text}}
BUNDLE_SHAPE: Dict[str, Any] = {
    "schema": size, "name": text, "family": text, "architecture": an_object,
    "precision": one_of("fp32", "fp16", "int8", "int4"), "dialect": one_of("fused", "portable"),
    "weights": one_of("trained", "random"), "weights_source": text,
    "context": integer(1, LONGEST_CONTEXT), "vocab": integer(1, LARGEST_VOCAB),
    "stop_ids": [count],
    "kv_layers": [{"heads": _layer, "head_size": _layer, "format": one_of(*sorted(CACHE_TYPES))}],
    "inputs": [_port], "outputs": [_port], "params": count, "flops_per_token": count, "head_flops": count,
    "weight_bytes": count, "decode_weight_bytes": count, "kv_bytes": count, "boards": [text],
    "backends": [{"name": text, "min_version": version, "refused_versions": [version]}],
    "threads": {"prefill": or_null(_threads), "decode": or_null(_threads)},
    "golden": {"prompt_ids": [count], "greedy_ids": [count]},
    "chat": Maybe({"template": inner_path, "tokens": texts_by_name, "parts": Maybe(_parts)}),
    "files": [{"path": inner_path, "bytes": count, "sha256": sha256}, MOST_FILES],
    "kernels": [text, MOST_FILES],
    "adapters": [text, MOST_FILES],
}


def _contradictions(description: Dict[str, Any]) -> List[str]:
    """Return the problems of values that are valid each but contradict each other."""
    problems = []
    vocab, paths = description["vocab"], collections.Counter(file["path"] for file in description["files"])
    ids = description["golden"]["prompt_ids"] + description["golden"]["greedy_ids"]
    if max([0, *ids, *description["stop_ids"]]) >= vocab:
        problems.append(f"golden or stop_ids has an id of {vocab} (vocab) or more")
    if not description["backends"]:
        problems.append("backends is empty")
    chat = description["chat"]
    if chat and chat["template"] not in paths:
        problems.append(f"files has no {chat['template']}, which is chat.template")
    if "model.onnx" not in paths:
        problems.append("files has no model.onnx")
    problems.extend(f"files has {path} twice" for path, times in sorted(paths.items()) if times > 1)
    if "logits" not in [port["name"] for port in description["outputs"]]:
        problems.append("outputs has no logits")
    problems.extend(f"{EMBEDDING} is {port['shape']}, must be [1, width]" for port in description["outputs"]
                    if port["name"] == EMBEDDING and [type(axis) for axis in port["shape"]] != [int, int])
    ports = {port["name"]: port for port in description["inputs"]}
    problems.extend(f"inputs has no {name}" for name in ("input_ids", "attention_mask") if name not in ports)
    return problems + _cache_contradictions(description, ports)


def _cache_contradictions(description: Dict[str, Any], ports: Dict[str, Any]) -> List[str]:
    """Compare the inputs that hold keys and values with kv_layers and kv_bytes: the needed memory is computed from
    these before it is allocated."""
    problems, total = [], 0
    layer_of = {f"past_key_values.{index}.{part}": layer
                for index, layer in enumerate(description["kv_layers"]) for part in ("key", "value")}
    for name, layer in layer_of.items():
        dtype, size, per_byte = CACHE_TYPES[layer["format"]]
        shape = [1, layer["heads"], description["context"], layer["head_size"] // per_byte]
        port = ports.get(name)
        if port is None:
            problems.append(f"inputs has no {name}")
        elif port["shape"] != shape or port["dtype"] != dtype or layer["head_size"] % per_byte:
            problems.append(f"{name} is {port['dtype']} {port['shape']}, its layer's is {dtype} {shape}")
        else:
            total += shape[1] * shape[2] * shape[3] * size
    outputs = {port["name"]: port for port in description["outputs"]}
    for name in (name for name in ports if name.startswith(STATES)):
        port, present = ports[name], outputs.get(name.replace("past", "present", 1))
        if present is None or present["shape"] != port["shape"] or present["dtype"] != port["dtype"]:
            problems.append(f"outputs has no {name.replace('past', 'present', 1)} like {name}")
        elif port["dtype"] != "float32" or not all(isinstance(axis, int) for axis in port["shape"]):
            problems.append(f"{name} is {port['dtype']} {port['shape']}, a state is float32 and of fixed shape")
        else:
            total += STATE_COPIES * 4 * functools.reduce(operator.mul, port["shape"], 1)
    problems.extend(f"inputs has {shown(name)}, which is of no layer" for name in ports
                    if name.startswith("past_key_values.") and name not in layer_of)
    if not problems and total != description["kv_bytes"]:
        problems.append(f"kv_bytes is {description['kv_bytes']}, the inputs hold {total}")
    return problems
