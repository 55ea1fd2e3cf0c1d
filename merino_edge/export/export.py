"""From a model to a bundle: walk it into a graph of one dialect, write the folder, prove it equal to torch."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel

from merino_edge.bundles.board_app import APP_FILE, write_board_app
from merino_edge.export.onnx.fused import Fused
from merino_edge.export.onnx.graph import Graph
from merino_edge.export.onnx.portable import Portable
from merino_edge.export.parity import Golden, allowed_error, torch_greedy, with_quantized, worst_error
from merino_edge.export.quantize import MatrixError
from merino_edge.export.source import Source, is_bundle
from merino_edge.families.graph_ops import KvLayer
from merino_edge.families.merino.walk import walk_merino
from merino_edge.families.operators import CPU_FORMATS, FAST_ISA, decode_flops, kv_bytes, params
from merino_edge.families.opt.geometry import OptArchitecture
from merino_edge.families.opt.walk import walk_opt
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape, default_prompt
from merino_edge.profiles.profile import list_profiles
from merino_edge.storage.atomic import new_folder, write_text
from merino_runtime.board import ARM_FEATURES
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError

SCHEMA = 1
DESCRIPTION = "bundle.json"
TOKENIZER = "tokenizer.json"
GOLDEN_STEPS = 16
GOLDEN_PROMPTS = 8  # tried at most
CLEAR_LEAD = 0.15  # three times the error that quantised formats are allowed
PRECISIONS = {"fused": ("fp32", "fp16", "int8", "int4"), "portable": ("fp32", "fp16", "int8")}
# The oldest ONNX Runtime: blocks of 8 bits and tables in blocks came after the fused attention.
MIN_VERSIONS = {
    ("fused", "fp32"): "1.18", ("fused", "fp16"): "1.20", ("fused", "int8"): "1.23", ("fused", "int4"): "1.23",
}  # fmt: skip
REFUSED_VERSIONS = ["1.21.0"]  # dies of an illegal instruction on Cortex-A53 and A72
DIALECTS: dict[str, type[Fused] | type[Portable]] = {"fused": Fused, "portable": Portable}


class Exported(NamedTuple):
    """`error`: of the worst step of prefill and decode against torch with the weights as stored, relative: the largest
    logit's for float32, the root mean square's for quantised weights.

    `matrices`: what quantising did to each; empty for float32.
    """

    folder: Path
    description: dict[str, Any]
    error: float
    matrices: list[MatrixError]


def export(
    source: Source, out: Path, *, dialect: str = "fused", precision: str | None = None, context: int | None = None
) -> Exported:
    """Write the bundle `out`, in the weight format that the design planned for where none is named, else float32.

    Raises MerinoError for what the user asked wrongly, and where parity fails.
    """
    precision = precision or (source.design.precision if source.design else "fp32")
    context = check_request(source, dialect, precision, context)
    graph = build_graph(source, dialect, context, precision)
    golden = clear_golden(with_quantized(source.model, graph.quantized), source.arch.vocab, context)
    if not np.isfinite(golden.logits).all():
        raise MerinoError(f"the weights of {source.name} give logits that are no numbers: train at a lower rate")
    with new_folder(out, is_bundle) as folder:
        graph.save(folder)
        if source.tokenizer:
            shutil.copyfile(source.tokenizer, folder / TOKENIZER)
        write_board_app(folder / APP_FILE)
        description = describe(source, graph, golden, folder, dialect=dialect, precision=precision, context=context)
        write_text(folder / DESCRIPTION, json.dumps(description, indent=1) + "\n")
        error = worst_error(load_bundle(str(folder)), golden)
        if not error <= allowed_error(precision):
            raise MerinoError(
                f"the {dialect} graph differs from torch by {error:.1e}, relative, allowed is"
                f" {allowed_error(precision):.0e}: a defect of the exporter or of this onnxruntime; nothing was written"
            )
    return Exported(out, description, error, graph.matrix_errors())


def check_request(source: Source, dialect: str, precision: str, context: int | None) -> int:
    """The bundle's context. Raises MerinoError with what is allowed."""
    if dialect not in DIALECTS:
        raise MerinoError(f"--dialect {dialect} is not known: choose one of {', '.join(DIALECTS)}")
    if precision not in PRECISIONS[dialect]:
        choices = "; ".join(f"{name}: {', '.join(known)}" for name, known in PRECISIONS.items())
        raise MerinoError(f"--precision {precision} is not possible in dialect {dialect}: choose of {choices}")
    longest = source.arch.context
    if context is not None and not 8 <= context <= longest:
        raise MerinoError(f"--context {context} is not allowed: {source.name} takes 8 to {longest} tokens")
    return context or longest


