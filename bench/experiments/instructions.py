"""Instructions per token of the board code on an emulated core, by format.

    python bench/experiments/instructions.py -o FILE

Counted under user-mode emulation (`tests/targets/counted_instructions.py`): a design of 1.8 M weights, which the
embedded model was before 6a73dbb, on two cores, and one of 35 M on a Cortex-A72. MERINO_QEMU_PLUGINS names a
qemu-aarch64 that was built with plugins.
`decode_on_boards.py` has whole steps beside llama.cpp.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "targets"))
os.environ.setdefault("MERINO_USERS_CACHE", os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"))

from counted_instructions import count, why_not  # noqa: E402 - a module of the tests
from write_record import write_record  # noqa: E402

from merino_edge.export.export import export  # noqa: E402
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source  # noqa: E402

FORMATS = [
    ("fp32", "dotprod"), ("int8", "no-dotprod"), ("int4", "no-dotprod"), ("int8", "dotprod"), ("int4", "dotprod"),
]  # fmt: skip
PLAIN, DOTPROD = "cortex-a72", "cortex-a76"
SMALL = {
    "blocks": [
        {"width": 128, "ffn_ratio": 1.5, "depth": 2, "shared": True},
        {"width": 192, "ffn_ratio": 1.5, "depth": 1, "shared": False},
        {"width": 256, "ffn_ratio": 1.0, "depth": 1, "shared": False},
        {"width": 256, "ffn_ratio": 1.0, "depth": 2, "shared": True},
    ],
    "vocab": 4096, "head_size": 32, "context": 512, "width_change": "projection",
}  # fmt: skip
DESIGN = {
    "blocks": [
        {"width": 512, "ffn_ratio": 2.0, "depth": 5, "shared": False},
        {"width": 640, "ffn_ratio": 2.0, "depth": 6, "shared": False},
    ],
    "vocab": 8192, "head_size": 64, "context": 128,
}  # fmt: skip
PROMPT = 8


def rows(name: str, design: dict[str, object], cpus: tuple[str, ...], folder: Path) -> list[dict[str, object]]:
    """One per format and core: those that are written for the core, and of int8 also the other."""
    path, counts = folder / f"{name}.json", []
    path.write_text(json.dumps(design))
    source = load_source(str(path))
    for precision, core in FORMATS:
        bundle = export(
            source, folder / f"{name}-{precision}-{core}", ExportRequest(precision=precision, core=core)
        ).bundle
        for cpu in cpus:
            counted = count(cpu, Path(bundle.folder), PROMPT)
            counts.append({
                "model": name, "precision": precision, "core": bundle.core, "cpu": cpu,
                "weights": bundle.params, "decode_weight_bytes": bundle.decode_weight_bytes,
                "decode": counted.decode, "prefill": counted.prefill, "prompt": PROMPT,
            })  # fmt: skip
            print(counts[-1], file=sys.stderr)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", type=Path, required=True)
    out = parser.parse_args().o
    if why_not():
        sys.exit(why_not())
    with tempfile.TemporaryDirectory() as folder:
        counts = rows("design-2m", SMALL, (PLAIN, DOTPROD), Path(folder))
        counts += rows("design-35m", DESIGN, (PLAIN,), Path(folder))
    write_record(out, {"onnxruntime": "1.32.0", "rows": counts})


if __name__ == "__main__":
    main()
