"""The whole harness on a backend whose delays are known: processes, rounds, figures.

The backend notes what each call really took by a clock of its own, so a busy machine, where a sleep lasts longer,
changes nothing. The timed assertions are about our own delays, never about a computation.
"""
import json
import os
import statistics

import pytest
from quick_bench import read_briefly

from merino_bench.harness import run
from merino_bench.harness.cases import BenchRequest
from merino_bench.harness.run import run_bench
from merino_bench.harness.worker import WARM_UP_S
from merino_bench.sensors.power import find_source

pytestmark = pytest.mark.slow

STEP_S, CACHED_S, ID_S = 0.02, 0.0005, 0.003  # of a step, more of it per cached id, of a prefill per id
KNOWN_BACKEND = """
import json, os, time
import numpy as np
import merino_runtime.backends
from merino_runtime.backends.backend import Backend

class KnownDelays(Backend):
    engine = "onnxruntime 0.0 CPU"
    def __init__(self, bundle, threads):
        self.context, self.vocab, self.decode_threads = bundle.context, bundle.vocab, threads or 1
        self.ids, self._calls, self._logits = [], [], np.zeros(bundle.vocab, np.float32)
        self._last = time.monotonic()
    def prefill(self, ids):
        return self._take("prefill", {id_s} * len(ids), ids)
    def step(self, token_id):
        return self._take("step", {step_s} + {cached_s} * len(self.ids), [token_id])
    def _take(self, kind, seconds, ids):
        start = time.monotonic()
        cached = len(self.ids)
        self.ids.extend(ids)
        while time.monotonic() < start + seconds:
            time.sleep(max(0.0, start + seconds - time.monotonic()))
        end, before = time.monotonic(), self._last
        self._last = end
        self._calls.append([kind, cached, len(ids), 1000 * (end - start), 1000 * (end - before)])
        return self._logits
    def truncate(self, length):
        assert 0 <= length <= len(self.ids)
        del self.ids[length:]
    def close(self):
        folder = {folder!r}
        with open(os.path.join(folder, "%03d" % len(os.listdir(folder))), "w") as file:
            json.dump(self._calls, file)

from merino_bench.sensors import environment
environment.flags_of = lambda *_: []  # a disturbed process would be measured again
merino_runtime.backends.open_backend = lambda bundle, threads=None, *_, **__: KnownDelays(bundle, threads)
"""