def clear_golden(model: PreTrainedModel, vocab: int, context: int) -> Golden:
    """Of the greedy continuations of a few prompts the one whose closest choice is clearest.

    CPUs round differently, above all where activations go to int8: a choice between near equals could fall otherwise.
    """
    found = []
    for attempt in range(GOLDEN_PROMPTS):
        prompt_ids = golden_prompt(vocab, context, attempt)
        found.append(torch_greedy(model, prompt_ids, min(GOLDEN_STEPS, context - len(prompt_ids))))
        if least_lead(found[-1]) >= CLEAR_LEAD:
            break
    return max(found, key=least_lead)


def golden_prompt(vocab: int, context: int, attempt: int) -> list[int]:
    """Ids spread over the vocabulary: the self-test needs no tokenizer."""
    return [(37 + 7919 * index + 104729 * attempt) % vocab for index in range(min(8, context // 2))]


def least_lead(golden: Golden) -> float:
    """The smallest lead of a chosen logit before the next, relative to the root mean square of its step."""
    second, first = np.sort(golden.logits, axis=1)[:, -2:].T
    return float(((first - second) / np.sqrt(np.square(golden.logits).mean(axis=1))).min())


def build_graph(source: Source, dialect: str, context: int, precision: str) -> Graph:
    kv_layers = [KvLayer(index, heads, size) for index, (heads, size) in enumerate(source.arch.kv_layers)]
    weights = {name: tensor.detach().float().numpy() for name, tensor in source.model.state_dict().items()}
    graph = DIALECTS[dialect](weights, kv_layers, context, precision)
    if isinstance(source.arch, OptArchitecture):
        walk_opt(graph, source.arch)
    else:
        config = source.model.config
        walk_merino(graph, source.arch, theta=config.rope_theta, eps=config.rms_norm_eps)
    return graph


def describe(
    source: Source, graph: Graph, golden: Golden, folder: Path, *, dialect: str, precision: str, context: int
) -> dict[str, Any]:
    """bundle.json; see docs/formats.md."""
    operators = source.arch.operators
    return {
        "schema": SCHEMA,
        "name": source.name,
        "family": source.family,
        "architecture": source.arch.model_dump(),
        "precision": precision,
        "dialect": dialect,
        "weights": source.weights,
        "weights_source": source.weights_source,
        "context": context,
        "vocab": source.arch.vocab,
        "eos_id": source.eos_id,
        "kv_layers": [{"heads": heads, "head_size": size} for heads, size in source.arch.kv_layers],
        "inputs": [port._asdict() for port in graph.inputs],
        "outputs": [port._asdict() for port in graph.outputs],
        "params": params(operators),
        "flops_per_token": decode_flops(operators),
        "weight_bytes": graph.weight_bytes,
        "decode_weight_bytes": graph.decode_weight_bytes,
        "kv_bytes": kv_bytes(operators, context, precision),
        "isa": FAST_ISA[precision],
        "boards": fitting_boards(source, InferenceShape(precision, context, default_prompt(context))),
        "backend": {
            "name": "onnxruntime",
            "min_version": MIN_VERSIONS.get((dialect, precision), "1.10"),
            "refused_versions": REFUSED_VERSIONS,
        },
        "threads": planned_threads(source, precision),
        "golden": {"prompt_ids": golden.prompt_ids, "greedy_ids": golden.greedy_ids},
        "files": describe_files(folder),
    }


def planned_threads(source: Source, precision: str) -> dict[str, int | None]:
    """The design's thread counts, which hold for its own weight format; without a design the runtime chooses."""
    plan = source.design.predicted if source.design and source.design.precision == precision else None
    return {"prefill": plan.prefill_threads if plan else None, "decode": plan.decode_threads if plan else None}


def fitting_boards(source: Source, shape: InferenceShape) -> list[str]:
    """Boards that are fast at the format and whose free memory holds it, a prompt of half the context (512 at most)
    included. float16 is for boards with a GPU.
    """
    needed = set(FAST_ISA[shape.precision]) & set(ARM_FEATURES.values())  # all boards of ours are Arm
    return [
        profile.id
        for profile in list_profiles()
        if cost_model(profile, shape).memory_mb(source.arch.operators) <= profile.memory.free_mb.value
        and needed <= set(profile.isa)
        and (shape.precision in CPU_FORMATS or profile.gpu)
    ]


def describe_files(folder: Path) -> list[dict[str, str | int]]:
    files: list[dict[str, str | int]] = []
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files.append({"path": path.name, "bytes": path.stat().st_size, "sha256": digest})
    return files


def bundle_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


__all__: Sequence[str] = ["Exported", "bundle_bytes", "export"]
