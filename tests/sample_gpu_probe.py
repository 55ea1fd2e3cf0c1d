"""The probe of a GPU of known times: the board's code on the stand-in, whose clock stands in for the board's."""
import gc

from merino_bench.probe import gpu as gpu_probe
from merino_bench.probe import run, timing
from tests.tensorrt_stand_in import ON_PATH, Gpu, Speeds, put_in

SPEEDS = Speeds(read_gb_s=14.2, fp32_gflops=310.0, fp16_gflops=770.0, launch_us=11.3, step_us=143.0,
                host_copy_gb_s=3.1)  # fmt: skip


class StandInClock:
    """In place of the module `time`."""

    def __init__(self, gpu):
        self.gpu = gpu

    def perf_counter(self):
        return self.gpu.elapsed_s


def probed(version, path, monkeypatch, speeds=SPEEDS):
    """-> the content of the probe.json that was written to `path`."""
    gpu = Gpu()
    gpu.speeds = speeds
    put_in(gpu, version, monkeypatch)
    for name, value in (("XDG_CACHE_HOME", str(path) + ".cache"), ("MERINO_STAND_IN_VERSION", version),
                        ("PYTHONPATH", ON_PATH)):  # fmt: skip
        monkeypatch.setenv(name, value)  # of the process whose memory is read
    monkeypatch.setattr(timing, "time", StandInClock(gpu))
    monkeypatch.setattr(gpu_probe, "MOST_RUN_S", 0.03)  # its times do not vary
    result = run.run_probe(str(path), backend="tensorrt")
    gc.collect()
    assert gpu.violations == [] and gpu.left() == []
    return result
