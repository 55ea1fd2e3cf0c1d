"""LoRA adapters (arXiv 2106.09685) for the graph, read from the folders in which peft stores them.

The graph holds the factors of all adapters, and gathers those of the one that a sequence chooses: its optional input
`adapter` is an index, and -1 is the model without one. Their matmuls are float32 in every format.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from merino_edge.export.dialects.graph import Factors
from merino_edge.families.geometry import Geometry
from merino_edge.families.graph_ops import MatrixNames, Weights
from merino_edge.families.weights import TRANSPOSED
from merino_edge.training.recipe import ADAPTER
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, FACTORS = "base_model.model.", (".lora_A.weight", ".lora_B.weight")  # of names in WEIGHTS
PLAIN = "Train it as plain LoRA, or merge it into the model with peft's merge_and_unload and export that"
# Keys of CONFIG that change what is computed, or the base model.
REFUSED = (
    "use_dora", "bias", "lora_bias", "modules_to_save", "alpha_pattern", "layer_replication",
    "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "use_qalora", "arrow_config",
)  # fmt: skip
CHANGED_BASES = ("pissa", "olora", "corda", "loftq")  # of `init_lora_weights`


def read_adapters(folders: Sequence[Path], arch: Geometry, weights: Weights) -> dict[str, Factors]:
    """Return the factors of all adapters, in the layout of the graph, with ranks padded to a matrix's largest.

    `weights`: of the base model, in the graph's layout. Raises MerinoError for an adapter that is not plain LoRA, is
    damaged or is of another model.
    """
    listed = MatrixNames()
    if folders:
        arch.build_graph(listed)
    matrices = [name for names, is_table in listed.read if not is_table for name in names]
    shapes = {name: weights[name].shape for name in [*matrices, *listed.floats]}
    read = [read_adapter(folder, shapes) for folder in folders]
    adapters = {}
    for name in (name for name in shapes if any(name in one for one in read)):
        rows, columns = shapes[name]
        rank = max(len(one[name][0]) for one in read if name in one)
        down = np.zeros((len(read), columns, rank), np.float32)
        up = np.zeros((len(read) + 1, rank, rows), np.float32)
        layout = arch.layout(name)
        for index, one in enumerate(read):
            if name in one:
                a, b = one[name]  # [rank, in], [out, rank]
                b = layout.to_graph(b) if layout and layout is not TRANSPOSED else b
                down[index, :, : len(a)], up[index, : len(a)] = a.T, b.T
        adapters[name] = Factors(down, up)
    return adapters


def read_adapter(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the factors A [rank, in] and B [out, rank], with the scale, of each matrix that an adapter changes."""
    folder = folder / ADAPTER if (folder / ADAPTER / CONFIG).is_file() else folder
    refusal = f"--set adapters: {folder} "
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise MerinoError(f"{refusal}has no {name}. Name a folder of `train --lora`, or one that peft wrote")
    config = read_json(str(folder / CONFIG), "Copy the adapter again.")
    check_config(config, refusal)
    try:
        tensors = {name: tensor.float().numpy() for name, tensor in load_file(folder / WEIGHTS).items()}
    except (SafetensorError, OSError) as error:
        raise MerinoError(f"{refusal}has a damaged {WEIGHTS}: {error}. Copy it again") from error
    factors: dict[str, list[np.ndarray]] = {}
    for name, tensor in tensors.items():
        part = next((part for part in FACTORS if name.startswith(PREFIX) and name.endswith(part)), None)
        matrix = name.removeprefix(PREFIX).removesuffix(part or "") + ".weight"
        if part is None or matrix not in shapes:
            raise MerinoError(
                f"{refusal}changes {name}, which is no matrix of a layer of this model. Export its own base model, or"
                " train it with --lora, which takes all linear layers and neither the embedding nor the head"
            )
        factors.setdefault(matrix, [np.zeros((0, 0), np.float32)] * 2)[FACTORS.index(part)] = tensor
    scaled = {}
    for matrix, (a, b) in factors.items():
        rows, columns = shapes[matrix]
        fits = len(a) and a.shape == (len(a), columns) and b.shape == (rows, len(a))
        if not (fits and np.isfinite(a).all() and np.isfinite(b).all()):
            raise MerinoError(
                f"{refusal}has factors {list(a.shape)} and {list(b.shape)} of {matrix}; allowed are finite ones [rank,"
                f" {columns}] and [{rows}, rank]. Export the base model that it was trained on"
            )
        root = math.sqrt(len(a)) if config.get("use_rslora") else len(a)
        scaled[matrix] = a, b * np.float32(config["lora_alpha"] / root)
    return scaled


def check_config(config: Any, refusal: str) -> None:
    """Raise MerinoError for an adapter that is not plain LoRA."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise MerinoError(f"{refusal}is of type {kind!r:.40}, supported is 'LORA'. {PLAIN}")
    for key in REFUSED:
        if config.get(key) not in (None, False, "none", [], {}):
            raise MerinoError(f"{refusal}has {key} = {config[key]!r:.80}, which is not supported. {PLAIN}")
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(CHANGED_BASES):
        raise MerinoError(f"{refusal}was begun by {start!r:.40}, which changes the base model. {PLAIN}")
    if type(config.get("lora_alpha")) not in (int, float):
        raise MerinoError(f"{refusal}has lora_alpha = {config.get('lora_alpha')!r:.40}, not a number. Copy it again")
