"""A bundle: the folder that the exporter writes and a board runs. Standard library only.

`Bundle` is the one type of its description, bundle.json. Reading checks the description against the schema and the
listed files against their sizes and hashes. Whether this machine can run the bundle is checked by `fit`.
Keys and their meaning: docs/formats.md.
"""
import hashlib
import os
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from merino_runtime.bundle.schema import EMBEDDING, SCHEMA, problems_of
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json
from merino_runtime.io.json_shape import listed, shown

QUANTIZED_CACHES = ("int8", "int4")  # formats of keys and values beside those of activations
FIRST_QUANTIZED_CACHE = "1.27"  # of ONNX Runtime


class KvLayer(NamedTuple):
    heads: int
    head_size: int
    format: str = "fp32"  # of keys and values: a name in `bundle.schema.CACHE_TYPES`


class Port(NamedTuple):
    """An input or output of the graph; an axis is a length or a name (`sequence`, `total`)."""
    name: str
    dtype: str
    shape: Tuple[Union[int, str], ...]


class BackendNeed(NamedTuple):
    name: str
    min_version: str
    refused_versions: Tuple[str, ...]


class Threads(NamedTuple):
    prefill: Optional[int]
    decode: Optional[int]


class Golden(NamedTuple):
    prompt_ids: Tuple[int, ...]
    greedy_ids: Tuple[int, ...]


class SystemParts(NamedTuple):
    """The parts of the template before and after a system message's text."""
    before: str
    after: str


class MessageTexts(NamedTuple):
    """How the template uses each role's text: a name in `bundle.schema.MESSAGE_TEXTS`."""
    system: str
    user: str
    assistant: str


class ChatParts(NamedTuple):
    """A rendered chat template: its parts between the texts of a conversation that ends with the user's turn."""
    begin: str  # before the first user's text, if there is no system message
    system: Optional[SystemParts]  # None: the template knows no system message
    answer: str  # between a user's text and the assistant's
    user: str  # between an answer and the next user's text
    generation: str  # after the last user's text: it opens the answer
    no_think: Optional[str]  # the same for an answer without thinking; None: the template does not know of that
    date_format: Optional[str]  # of today's date, which replaces U+0000 in the texts
    texts: MessageTexts


class Chat(NamedTuple):
    template: str  # path of the Jinja template in the bundle
    tokens: Dict[str, str]  # what the template's variables for special tokens hold, such as bos_token
    parts: Optional[ChatParts]  # None: only Jinja renders it


class BundleFile(NamedTuple):
    path: str
    bytes: int
    sha256: str


class Bundle(NamedTuple):
    """The keys of bundle.json, in the order of `BUNDLE_SHAPE`, and the folder that it was read from."""
    folder: str
    schema: int
    name: str
    family: str
    architecture: Dict[str, Any]
    precision: str
    dialect: str
    weights: str
    weights_source: str
    context: int
    vocab: int
    stop_ids: Tuple[int, ...]  # any of them ends a text
    kv_layers: Tuple[KvLayer, ...]
    inputs: Tuple[Port, ...]
    outputs: Tuple[Port, ...]
    params: int
    flops_per_token: int
    head_flops: int
    weight_bytes: int
    decode_weight_bytes: int
    kv_bytes: int
    boards: Tuple[str, ...]
    backends: Tuple[BackendNeed, ...]  # those that can run it, the preferred one first
    threads: Threads
    golden: Golden
    chat: Optional[Chat]
    files: Tuple[BundleFile, ...]
    kernels: Tuple[str, ...] = ()  # operators of the graph that `bundle.fit` names and onnxruntime has not
    adapters: Tuple[str, ...] = ()  # names of the LoRA adapters in the graph, in its order


