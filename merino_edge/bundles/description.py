"""A bundle's folder, filled: graph and weights, tokenizer, the board's application, and bundle.json. This is made from
a model's geometry and facts of its graph, and written in the order of the runtime's schema.

The type of a description is `merino_runtime.bundle.Bundle`, which `load_bundle` reads; its keys stand in
`merino_runtime.bundle.schema`. Keys and their meaning: docs/formats.md.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from merino_edge.bundles.board_app import write_board_app
from merino_edge.bundles.files import APP_FILE, DESCRIPTION_FILE, TOKENIZER_FILE
from merino_edge.families.geometry import Geometry
from merino_edge.families.operators import (
    FIRST_HASHING,
    Operator,
    decode_flops,
    hashes_ids,
    head_flops,
    kv_bytes,
    kv_format,
    params,
    weight_bytes,
)
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.formats import formats_of, missing_isa, uses_kernels
from merino_edge.prediction.shape import InferenceShape, default_prompt
from merino_edge.profiles.profile import DeviceProfile
from merino_edge.profiles.reading import list_profiles
from merino_edge.storage.atomic import write_text
from merino_runtime.backends.threads import prefill_choice, sessions_of
from merino_runtime.bundle import (
    BackendNeed,
    Bundle,
    BundleFile,
    Chat,
    Golden,
    KvLayer,
    Port,
    Threads,
    sha256_of,
)
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.bundle.schema import BUNDLE_SHAPE, SCHEMA, problems_of
from merino_runtime.generation.text import with_merges_as_strings
from merino_runtime.io.json_file import value_of

FUSED_ATTENTION_VERSION, FP16_ATTENTION_VERSION = "1.18", "1.20"  # the oldest ONNX Runtime with each
REFUSED_VERSIONS = ("1.21.0",)  # dies of an illegal instruction on Cortex-A53 and A72
TENSORRT = BackendNeed("tensorrt", "8.2", ())  # JetPack 4.6's
RUNTIME_CHOOSES = Threads(None, None)


class Graph(Protocol):
    """A graph that writes itself, with its weights, into a folder. Bytes count weights as the graph stores them.

    `oldest`: the first ONNX Runtime with all options of its operators. `own_kernels`: the names of those from this
    project's library, sorted.
    """

    inputs: list[Port]
    outputs: list[Port]
    decode_weight_bytes: int
    oldest: str

    @property
    def weight_bytes(self) -> int: ...

    @property
    def own_kernels(self) -> Sequence[str]: ...

    def save(self, folder: Path) -> None: ...


class ModelFacts(NamedTuple):
    """What was exported, whatever the weight format and the graph's dialect.

    `weights` is `trained` or `random`; `weights_source` tells people where the values came from. Any of `stop_ids` ends
    a text. `chat`: its template's file is in the folder.
    """

    name: str
    family: str
    geometry: Geometry
    weights: str
    weights_source: str
    stop_ids: tuple[int, ...] = ()
    chat: Chat | None = None


class GraphFormat(NamedTuple):
    """How the model was exported. `context`: KV slots, in tokens. `kv`: the format of the cache; None: the activations'
    format. `all_logits`: the graph returns the logits of all positions. `embeddings`: it returns the sum of the last
    hidden states too. `adapters`: the names of its LoRA adapters."""

    precision: str
    dialect: str
    context: int
    kv: str | None = None
    all_logits: bool = False
    embeddings: bool = False
    adapters: tuple[str, ...] = ()

    @property
    def min_version(self) -> str:
        """The oldest ONNX Runtime for any graph of this form; options of its operators may need a newer one."""
        if self.dialect == "portable":
            return "1.10"
        return FP16_ATTENTION_VERSION if self.precision == "fp16" else FUSED_ATTENTION_VERSION


def describe(
    folder: Path, model: ModelFacts, graph: Graph, form: GraphFormat, golden: Golden, threads: Threads
) -> Bundle:
    """The description of the model whose graph, weights and tokenizer lie in `folder`; hashes them."""
    # Without the application, so that the bundle's hash does not depend on the version of the runtime beside it.
    files = tuple(
        BundleFile(path.name, path.stat().st_size, sha256_of(str(path)))
        for path in sorted(folder.iterdir()) if path.name not in (DESCRIPTION_FILE, APP_FILE)
    )  # fmt: skip
    geometry = model.geometry
    operators = geometry.operators
    backends = backends_of(form, graph.oldest, hashes_ids(operators))
    return Bundle(
        folder=str(folder),
        schema=SCHEMA,
        name=model.name,
        family=model.family,
        architecture=geometry.model_dump(mode="json"),
        precision=form.precision,
        dialect=form.dialect,
        weights=model.weights,
        weights_source=model.weights_source,
        context=form.context,
        vocab=geometry.vocab,
        stop_ids=model.stop_ids,
        kv_layers=tuple(KvLayer(*layer, kv_format(form.precision, form.kv)) for layer in geometry.kv_layers),
        inputs=tuple(graph.inputs),
        outputs=tuple(graph.outputs),
        params=params(operators),
        flops_per_token=decode_flops(operators),
        head_flops=head_flops(operators),
        weight_bytes=graph.weight_bytes,
        decode_weight_bytes=graph.decode_weight_bytes,
        kv_bytes=kv_bytes(operators, form.context, form.precision, form.kv),
        boards=fitting_boards(operators, form.precision, form.context, threads, backends, kv=form.kv),
        backends=backends,
        threads=threads,
        golden=golden,
        chat=model.chat,
        files=files,
        kernels=tuple(graph.own_kernels),
        adapters=form.adapters,
    )


def backends_of(form: GraphFormat, oldest: str = "1.10", hashed: bool = False) -> tuple[BackendNeed, ...]:
    """What can run such a graph, the preferred backend first. `oldest`: ONNX Runtime by the graph's operators.
    `hashed`: whether the graph hashes ids. TensorRT takes standard operators on floats, and its backend takes the
    logits of one position, no embeddings and no adapters."""
    oldest = max(form.min_version, oldest, key=version_tuple)
    plain = form.dialect == "portable" and form.precision in ("fp32", "fp16")
    plain = plain and not (form.all_logits or form.embeddings or form.adapters)
    on_gpu = (TENSORRT._replace(min_version=FIRST_HASHING) if hashed else TENSORRT,) if plain else ()
    return (BackendNeed("onnxruntime", oldest, REFUSED_VERSIONS), *on_gpu)


def fitting_boards(
    operators: Sequence[Operator], precision: str, context: int, threads: Threads,
    backends: Sequence[BackendNeed], profiles: Sequence[DeviceProfile] | None = None, kv: str | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Ids of the `profiles` (default: the shipped ones) that the bundle fits, a prompt of half the context included.

    `threads`: the bundle's, since counts that differ open two sessions, each with a copy of the weights. `backends`:
    those that run the bundle's graph, and their versions. `kv`: the format of the cache; None: the activations'.
    """
    shape, weights = InferenceShape(precision, context, default_prompt(context), kv), weight_bytes(operators, precision)

    def fits(profile: DeviceProfile) -> bool:
        if precision not in formats_of(profile) or missing_isa(profile, precision):
            return False
        sessions = sessions_of_board(threads, profile, precision, weights)
        needed_mb = cost_model(profile, shape).memory_mb(operators, sessions)
        return needed_mb <= profile.memory.free_mb.value

    return tuple(
        profile.id
        for profile in (list_profiles() if profiles is None else profiles)
        if any(
            fits(profile.with_backend(need.name)) for need in backends if need.name in profile.backends
            and version_tuple(getattr(profile.software, need.name)) >= version_tuple(need.min_version)
        )
    )


