"""What takes part in a comparison: one of our bundles, another engine's model, or a probe of the machine.

Each is made once in a cache folder, in a process of its own (`--export`), and then measured in a fresh process per
round. All weights are random.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from merino_bench.harness.cases import Case
from merino_bench.harness.run import best_read_gb_s
from merino_bench.harness.turns import measure_apart
from merino_edge.benchmarking.engine_rows import Peers, as_read_by, make_apart, measure_peer_apart
from merino_edge.benchmarking.engines import PEERS, matrix_elements, missing, table_elements
from merino_edge.benchmarking.engines import WITH_Q8_0_CACHE as Q8_0_CACHE
from merino_edge.families.registry import read_geometry
from merino_runtime.bundle import Bundle, load_bundle
from merino_runtime.errors import MerinoError

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
SEED, TIMEOUT_S = 0, 1200.0
OURS, PROBE = "ours", "probe"


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


class Entrant(NamedTuple):
    """block: forced on all matrices in place of the exporter's choice. equal_bytes: a geometry that llama.cpp knows,
    with a vocabulary so large that as many weights are read as of the true one. kv: format of our cache, default
    float32."""

    engine: str
    model: str = ""
    precision: str = ""
    table: str = ""
    block: int | None = None
    equal_bytes: bool = False
    context: int = 512
    kv: str | None = None

    @property
    def name(self) -> str:
        form = self.precision if self.table in ("", self.precision) else f"{self.precision}, table {self.table}"
        more = [f"block {self.block}"] if self.block else []
        more += ["equal bytes"] if self.equal_bytes else []
        more += [f"{self.kv} cache"] if self.kv else []
        return " ".join(filter(None, [self.engine, self.model, form, *(f"({one})" for one in more)]))


def ours(model: str, precision: str, **more: Any) -> Entrant:
    return Entrant(OURS, model, precision, **more)


def llama(model: str, precision: str, table: str = "", q8_0_cache: bool = False, **more: Any) -> Entrant:
    return Entrant(Q8_0_CACHE if q8_0_cache else "llama.cpp", model, precision, table or precision, **more)


def bundle_folder(entrant: Entrant, cache: Path) -> Path:
    block = f"-block{entrant.block}" if entrant.block else ""
    precision = entrant.precision if entrant.engine == OURS else "fp32"  # a peer's: for its description only
    kv = f"-kv-{entrant.kv}" if entrant.kv else ""
    return cache / f"{entrant.model}-{precision}{block}{kv}-{entrant.context}"


def make(entrant: Entrant, cache: Path) -> dict[str, Any]:
    """-> facts of what was made or found: sizes and notes. Raises MerinoError where it cannot be made."""
    if entrant.engine == PROBE:
        return {}
    folder = bundle_folder(entrant, cache)
    if not (folder / "bundle.json").exists():
        export_apart(entrant, folder, cache)
    bundle = load_bundle(str(folder), verify=False)
    if entrant.engine == OURS:
        kv_slot_bytes = bundle.kv_bytes / bundle.context
        return {
            "params": bundle.params, "decode_weight_bytes": bundle.decode_weight_bytes, "kv_slot_bytes": kv_slot_bytes,
            "weight_bytes": bundle.weight_bytes, "kv_bytes": bundle.kv_bytes, "notes": [],
            "layer_params": matrix_elements(read_geometry(bundle.family, bundle.architecture).operators),
        }  # fmt: skip
    if not missing(peer_of(entrant)):
        seen = peer_bundle(entrant, bundle)
        made = make_apart(peers_in(cache), peer_of(entrant), seen)
        read = as_read_by(peer_of(entrant), seen)
        notes = [*made.notes, *([f"{seen.vocab} ids, to read as much as the true geometry"] * entrant.equal_bytes)]
        return {
            "params": read.params, "decode_weight_bytes": read.decode_weight_bytes, "weight_bytes": made.bytes,
            "kv_slot_bytes": read.kv_bytes / bundle.context, "notes": notes,
        }  # fmt: skip
    raise MerinoError(str(missing(peer_of(entrant))))


def export_apart(entrant: Entrant, folder: Path, cache: Path) -> None:
    """In a process of its own, whose memory is gone before anything is timed."""
    needed = entrant if entrant.engine == OURS else ours(entrant.model, "fp32", context=entrant.context)
    request = json.dumps({"folder": str(folder), "cache": str(cache), "entrant": needed._asdict()})
    done = subprocess.run(
        [sys.executable, Path(__file__).parent, "--export", request], capture_output=True, text=True, check=False
    )
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        raise MerinoError(f"export of {needed.name} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")


def measure(entrant: Entrant, cache: Path, case: Case, repetitions: int) -> dict[str, Any]:
    """One fresh process: `measure`'s figures, without what a table does not need."""
    if entrant.engine == PROBE:
        return {"read_gb_s": best_read_gb_s()}
    folder = bundle_folder(entrant, cache)
    if entrant.engine == OURS:
        found = measure_apart(str(folder), case, repetitions, SEED, False, TIMEOUT_S)
    else:
        bundle = peer_bundle(entrant, load_bundle(str(folder), verify=False))
        path = make_apart(peers_in(cache), peer_of(entrant), bundle).path
        found = measure_peer_apart(peers_in(cache), peer_of(entrant), bundle, path, case, repetitions, SEED)
    kept = ("engine", "threads", "prefill_ms", "step_ms", "load_ms", "peak_rss_mb", "flags", "notes")
    return {key: found[key] for key in kept}


def peer_of(entrant: Entrant) -> Any:
    wanted = (entrant.engine, entrant.precision, entrant.table or entrant.precision)
    return next(one for one in PEERS if (one.engine, one.precision, one.table) == wanted)


def peers_in(cache: Path) -> Peers:
    return Peers((), cache / "peers")


def peer_bundle(entrant: Entrant, bundle: Bundle) -> Bundle:
    """The bundle that a peer sees: with `equal_bytes`, a table of the layers' width with as many weights as the true
    table and its projections."""
    if not entrant.equal_bytes:
        return bundle
    geometry = read_geometry(bundle.family, bundle.architecture)
    width = geometry.layer_shapes[0].width
    changes = 2 * width * geometry.embed_width
    vocab = (table_elements(geometry.operators) + changes) // width // 8 * 8
    return bundle._replace(architecture={**bundle.architecture, "embed_width": width, "vocab": vocab}, vocab=vocab)
