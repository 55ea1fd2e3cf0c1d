"""Bundles whose graphs have operators of this project's library: exported, run by the release's library, refused.

Runs over several positions against decode steps: equal to the bit with this project's kernels, so that guesses never
change an answer; in float32 to the last digits; other formats do not guess.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from merino_bench.__main__ import main
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import Source, load_source
from merino_edge.families.designed import Architecture
from merino_edge.profiles.reading import load_profile
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.bundle.fit import OPERATORS, check_bundle_fits, library_path
from merino_runtime.commands import code_in
from merino_runtime.delivery.archive import open_archive
from merino_runtime.delivery.fit import choose, this_machine
from merino_runtime.errors import MerinoError
from merino_runtime.generation.generate import Done, Generation, Token
from merino_runtime.io.board import this_board
from merino_runtime.sampling import GREEDY, GenerateOptions, Sampling
from tests.packed_files import bundle_files, packed_bytes
from tests.sample_models import SMALL, small

ROOT = Path(__file__).parents[2]
INT4 = ExportRequest(precision="int4")
SHARED = Architecture(
    blocks=[{"width": 128, "ffn_ratio": 1.0, "depth": 2, "kv_heads": 1}, {"width": 256, "ffn_ratio": 1.0, "depth": 1}],
    vocab=96, head_size=32, context=48,
)  # fmt: skip


@pytest.fixture
def folder(embedded_bundles, tmp_path):
    """A copy of the packaged model's bundle."""
    return Path(shutil.copytree(embedded_bundles["fused", "int4"], tmp_path / "bundle"))


def kinds(folder):
    return [node.op_type for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node]


@pytest.mark.parametrize(("arch", "kv", "attentions"), [
    (SHARED, "fp32", {"GroupAttention": 2, "GroupQueryAttention": 1}),
    (SHARED, "int8", {"GroupAttention8": 3, "GroupQueryAttention": 0}),
    (SHARED, "int4", {"GroupQueryAttention": 3}),
    (small("gemma3_text"), "fp32", {"GroupAttention": 2}),  # norms of heads, a window, another scale
], ids=["float", "int8", "int4", "gemma3"])  # fmt: skip
def test_the_graph_is_what_torch_computes(arch, kv, attentions, decoder, tmp_path):
    """Which the export itself judges, with float activations at each step to 1e-3."""
    decoder(arch).save_pretrained(tmp_path / "checkpoint")
    source = load_source(str(tmp_path / "checkpoint"))._replace(weights="random")
    made = export(source, tmp_path / "bundle", INT4._replace(kv=kv))
    result = kinds(tmp_path / "bundle")
    assert {kind: result.count(kind) for kind in attentions} == attentions
    assert result.count("MatMul4") >= 4 * len(arch.kv_layers) - 1
    assert made.unrounded < {"fp32": 1e-4, "int8": 0.03, "int4": 0.3}[kv]  # a cached value may fall on either code
    assert made.error < (0.3 if kv == "int4" else 0.05)  # of the activations, rounded in groups of 32
    assert made.bundle.backends[0].min_version == ("1.27" if kv == "int4" else "1.18")


def test_graphs_in_floats_have_onnxruntimes_operators_alone(decoder, tmp_path):
    """So that any program opens them."""
    decoder(SHARED).save_pretrained(tmp_path / "checkpoint")
    source = load_source(str(tmp_path / "checkpoint"))._replace(weights="random")
    made = export(source, tmp_path / "bundle", ExportRequest(board=load_profile("raspberry-pi-5")))
    assert not made.bundle.kernels and kinds(made.folder).count("GroupQueryAttention") == 3


def test_a_cpu_that_the_kernels_were_not_built_for_is_told_what_runs_there(folder):
    old = this_board()._replace(architecture="x86_64", isa=frozenset(["avx", "avx2"]))
    with pytest.raises(MerinoError, match=r"kernels that use f16c, fma, which this CPU lacks\. .*--dialect portable"):
        check_bundle_fits(load_bundle(str(folder)), old)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_every_matrix_is_in_tiles_and_the_embedding_is_stored_once(precision, decoder, tmp_path):
    decoder(SHARED).save_pretrained(tmp_path / "checkpoint")
    source = load_source(str(tmp_path / "checkpoint"))._replace(weights="random")
    made = export(source, tmp_path / "bundle", ExportRequest(precision=precision))
    result = kinds(tmp_path / "bundle")
    assert result.count("GroupAttention8") == 3 and result.count("Rows8") == 1
    assert (result.count("MatMul4"), result.count("MatMul8")) == {"int8": (0, 15), "int4": (14, 1)}[precision]
    assert made.unrounded < 0.03 and made.error < 0.05
    table = SHARED.vocab * SHARED.blocks[0].width
    assert made.bundle.weight_bytes - made.bundle.decode_weight_bytes < 0.1 * table, "the head reads all of it"
    assert set(made.bundle.kernels) == {"GroupAttention8", "Rows8", "MatMul8", *(["MatMul4"] * (precision == "int4"))}