def sessions_of_board(threads: Threads, profile: DeviceProfile, precision: str, weights: int) -> int:
    """Return how many sessions the runtime opens on this board for `weights` bytes, with at most one thread per core,
    as `merino_runtime.backends.threads` counts them."""
    if profile.backend != "onnxruntime":
        return 1
    cores, own = int(profile.cpu.cores.value), uses_kernels(profile, precision)
    decode = min(threads.decode or profile.performance.onnxruntime.decode_threads.value, cores)
    prefill = min(threads.prefill or prefill_choice(weights, decode, cores, own), cores)
    return sessions_of(prefill, decode, own)


def write_description(bundle: Bundle) -> None:
    """Write bundle.json into `bundle.folder`, keys in the order of the schema."""
    fields = bundle._asdict()
    description = {key: as_json(fields[key]) for key in BUNDLE_SHAPE}
    problems = problems_of(description)
    assert not problems, problems
    write_text(Path(bundle.folder) / DESCRIPTION_FILE, json.dumps(description, indent=1) + "\n")


def as_json(value: Any) -> Any:
    """A field of a Bundle as JSON has it: named tuples as objects, other tuples as lists."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: as_json(part) for key, part in value._asdict().items()}
    return [as_json(part) for part in value] if isinstance(value, tuple) else value


def write_bundle(
    folder: Path, model: ModelFacts, graph: Graph, form: GraphFormat, golden: Golden, *,
    threads: Threads = RUNTIME_CHOOSES, tokenizer: Path | str | None = None, template: str | None = None,
    beside: Mapping[str, str] = MappingProxyType({}),
) -> Bundle:  # fmt: skip
    """Fill the empty `folder` and return its description.

    `tokenizer`: a tokenizer.json, or the text of one, whose merges become strings; None where there is none.
    `template`: the text of the chat template that `model.chat` is of. `beside`: texts of further files by their names.
    """
    graph.save(folder)
    if tokenizer:
        text = tokenizer if isinstance(tokenizer, str) else tokenizer.read_text(encoding="utf-8")
        write_text(folder / TOKENIZER_FILE, with_merges_as_strings(value_of(text, any_depth=True), text))
    if model.chat and template is not None:
        (folder / model.chat.template).write_text(template, encoding="utf-8", newline="")
    for name, text in beside.items():
        write_text(folder / name, text)
    bundle = describe(folder, model, graph, form, golden, threads)
    write_description(bundle)
    write_board_app(folder / APP_FILE)
    return bundle