def load_bundle(path: str, verify: bool = True) -> Bundle:
    """Return the bundle in the folder `path`. `verify=False` compares the sizes of its files and hashes nothing.

    Raise MerinoError with every problem at once: keys that do not follow the schema, or files that are missing or
    differ from what bundle.json lists.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise MerinoError(f"the bundle's path is {path!r:.80}, allowed is a string or a path. Name its folder.")
    folder = os.fspath(path)
    description = os.path.join(folder, "bundle.json")
    remedy = "A bundle is the folder that `merino-edge export -o` writes, with bundle.json in it"
    if not os.path.exists(folder):
        raise MerinoError(f"no such bundle: {folder!r}. {remedy}.")
    if not os.path.isdir(folder):
        raise MerinoError(f"{folder!r} is a file. {remedy}; a packed one is installed first: "
                          "python3 merino.pyz install NAME.merino")
    if not os.path.isfile(description):
        raise MerinoError(f"{folder!r} is not a bundle: it has no bundle.json. {remedy}.")
    bundle = bundle_of(folder, read_json(description, "Copy or export the bundle again."))
    check_files(bundle, verify)
    return bundle


def bundle_of(folder: str, description: Any) -> Bundle:
    """Return the bundle of a description, the value of bundle.json. Read no file; `folder` need not exist. Raise
    MerinoError with every fault."""
    path = os.path.join(folder, "bundle.json")
    if not isinstance(description, dict):
        raise MerinoError(f"{path} holds {shown(description)}, not an object. Export the bundle again.")
    schema = description.get("schema")
    if "schema" in description and (schema != SCHEMA or isinstance(schema, (bool, float))):
        # Reported alone: under another schema, faults of keys would mean nothing.
        raise MerinoError(f"{path} has schema {shown(schema)}, this runtime reads schema {SCHEMA}. Use the "
                          "merino.pyz that came with the bundle, or export it again with this version.")
    problems = problems_of(description)
    if problems:
        raise MerinoError(f"{path} does not follow schema {SCHEMA}: {listed(problems)}. Export the bundle again.")
    # Lists become tuples, so that a bundle cannot be changed after reading.
    values: Dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in description.items()}
    values["kv_layers"] = tuple(KvLayer(**layer) for layer in description["kv_layers"])
    for key in ("inputs", "outputs"):
        values[key] = tuple(Port(port["name"], port["dtype"], tuple(port["shape"])) for port in description[key])
    values["backends"] = tuple(BackendNeed(need["name"], need["min_version"], tuple(need["refused_versions"]))
                               for need in description["backends"])
    values["threads"] = Threads(**description["threads"])
    values["golden"] = Golden(*(tuple(description["golden"][name]) for name in Golden._fields))
    values["chat"] = _chat_of(description["chat"])
    values["files"] = tuple(BundleFile(**file) for file in description["files"])
    return Bundle(folder=folder, **values)


def need_of(bundle: Bundle, backend: str) -> Optional[BackendNeed]:
    """Return what the bundle requires of a backend; None if that backend cannot run it."""
    return next((need for need in bundle.backends if need.name == backend), None)


def backends_text(bundle: Bundle) -> str:
    """Return the backends for people: "onnxruntime 1.10 or later, or tensorrt 8.2 or later"."""
    return ", or ".join(f"{need.name} {need.min_version} or later" for need in bundle.backends)


def quantized_cache(bundle: Bundle) -> Optional[str]:
    """Return the format of a quantized KV cache, the same in all layers; None if the cache has the format of
    activations."""
    return next((layer.format for layer in bundle.kv_layers if layer.format in QUANTIZED_CACHES), None)


def returns_all_logits(bundle: Bundle) -> bool:
    """Return whether the graph returns the logits of all positions instead of the last one's."""
    return any(port.name == "logits" and port.shape[1:2] == ("sequence",) for port in bundle.outputs)


def embedding_size(bundle: Bundle) -> int:
    """Return the channels of an embedding. Raise MerinoError if the graph returns none."""
    sizes = [int(port.shape[1]) for port in bundle.outputs if port.name == EMBEDDING]
    if not sizes:
        raise MerinoError(f"bundle {bundle.name!r} makes no embeddings. Export it with --set embeddings=true.")
    return sizes[0]


def older_graph(bundle: Bundle) -> str:
    """Return the option of `export` that makes a graph of the same model for older versions of onnxruntime."""
    return "--kv fp32" if quantized_cache(bundle) and "GroupAttention8" not in bundle.kernels else "--dialect portable"


def without_kernels(bundle: Bundle) -> str:
    """Return the options of `export` that make a graph of the same model without this project's kernels."""
    return "--precision int8" if bundle.dialect == "portable" else "--dialect portable --precision int8"


def cache_formats(bundle: Bundle) -> str:
    """Return the formats of the KV cache for people: "int8", or several separated by commas."""
    return ", ".join(sorted({layer.format for layer in bundle.kv_layers}))


def file_path(bundle: Bundle, name: str) -> Optional[str]:
    """Return the path of the bundle's file `name`; None if bundle.json lists no such file."""
    listed = any(file.path == name for file in bundle.files)
    return os.path.join(bundle.folder, name) if listed else None


def own_files(bundle: Bundle) -> List[str]:
    """Return the paths of the files that belong to the bundle, whether they exist or not."""
    names = ["bundle.json", "merino.pyz", *(file.path for file in bundle.files)]
    return [os.path.join(bundle.folder, name) for name in names]


def check_files(bundle: Bundle, hashes: bool = True) -> None:
    """Raise MerinoError that names each listed file that is missing, is a link out of the folder (which ONNX Runtime
    rejects), or differs in size or, with `hashes`, in SHA-256."""
    problems, inside = [], os.path.join(os.path.realpath(bundle.folder), "")
    for file in bundle.files:
        path = os.path.join(bundle.folder, file.path)
        if not os.path.isfile(path):
            problems.append(f"{file.path} is {'no regular file' if os.path.lexists(path) else 'missing'}")
        elif not os.path.realpath(path).startswith(inside):
            problems.append(f"{file.path} is a link out of the folder, to {os.path.realpath(path)} (`cp -rL` copies "
                            "a folder with what its links lead to)")
        elif os.path.getsize(path) != file.bytes:
            problems.append(f"{file.path} has {os.path.getsize(path)} bytes, expected {file.bytes}")
        elif hashes and sha256_of(path) != file.sha256:
            problems.append(f"{file.path} has sha256 {sha256_of(path)}, expected {file.sha256}")
    if problems:
        raise MerinoError(f"bundle {bundle.folder} is damaged: {listed(problems)}. "
                          "Copy the folder again, or export it again.")


def sha256_of(path: str) -> str:
    """Return a file's SHA-256 in lower-case hex digits. Raise MerinoError if the file cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise MerinoError(f"cannot read {path}: {error.strerror}. Check the folder's permissions.") from error
    return digest.hexdigest()


def _chat_of(chat: Optional[Dict[str, Any]]) -> Optional[Chat]:
    if chat is None:
        return None
    if chat["parts"] is None:
        return Chat(chat["template"], chat["tokens"], None)
    parts = dict(chat["parts"], texts=MessageTexts(**chat["parts"]["texts"]))
    if parts["system"] is not None:
        parts["system"] = SystemParts(**parts["system"])
    return Chat(chat["template"], chat["tokens"], ChatParts(**parts))