def run_known(bundle, request, code, log, id_s=ID_S, step_s=STEP_S):
    """-> rows. Python imports `sitecustomize` when it starts."""
    (code / "sitecustomize.py").write_text(KNOWN_BACKEND.format(
        id_s=id_s, step_s=step_s, cached_s=CACHED_S, folder=str(log)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(code), prepend=os.pathsep)
        read_briefly(patch.setattr)
        return run_bench([bundle], request)


@pytest.fixture(scope="module")
def measured(bundle_dirs, tmp_path_factory):
    """(rows by test, the calls that each process noted, in order)."""
    code, log = tmp_path_factory.mktemp("code"), tmp_path_factory.mktemp("log")
    rows = run_known(bundle_dirs["portable"], BenchRequest((16,), (12,), 3, depths=(0, 32)), code, log)
    calls = [json.loads((log / name).read_text()) for name in sorted(os.listdir(str(log)))]
    assert not [flag for row in rows for flag in row["flags"] if flag.startswith("failed")]
    assert [len(row["processes"]) for row in rows] == [3] * 4
    return {row["test"]: (row, calls[3 * place:3 * place + 3]) for place, row in enumerate(rows)}


@pytest.mark.parametrize("test, start", [("tg12", 8), ("tg12 @ d32", 32)])
def test_decode_figures_are_the_delays(measured, test, start):
    row, processes = measured[test]
    noted = [[call[3] for call in calls if call[0] == "step"][-12:] for calls in processes]
    cached = [[call[1] for call in calls if call[0] == "step"][-12:] for calls in processes]
    assert cached == [list(range(start, start + 12))] * 3
    # A process that loses its core between two calls takes longer than what was noted: the median step does not.
    rounds = row["rounds_ms"]
    medians = [statistics.median(samples) for samples in rounds]
    assert medians == pytest.approx([statistics.median(really) for really in noted], rel=0.03)
    assert row["tok_s"] == pytest.approx(statistics.mean(12000 / sum(samples) for samples in rounds), rel=1e-3)
    assert row["tpot_ms"] == pytest.approx(statistics.mean(sum(rounds, [])), rel=1e-3)
    # What the undisturbed call takes is the delay that was asked for.
    requested = [1000 * (STEP_S + CACHED_S * length) for length in cached[0]]
    ratios = [samples[place] / requested[place] for samples in row["rounds_ms"] for place in range(12)]
    assert 1 <= min(ratios) < 1.03


@pytest.mark.parametrize("test, depth", [("pp16", 0), ("pp16 @ d32", 32)])
def test_prefill_figures_are_the_delays(measured, test, depth):
    row, processes = measured[test]
    noted = [[call for call in calls if call[0] == "prefill"] for calls in processes]
    # The depth is cached once, then a warm-up that ends with the first prefill after its time, and one repetition.
    fill = [[0, 32]] if depth else []
    for calls in noted:
        shapes = [call[1:3] for call in calls]
        assert shapes[:len(fill)] == fill and shapes[len(fill):] == [[depth, 16]] * (len(shapes) - len(fill))
        warming = calls[len(fill):-1]
        # The warm-up's time has the moments between the calls too: it ends with the first call behind it.
        assert sum(call[4] for call in warming) >= 1000 * WARM_UP_S > sum(call[3] for call in warming[:-1])
    really = [calls[-1][3] for calls in noted]
    assert sum(row["rounds_ms"], []) == pytest.approx(really, rel=0.03) and row["prefill_ms"] == row["ms_p50"]
    assert row["tok_s"] == pytest.approx(statistics.mean(16000 / ms for ms in really), rel=0.03)
    # What the undisturbed call takes is the delay that was asked for; each of the three that count may lose its core.
    undisturbed = min(call[3] for calls in noted for call in calls[len(fill):])
    assert 1 <= undisturbed / (1000 * ID_S * 16) < 1.03 and min(sum(row["rounds_ms"], [])) >= 1000 * ID_S * 16


def test_the_first_token_of_a_decode_row_is_the_prefills(measured):
    row, processes = measured["tg12 @ d32"]
    prefills = [call[1:3] for call in processes[0] if call[0] == "prefill"]
    assert prefills == [[0, 24], *[[24, 8]] * (len(prefills) - 1)] and len(prefills) >= 3
    really = [[call[3] for call in calls if call[0] == "prefill"][-1] for calls in processes]
    assert row["prefill_ms"] == pytest.approx(statistics.median(really), rel=0.03) and row["ttft_ms"] is None


# ---- energy: sensors at the intervals that real ones have


def program_of_a_raspberry_pi_5(folder, patch):
    program = folder / "vcgencmd"
    program.write_text("#!/bin/sh\n[ $1 = pmic_read_adc ] && echo 'VDD_CORE_A current(7)=2.5A' "
                       "&& echo 'VDD_CORE_V volt(15)=0.8V'\n")
    program.chmod(0o755)
    patch.setenv("PATH", str(folder), prepend=os.pathsep)
    return "vcgencmd pmic_read_adc", 2.0


def files_of_an_orin(folder, patch):
    for name, text in (("name", "ina3221"), ("in1_label", "VDD_IN"), ("in1_input", "5000"), ("curr1_input", "800")):
        path = folder / "sys/class/hwmon/hwmon1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    patch.setattr(run, "find_source", lambda: find_source(str(folder)))
    return "ina3221 (hwmon)", 4.0


@pytest.mark.parametrize("board, id_s, step_s", [
    pytest.param(program_of_a_raspberry_pi_5, 0.11, 0.1, marks=pytest.mark.nightly), (files_of_an_orin, 0.025, 0.02)])
def test_every_row_has_energy_at_the_interval_of_the_source(board, id_s, step_s, bundle_dirs, tmp_path, monkeypatch):
    """Also the last row, after which nothing runs, and the power at rest."""
    name, watts = board(tmp_path, monkeypatch)
    log = tmp_path / "log"
    log.mkdir()
    rows = run_known(bundle_dirs["portable"], BenchRequest((20,), (20,), 1), tmp_path, log, id_s, step_s)
    for row in rows:
        energy = row["energy"]
        assert energy["source"] == name and energy["idle_w"] == pytest.approx(watts), row["notes"]
        seconds = sum(map(sum, row["rounds_ms"])) / 1000
        assert row["j_per_token"] == pytest.approx(watts * seconds / 20, rel=0.01), row["notes"]
        kind = "decode" if row["test"] == "tg20" else "prefill"
        assert energy[kind + "_net_j"] == pytest.approx(0, abs=0.05)


def test_a_row_too_short_for_its_sensor_says_so(bundle_dirs, tmp_path, monkeypatch):
    program_of_a_raspberry_pi_5(tmp_path, monkeypatch)
    log = tmp_path / "log"
    log.mkdir()
    row, = run_known(bundle_dirs["portable"], BenchRequest((4,), (), 1), tmp_path, log)
    assert row["j_per_token"] is None
    assert any("one each 0.5 s" in note and "-r" in note for note in row["notes"])
