"""Small models for tests, and what they learn from: geometries of the published families with a layer of each kind, a
decoder of the designed family, text that it learns within seconds; matrices as an export quantizes them without
calibration, the loss of a bundle, bundles that are only a graph; and a board of two cores.
"""
import copy
import random
import re
from pathlib import Path

import onnx
import torch

from merino_edge.bundles.description import BackendNeed, GraphFormat
from merino_edge.export.dialects.external_data import DATA_FILE
from merino_edge.export.dialects.graph import MODEL_FILE
from merino_edge.export.quantize.weights import Rounding, quantized_matrices
from merino_edge.export.source import graph_weights
from merino_edge.families.designed import Architecture
from merino_edge.families.registry import FAMILIES, family_of
from merino_edge.text.documents import END_OF_TEXT, read_texts
from merino_edge.text.rows import packed_rows
from merino_edge.text.scoring import log_likelihood
from merino_edge.text.tokenizer import load_tokenizer
from merino_runtime.backends import open_backend
from merino_runtime.bundle import Bundle, BundleFile, Golden, KvLayer, Threads, load_bundle
from probe_graphs.build import decoder_graph, model_without_weights

SHAPE = {"width": 64, "layers": 2, "heads": 4, "ffn_width": 96, "vocab": 96, "context": 16, "norm_eps": 1e-3}
GATED = {**SHAPE, "kv_heads": 2, "head_size": 16, "tied": True, "rope_theta": 500.0}
MULTIPLIED = {
    **GATED, "embedding_factor": 12.0, "attention_scale": 0.1, "residual_factor": 0.3,
    "logits_divisor": 4.0,
}  # fmt: skip
ROPE_SCALED = {"divisors": (1.0, 1.0, 1.5, 2.5, 4.0, 8.0, 8.0, 8.0), "magnitude": 1.1}
SMALL = {
    "llama": GATED,
    "qwen2": GATED,
    "qwen3": {**GATED, "head_size": 32},
    "ernie4_5": GATED,
    "olmo2": GATED,
    "smollm3": {**GATED, "rotated_layers": (True, False)},
    "mistral": {**GATED, "window": 5, "windowed": (True, True)},
    "ministral": {**GATED, "window": 5, "windowed": (True, False)},
    "ministral3": {**GATED, "window": None, "windowed": (False, False)},
    "exaone4": {**GATED, "window": 5, "windowed": (True, False)},
    "llama4_text": {**GATED, "rotated_layers": (True, False), "normed_heads": True},
    "lfm2": {**GATED, "attends": (False, True), "taps": 3},
    "phi3": {
        **GATED, "rotated": 12, "window": None, "windowed": (False, False),
        "rope_scaling": {"divisors": (1.0, 1.1, 1.5, 2.0, 2.5, 4.0), "magnitude": 1.2},
    },
    "stablelm": {**GATED, "rotated": 4, "biased": True},
    "hunyuan_v1_dense": GATED,
    "gemma": {**GATED, "activation": "gelu_pytorch_tanh"},
    "gemma2": {
        **GATED, "query_scalar": 64, "window": 5, "windowed": (True, False), "attention_softcap": 4.0,
        "logit_softcap": 40.0,
    },
    "granite": MULTIPLIED,
    "granitemoehybrid": MULTIPLIED,
    "gemma3_text": {
        **GATED, "kv_heads": 1, "head_size": 32, "query_scalar": 64, "window": 5, "windowed": (True, False),
        "local_rope_theta": 50.0,
    },
    "gemma3n_text": {
        **GATED, "layers": 5, "kv_heads": 1, "head_size": 32, "window": 5,
        "windowed": (True, False, True, True, False), "local_rope_theta": 50.0, "shared_layers": 2, "streams": 3,
        "rank": 32, "layer_width": 32, "layer_vocab": 90, "sparsity": (0.5, 0.0, 0.9, 0.0, 0.0), "scaled": True,
        "logit_softcap": 30.0,
    },
    "gpt2": {**SHAPE, "activation": "gelu_new"},
    "gpt_neo": {**SHAPE, "window": 5, "windowed": (False, True)},
    "phi": {**SHAPE, "rotated": 8, "rope_theta": 500.0},
    "bloom": {**SHAPE, "heads": 6, "width": 96, "ffn_width": 384},
    "gpt_neox": {**SHAPE, "rotated": 4, "rope_theta": 500.0, "parallel": True, "tied": False},
}  # fmt: skip

# They have every operator and layout between them. By day, costly grids take these alone; test_parity.py
# exports each family in float32, which compares its graph with torch.
DAILY = (
    "llama", "gemma2", "gemma3n_text", "gpt_neo", "gpt_neox", "bloom", "lfm2", "granitemoehybrid", "phi3",
    "llama4_text",
)  # fmt: skip

