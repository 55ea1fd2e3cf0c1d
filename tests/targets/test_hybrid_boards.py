"""Hybrids on emulated CPUs of boards: gated convolutions (LFM2) and recurrent states (Qwen3.5), also truncated."""
import itertools
import json

import numpy as np
import pytest
from emulated_board import BY_DEFAULT, SCRIPTS, SITE, needs_board, on_board, output

from merino_edge.benchmarking.random_bundle import write_random_bundle
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from tests.sample_models import QWEN35, small

LOGITS = SCRIPTS / "logits.py"
GEOMETRIES = {"lfm2": small("lfm2", width=128, ffn_width=192, head_size=32), "qwen3.5": QWEN35}
IDS = [7, 41, 3, 90, 12, 55, 8, 23, 77, 61]
# A text, a part of it again behind another end, and the first one continued.
STEPS = [["prompt", IDS[:6]], ["step", IDS[6]], ["step", IDS[7]], ["truncate", 4], ["step", 30], ["prompt", IDS[:9]]]
DAILY = [("cortex-a53", "lfm2", "int4"), ("cortex-a76", "qwen3.5", "int4")]

pytestmark = [pytest.mark.slow, needs_board]


@pytest.mark.parametrize(("cpu", "family", "precision"), [
    pytest.param(*case, marks=() if case in DAILY else pytest.mark.nightly, id="-".join(case))
    for case in itertools.product(BY_DEFAULT, GEOMETRIES, ["fp32", "int4"])
])  # fmt: skip
def test_a_board_computes_what_this_machine_does(cpu, family, precision, tmp_path):
    write_random_bundle(GEOMETRIES[family], precision, tmp_path / "bundle", family)
    backend, expected = open_backend(load_bundle(str(tmp_path / "bundle"))), []
    for place, length in ((None, 6), (6, None), (7, None)):
        expected.append((backend.prefill(IDS[:length]) if place is None else backend.step(IDS[place])).copy())
    backend.truncate(4)
    expected.append(backend.step(30).copy())
    backend.truncate(4)
    expected.append(backend.prefill(IDS[4:9]).copy())
    out, app = tmp_path / "logits.npy", tmp_path / "bundle" / "merino.pyz"
    output(on_board(cpu, LOGITS, tmp_path / "bundle", json.dumps(STEPS), out, path=f"{SITE}:{app}"))
    logits, expected = np.load(out), np.array(expected)
    error = np.square(logits - expected).mean() / np.square(expected).mean()
    assert error < (1e-9 if precision == "fp32" else 1e-2)
