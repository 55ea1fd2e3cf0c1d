"""Designs and OPT through the TensorRT backend on a stand-in, beside ONNX Runtime on the same graph; gpu_check.py."""

import gc
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import Source
from merino_edge.families.designed import Architecture
from merino_edge.families.opt import OptArchitecture
from merino_runtime.backends import open_backend
from merino_runtime.backends.engine_build import build_engine
from merino_runtime.backends.engine_file import HEADER_BYTES
from merino_runtime.bundle import load_bundle
from tests.tensorrt_stand_in import VERSIONS, Gpu, put_in
from tests.tensorrt_stand_in.building import PLAN

VOCAB = 211


def random_design(seed):
    """Any geometry the search may give, in small; contexts below and above one chunk of a prefill."""
    random = np.random.default_rng(seed)
    head_size = int(random.choice([32, 64]))
    widths = sorted(int(width) for width in random.choice([64, 96, 128, 192], random.integers(1, 4)))
    blocks = [
        {"width": width if width % head_size == 0 else 64, "ffn_ratio": float(random.choice([1.0, 1.5])),
         "depth": int(random.integers(1, 3)), "shared": bool(random.integers(2)),
         "kv_heads": 1 if random.integers(2) else None}
        for width in widths
    ]  # fmt: skip
    blocks.sort(key=lambda block: block["width"])
    return Architecture(blocks=blocks, vocab=VOCAB, head_size=head_size, context=int(random.choice([41, 70, 97])))


def opt(pre_norm):
    return OptArchitecture(
        width=64, layers=2, heads=2, ffn_width=96, embed_width=64 if pre_norm else 32, vocab=VOCAB, context=75,
        pre_norm=pre_norm,
    )  # fmt: skip


MODELS = {f"design {seed}": random_design(seed) for seed in range(8)}
MODELS.update({"opt pre-norm": opt(True), "opt post-norm": opt(False)})


@pytest.fixture(scope="module")
def bundle_of(decoder, tmp_path_factory):
    """A function: (a name of MODELS, precision) -> its portable bundle."""
    made = {}

    def of(name, precision="fp32"):
        if (name, precision) not in made:
            source = Source(name, MODELS[name], decoder(MODELS[name], seed=4), "random", "a test's", (), None)
            folder = tmp_path_factory.mktemp("designs") / "bundle"
            export(source, folder, ExportRequest(dialect="portable", precision=precision))
            made[name, precision] = load_bundle(str(folder), verify=False)
        return made[name, precision]

    return of


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = Gpu()
    yield machine
    gc.collect()
    assert machine.violations == []
    assert machine.left() == []


def parts_of(seed, count):
    """Lengths of prefills, together `count` ids."""
    random = np.random.default_rng(seed)
    while count:
        part = min(count, int(random.choice([1, 2, 9, 30, 64])))
        count -= part
        yield part


@pytest.mark.parametrize("name", MODELS)
def test_the_same_ids_come_out(name, bundle_of, gpu, monkeypatch):
    bundle = bundle_of(name)
    other = open_backend(bundle, backend="onnxruntime")
    prompt = [(11 * place + 5) % VOCAB for place in range(bundle.context // 2)]
    for seed, version in enumerate(VERSIONS):
        put_in(gpu, version, monkeypatch)
        backend = open_backend(bundle, backend="tensorrt")
        other.truncate(0)
        for part in parts_of(seed, len(prompt)):
            new = prompt[backend.length : backend.length + part]
            logits, expected = backend.prefill(new), other.prefill(new)
        while True:
            assert np.abs(logits - expected).max() < 2e-5 * np.abs(expected).max()
            assert logits.argmax() == expected.argmax()
            if backend.length == bundle.context:
                break
            token = int(expected.argmax())
            logits, expected = backend.step(token), other.step(token)
        twin, ids = backend.fork(), backend.ids[: bundle.context // 3]
        for one in (twin, other):
            one.truncate(len(ids))
        assert np.abs(twin.prefill([1, 2, 3]) - other.prefill([1, 2, 3])).max() < 2e-5 * np.abs(expected).max()
        twin.close()
        backend.close()
    other.close()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["design 1", "opt pre-norm", "opt post-norm"])
def test_in_an_engine_of_float16_kernels_the_norms_and_nothing_else_are_float32(
    name, precision, bundle_of, gpu, monkeypatch, tmp_path
):
    put_in(gpu, VERSIONS[0], monkeypatch)
    bundle = bundle_of(name, precision)
    build_engine(bundle, True, None, lambda _: None)
    plan = json.loads(next(tmp_path.rglob("*.engine")).read_bytes()[HEADER_BYTES + len(PLAN) :])
    kinds = [each.partition("_")[0] for each in plan["pinned"]]
    norm = ["Mul", "ReduceMean", "Add", "Sqrt", "Div"]  # of RMSNorm; LayerNorm subtracts a mean before
    norm += ["ReduceMean", "Sub"] if name.startswith("opt") else []
    count = kinds.count("Sqrt")
    # The product before a LayerNorm's first mean is its own sum with the residual, which is no part of the norm's.
    extra = sorted(set(kinds) - set(norm))
    assert count >= 2 and extra == [] and [kinds.count(kind) for kind in ("Sqrt", "Div")] == [count, count]
    assert kinds.count("ReduceMean") == norm.count("ReduceMean") * count


def test_a_bundle_in_float16_runs_on_both_versions(bundle_of, gpu, monkeypatch):
    bundle = bundle_of("design 1", "fp16")
    other = open_backend(bundle, backend="onnxruntime")
    expected = other.prefill([5, 6, 7]).copy()
    other.close()
    for version in VERSIONS:
        put_in(gpu, version, monkeypatch)
        backend = open_backend(bundle, backend="tensorrt")
        assert np.abs(backend.prefill([5, 6, 7]) - expected).max() < 2e-2 * np.abs(expected).max()
        assert {field.dtype for field in backend._memory.caches} == {"float16"} and "fp16" in backend.engine
        backend.step(9)
        backend.step(8)
        backend.close()


ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "gpu_check.py"


@pytest.fixture(scope="module")
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bundle(bundle_dirs):
    return load_bundle(str(bundle_dirs["portable"]))


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, gpu_check, monkeypatch, capsys):
    if gpu_check.gpu_name() is not None:
        pytest.skip("this machine has a GPU: run the script")
    monkeypatch.setattr(sys, "argv", ["gpu_check", "-o", str(tmp_path / "x")])
    assert gpu_check.main() == 1
    message = capsys.readouterr().err
    assert "no NVIDIA GPU" in message and "Nothing was run" in message and not (tmp_path / "x").exists()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_whole_check_over_the_stand_in(gpu_check, bundle, version, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gpu = Gpu()
    put_in(gpu, version, monkeypatch)
    monkeypatch.setattr(gpu_check, "gpu_name", lambda: gpu.name)
    monkeypatch.setattr(sys, "argv", ["gpu_check", bundle.folder, "-o", str(tmp_path / "record.json"), "--fp16"])
    assert gpu_check.main() == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["engine"] == f"tensorrt {version} fp16 {gpu.name}"
    assert record["parity"]["ok"] and record["parity"]["same_choices"] == record["parity"]["steps"]
    assert {"onnxruntime CPU", record["engine"]} <= set(record["speed"])
    assert gpu.violations == []