def test_a_step_takes_a_part_of_prefills_threads_in_one_session(folder):
    bundle = load_bundle(str(folder))
    backends = [open_backend(bundle, *threads) for threads in ((1, 1), (1, 3), (2, 2))]
    assert (backends[1].prefill_threads, backends[1].decode_threads) == (3, 1)
    assert backends[1]._prefill_session is backends[1]._decode_session
    rows = [[one.prefill([1, 2, 3, 4]).copy(), one.step(5).copy(), one.step(6).copy()] for one in backends]
    assert np.array_equal(rows[0], rows[1]) and np.array_equal(rows[0], rows[2])
    for backend in backends:
        backend.close()


def test_a_bundle_names_operators_and_brings_no_library(folder):
    bundle = load_bundle(str(folder))
    assert bundle.kernels == ("GroupAttention8", "MatMul4", "MatMul8", "Rows8")
    assert code_in(bundle) == ["merino.pyz"]
    assert not [path for path in folder.iterdir() if path.read_bytes().startswith(b"\x7fELF")]


def test_the_runtime_lists_the_operators_that_the_library_registers():
    source = (Path(__file__).parents[2] / "runtime" / "kernels" / "operators.c").read_text()
    registered = re.findall(r'operator_of\("(\w+)"', source)
    assert len(registered) == 11 and set(registered) == OPERATORS


@pytest.mark.usefixtures("quick_benchmarks")
def test_a_bundle_for_a_later_library_names_what_it_lacks(folder, capsys):
    path = folder / "bundle.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), kernels=["MatMul3", "MatMul4"])))
    for verb in ("generate", "selftest", "bench", "info"):
        code = main([verb, str(folder), *(["hello"] if verb == "generate" else [])])
        out, err = capsys.readouterr()
        assert code == 1 and re.search(r"newer library of kernels: .* lacks MatMul3\. Update", out + err), verb
        assert verb != "info" or "MatMul3, MatMul4 (this release lacks MatMul3)" in out
    assert main(["info", "--check", str(folder)]) == 0 and "this release lacks MatMul3" in capsys.readouterr().out


IN_MEMORY = """
import platform, sys
from merino_runtime.bundle import fit as kernels
print(kernels.__file__.startswith(sys.path[0]))
path = kernels.library_path(platform.machine())
assert kernels.library_path(platform.machine()) == path
with open(path, "rb") as one, open(sys.argv[1], "rb") as other:
    print(path, one.read() == other.read())
"""


@pytest.mark.parametrize("python", ["", ".venv36", ".venv38", ".venv310"])
def test_the_zip_application_loads_the_library_from_memory(python, folder):
    interpreter = ROOT / python / "bin" / "python" if python else sys.executable
    if not os.path.exists(interpreter):
        pytest.skip(f"no {python} on this machine (make test sets it up)")
    code = f"import sys; sys.path.insert(0, {str(folder / 'merino.pyz')!r})\n" + IN_MEMORY
    done = subprocess.run([interpreter, "-S", "-c", code, library_path(platform.machine())], capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0 and re.fullmatch(r"True\n/proc/self/fd/\d+ True\n", done.stdout), done.stderr


def test_a_machine_without_kernels_is_told_and_takes_the_sibling(folder, embedded_bundles, tmp_path):
    bundle = load_bundle(str(folder))
    other = this_board()._replace(architecture="riscv64")
    with pytest.raises(MerinoError, match=r"kernels that are built for aarch64, x86_64, this is riscv64\. .*int8"):
        check_bundle_fits(bundle, other)
    packed = tmp_path / "a.merino"
    packed.write_bytes(packed_bytes(b"app", [
        bundle_files(folder), bundle_files(embedded_bundles["portable", "int8"]),
    ]))  # fmt: skip
    opened, machine = open_archive(str(packed)), this_machine(str(tmp_path))
    assert choose(opened, machine).bundle.precision == "int4"
    assert choose(opened, machine._replace(board=other)).bundle.precision == "int8"


NOEXEC = """
mount -t tmpfs -o noexec kernels {there} && cp -r {folder} {there}/bundle && cd {there}/bundle &&
{python} merino.pyz selftest .
"""


@pytest.mark.slow
def test_a_file_system_without_programs_holds_such_a_bundle(folder, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    script = NOEXEC.format(there=there, folder=folder, python=sys.executable)
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script], capture_output=True,
                          text=True)  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no namespace to mount in: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