# Not in SMALL, because its layers with recurrent states have one dialect.
QWEN35 = FAMILIES["qwen3_5_text"].geometry(
    **{**GATED, "layers": 4, "head_size": 32, "context": 48}, rotated=8, attends=(False, False, False, True),
    key_heads=2, value_heads=4, key_size=16, value_size=8, taps=4,
)  # fmt: skip


def small(family, **keys):
    """The small geometry of a family, with other values for some of its fields."""
    return FAMILIES[family].geometry(**{**SMALL[family], **keys})


SOME = re.compile(r".*\.(v_proj|o_proj|out_proj|query_key_value|qkv_proj|c_attn|up_proj|c_fc|dense_h_to_4h)")


def adapted(base, folder, seed, **config):
    """A copy of a torch model with an adapter of random factors, which peft wrote into a folder."""
    import peft

    model = copy.deepcopy(base)
    if "target_modules" not in config:
        names = [name for name, _ in model.named_modules() if SOME.fullmatch(name)]
        config |= {"target_modules": names, "rank_pattern": {names[0]: 2}}
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(std=0.2)
    model.save_pretrained(folder)
    return model.eval()


ARCH = Architecture(
    blocks=[{"width": 32, "ffn_ratio": 1.0, "depth": 1}, {"width": 64, "ffn_ratio": 1.0, "depth": 2, "shared": True}],
    vocab=290,
    head_size=32,
    context=32,
)


def story(seed, sentences=12):
    words = random.Random(seed)
    lines = (
        f"{words.choice(['the miller', 'the baker', 'a child'])} {words.choice(['counts', 'carries', 'sells'])}"
        f" {words.choice(['flour', 'bread', 'water'])}."
        for _ in range(sentences)
    )
    return " ".join(lines)


def write_stories(path, seeds=range(60)):
    path.write_text(END_OF_TEXT.join(map(story, seeds)), encoding="utf-8")
    return path


def of_two_cores(profile):
    """The board with two of its cores. A search tries every pair of thread counts: 4 pairs in place of 9."""
    two = {"update": {"value": 2}}
    cpu, speed = profile.cpu, profile.performance.onnxruntime
    return profile.model_copy(update={
        "cpu": cpu.model_copy(update={"cores": cpu.cores.model_copy(**two)}),
        "performance": profile.performance.model_copy(update={"onnxruntime": speed.model_copy(update={
            name: getattr(speed, name).model_copy(**two) for name in ("decode_threads", "prefill_threads")
        })}),
    })  # fmt: skip


def quantized(source, form):
    """{names joined with `+`: QuantizedMatrix}"""
    return quantized_matrices(source.arch, graph_weights(source), form, Rounding(source.blocks))


def parts(matrices):
    """The names of all matrices, each by itself."""
    return [name for joined in matrices for name in joined.split("+")]


def mean_loss(folder, text, most_tokens=20_000):
    """(nats per predicted token, how many) of the text's first tokens, in rows as long as the context."""
    bundle = load_bundle(str(folder), verify=False)
    packed = packed_rows(read_texts([text])[0], load_tokenizer(Path(folder) / "tokenizer.json"), bundle.context)
    rows = packed[: max(1, most_tokens // bundle.context)].tolist()
    backend, total = open_backend(bundle), 0.0
    for row in rows:
        backend.truncate(0)
        total -= log_likelihood((backend.step(token)[None] for token in row[:-1]), row[1:])[0]
    backend.close()
    tokens = len(rows) * (bundle.context - 1)
    return total / tokens, tokens


def graph_bundle(folder, arch, dialect="portable", precision="fp32", context=None):
    """The bundle in `folder`, in memory; on disk are model.onnx and a data file of holes."""
    context = context or arch.context
    graph = decoder_graph(arch, GraphFormat(precision, dialect, context))
    model, length = model_without_weights(graph)
    folder.mkdir(parents=True)
    onnx.save_model(model, str(folder / MODEL_FILE))
    with open(folder / DATA_FILE, "wb") as data:
        data.truncate(length)
    return Bundle(
        folder=str(folder), schema=2, name=folder.name, family=family_of(arch).name, architecture={},
        precision=precision, dialect=dialect, weights="random", weights_source="holes", context=context,
        vocab=arch.vocab, stop_ids=(), kv_layers=tuple(KvLayer(*layer) for layer in arch.kv_layers),
        inputs=tuple(graph.inputs),
        outputs=tuple(graph.outputs),
        params=0, flops_per_token=0, head_flops=0, weight_bytes=graph.weight_bytes,
        decode_weight_bytes=graph.decode_weight_bytes, kv_bytes=0, boards=(),
        backends=(BackendNeed("onnxruntime", "1.10", ()),),
        threads=Threads(None, None), golden=Golden((), ()), chat=None, files=(BundleFile(DATA_FILE, length, ""),),
    )  # fmt: skip
