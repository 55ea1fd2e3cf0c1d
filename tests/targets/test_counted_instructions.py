"""Instructions per token on an emulated board's core, held against the record of them.

A plugin of the emulator counts; it is built where a compiler is. A count is repeatable to a per cent, which no time on
a shared machine is, and it holds for the board, because the same machine code runs there. It leaves out how many cycles
an instruction takes and how long memory does.
"""
import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest
from emulated_board import BOARD_ROOT, PYTHON, SCRIPTS, SITE

from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source

QEMU = os.environ.get("MERINO_QEMU_PLUGINS") or shutil.which("qemu-aarch64")
RUNTIME = Path(__file__).parents[2] / "runtime"
TIMEOUT_S = 600


class Counted(NamedTuple):
    prefill: int  # of the whole prompt, into an empty cache
    decode: int  # of one step, the median


@functools.cache
def why_not() -> str:
    """Why nothing can be counted here; "" where it can."""
    if not (QEMU and PYTHON.exists()):
        return "no emulated board on this machine (make boards sets one up)"
    if not shutil.which("cc"):
        return "no C compiler to build the emulator's plugin with"
    tried = subprocess.run([QEMU, "-plugin", "help"], capture_output=True, text=True)
    if "unknown option" in tried.stderr:
        return f"{QEMU} was built without plugins (MERINO_QEMU_PLUGINS can name another)"
    return ""


@functools.cache
def plugin() -> Path:
    path = Path(tempfile.mkdtemp(prefix="merino-plugin-")) / "count.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", path, SCRIPTS / "count.c"], check=True)
    return path


def count(cpu: str, bundle: Path, prompt: int = 8, steps: int = 5) -> Counted:
    """Of the bundle on one emulated core: counted.py marks each place by a call of getsid."""
    script = [SCRIPTS / "counted.py", bundle, str(prompt), str(steps)]
    settings = ["-E", f"PYTHONPATH={SITE}:{RUNTIME}", "-E", "PYTHONHASHSEED=0", "-E", "PYTHONNOUSERSITE=1"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        emulator = [QEMU, "-plugin", f"{plugin()},out={out}", "-L", BOARD_ROOT, "-cpu", cpu]
        subprocess.run([*emulator, *settings, PYTHON, *script], check=True, capture_output=True, timeout=TIMEOUT_S)
        counts = [int(line) for line in out.read_text().split()]
    between = [after - before for before, after in zip(counts, counts[1:], strict=False)]
    return Counted(between[1], int(median(between[2:])))


RECORD = json.loads((Path(__file__).parents[2] / "bench" / "results" / "instructions-arm64.json").read_text())
ROWS = {(row["model"], row["precision"], row["core"], row["cpu"]): row for row in RECORD["rows"]}
SMALL = {  # 1.8 M weights
    "blocks": [
        {"width": 128, "ffn_ratio": 1.5, "depth": 2, "shared": True},
        {"width": 192, "ffn_ratio": 1.5, "depth": 1, "shared": False},
        {"width": 256, "ffn_ratio": 1.0, "depth": 1, "shared": False},
        {"width": 256, "ffn_ratio": 1.0, "depth": 2, "shared": True},
    ],
    "vocab": 4096, "head_size": 32, "context": 512, "width_change": "projection",
}  # fmt: skip
FORMATS = [("fp32", None), ("int8", "no-dotprod"), ("int4", "no-dotprod")]


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
@pytest.mark.parametrize(("precision", "core"), FORMATS)
def test_a_token_takes_as_many_instructions_as_recorded(precision, core, tmp_path):
    """Within a tenth per weight: more is another path through ONNX Runtime, or another graph."""
    row = ROWS["design-2m", precision, core, "cortex-a72"]
    (tmp_path / "design.json").write_text(json.dumps(SMALL))
    request = ExportRequest(precision=precision, core=core)
    bundle = export(load_source(str(tmp_path / "design.json")), tmp_path / "bundle", request).bundle
    counted = count("cortex-a72", Path(bundle.folder), row["prompt"])
    assert counted.decode == pytest.approx(row["decode"], rel=0.1)
    assert counted.prefill == pytest.approx(row["prefill"], rel=0.1)
