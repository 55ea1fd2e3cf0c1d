"""The models of the comparisons, exported by the project's own code. Runs in a process of its own (`--export`)."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VOCAB_CUT = 2048  # of the models that show what a large vocabulary costs
VOCAB_PREFERRED = 16384  # what the search takes for a Raspberry Pi 4 where the vocabulary is open
LAYERS_66M, WIDTH_66M, VOCAB_66M, CONTEXT_66M = 14, 640, 50257, 2048
# Stored parameters at most OPT-350M's 331.2 M / 5.5. With parameters as the only budget the search shares layers and
# goes deep, so that a token reads far more weights than are stored: the FLOPs are the paper's middle budget.
DESIGN = ("--device", "jetson-nano", "--backend", "onnxruntime", "--params-m", "60.2", "--flops-g", "110")

TIMED, FASTER = "timed-", 5.4  # a tenth above the bar, for what predictions are off by
CONTEXT, PROMPT = 512, 64

# For trying the scripts.
TRY = {"blocks": [{"width": 64, "ffn_ratio": 1, "depth": 2}], "vocab": 4096, "head_size": 32, "context": CONTEXT_66M}
TRY_OPT = {"width": 64, "layers": 2, "heads": 2, "ffn_width": 128, "embed_width": 32, "vocab": 4096, "context": 2048,
           "pre_norm": False}  # fmt: skip


def export_model(request: dict[str, Any]) -> None:
    from merino_edge.export.export import export
    from merino_edge.export.quantisation import groups
    from merino_edge.export.request import ExportRequest

    entrant = request["entrant"]
    if entrant["block"]:
        groups.GROUP_SIZES = (entrant["block"],)  # no option of the exporter: the choice per matrix is what users get
    source = source_of(entrant["model"], Path(request["cache"]))
    folder, context = Path(request["folder"]), entrant["context"]
    export(source, folder, ExportRequest(precision=entrant["precision"], context=context, kv=entrant["kv"]))


def source_of(model: str, cache: Path) -> Any:
    from merino_edge.export.source import random_source
    from merino_edge.families.designed import Architecture
    from merino_edge.families.zoo import model as published

    opt = published("opt-350m").geometry
    base, _, cut = model.partition("-v")
    update = {"vocab": int(cut)} if cut else {}
    if base == "opt-350m":
        return random_source(opt.model_validate({**opt.model_dump(), **update}), model)
    if base == "66m":
        block = {"width": WIDTH_66M, "ffn_ratio": 1, "depth": LAYERS_66M}
        arch = {"blocks": [block], "vocab": VOCAB_66M, "head_size": 64, "context": CONTEXT_66M}
    elif base == "64m":
        arch = designed(cache / "design-64m.json", DESIGN)
    elif base.startswith(TIMED):
        arch = designed(cache / f"design-{base}.json", for_the_time(base.removeprefix(TIMED)))
    elif base == "try-opt":
        return random_source(opt.model_validate({**TRY_OPT, **update}), model)
    else:
        arch = TRY
    return random_source(Architecture.model_validate({**arch, **update}), model)


def designed(path: Path, options: Sequence[str]) -> dict[str, Any]:
    """By the command that a user types; kept as design.json in the cache folder."""
    if not path.exists():
        command = [sys.executable, "-c", "from merino_edge.cli.app import main; main()", "design", *options, "-o", path]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return dict(json.loads(path.read_text())["architecture"])


def for_the_time(precision: str) -> tuple[str, ...]:
    """A decode time on this machine that OPT-350M's predicted one exceeds FASTER times, in one format."""
    from merino_edge.calibration.board import board
    from merino_edge.families.zoo import model
    from merino_edge.prediction.cost_model import cost_model
    from merino_edge.prediction.shape import InferenceShape

    costs = cost_model(board("host"), InferenceShape(precision, CONTEXT, PROMPT))
    opt_ms = costs.predict(model("opt-350m").geometry.operators).decode_ms
    return ("--device", "host", "--precision", precision, "--params-m", "60.2", "--decode-ms", f"{opt_ms / FASTER:.4g}",
            "--context", str(CONTEXT), "--prompt", str(PROMPT))  # fmt: skip
