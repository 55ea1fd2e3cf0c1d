"""Runs over several positions against decode steps: equal to the bit with this project's kernels, so that guesses never
change an answer; in float32 to the last digits; other formats do not guess."""

import numpy as np
import pytest

from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import Source
from merino_runtime.backends import open_backend
from merino_runtime.generation.generate import Done, Generation, Token
from merino_runtime.sampling import GREEDY, GenerateOptions, Sampling
from tests.sample_models import SMALL, small

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