GROUPED = {"width": 96, "heads": 6, "kv_heads": 2, "head_size": 16, "ffn_width": 160, "context": 128, "vocab": 200}
EXACT = [
    ("llama", "int8", None), ("llama", "int4", None), ("qwen2", "int8", "int8"), ("gemma3_text", "int4", None),
]  # fmt: skip
OTHERS = [("portable", "fp32", None), ("portable", "int8", None), ("fused", "fp32", "int8")]


def exported(decoder, folder, family, **form):
    keys = {key: value for key, value in GROUPED.items() if key in {**SMALL[family], "context": 0, "vocab": 0}}
    arch = small(family, **keys)
    source = Source(family, arch, decoder(arch, 3), "random", "drawn", (), None)
    return export(source, folder, ExportRequest(**form)).bundle


def answers(backend, prompt_ids, lookup, sampling):
    backend.truncate(0)
    options = GenerateOptions(100, sampling, lookup=lookup)
    *tokens, done = Generation(backend, prompt_ids, options)
    assert isinstance(done, Done)
    return [token.id for token in tokens if isinstance(token, Token)], done.guessed


def rows_and_steps(backend, twin, count, seed):
    ids = np.random.default_rng(seed).integers(0, backend.vocab, 12 + count).tolist()
    backend.prefill(ids[:12])
    twin.prefill(ids[:12])
    steps = np.array([twin.step(token).copy() for token in ids[12:]])
    rows = backend.verify(ids[12:]).copy()
    assert backend.ids == twin.ids
    caches = [(backend.filled()[1][name], array) for name, array in twin.filled()[1].items()]
    for one in (backend, twin):
        one.truncate(0)
    return rows, steps, caches


@pytest.mark.parametrize(("family", "precision", "kv"), EXACT)
@pytest.mark.parametrize("threads", [1, 2])
def test_with_own_kernels_rows_are_steps_to_the_bit(family, precision, kv, threads, decoder, tmp_path):
    bundle = exported(decoder, tmp_path / "bundle", family, precision=precision, kv=kv)
    backend = open_backend(bundle, threads)
    twin = backend.fork()
    assert backend.verifies
    for count in range(2, 10):
        rows, steps, caches = rows_and_steps(backend, twin, count, count)
        assert (rows == steps).all()
        assert all((one == other).all() for one, other in caches)
    ids = np.random.default_rng(1).integers(0, backend.vocab, 30).tolist()
    scored = np.concatenate([logits.copy() for logits in backend.logits_from(9, ids)])
    assert (scored == [twin.prefill(ids[:10]).copy(), *(twin.step(token).copy() for token in ids[10:])]).all()
    guessed = 0
    for seed in range(6):
        prompt_ids = [*np.random.default_rng(seed).integers(1, 200, 6).tolist()] * 3
        for sampling in (GREEDY, Sampling(seed=seed)):
            plain, _ = answers(backend, prompt_ids, False, sampling)
            same, right = answers(backend, prompt_ids, True, sampling)
            assert plain == same
            guessed += right
    assert guessed > 50
    backend.close()
    twin.close()


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_in_float32_rows_are_steps_to_the_last_digits(family, decoder, tmp_path):
    bundle = exported(decoder, tmp_path / "bundle", family)
    backend = open_backend(bundle, 1)
    twin = backend.fork()
    for count in range(2, 10):
        rows, steps, caches = rows_and_steps(backend, twin, count, count)
        np.testing.assert_allclose(rows, steps, atol=2e-5 * steps.std())
        for one, other in caches:
            np.testing.assert_allclose(one, other, atol=2e-5 * other.std())
    for seed in range(6):
        prompt_ids = [*np.random.default_rng(seed).integers(1, 90, 6).tolist()] * 3
        assert answers(backend, prompt_ids, False, GREEDY)[0] == answers(backend, prompt_ids, True, GREEDY)[0]
    backend.close()
    twin.close()


@pytest.mark.parametrize(("dialect", "precision", "kv"), OTHERS)
def test_formats_whose_rows_are_rounded_otherwise_do_not_guess(dialect, precision, kv, decoder, tmp_path):
    form = {"dialect": dialect, "precision": precision, "kv": kv}
    backend = open_backend(exported(decoder, tmp_path / "bundle", "llama", **form))
    assert not backend.verifies
    backend.close()
