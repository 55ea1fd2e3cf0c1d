"""Exports for a board: the graph for its runtime and kind of core, and the fastest format that reads a text well."""

import json

import numpy as np
import onnxruntime
import pytest
from typer.testing import CliRunner

from merino_edge.cli.app import app
from merino_edge.evaluation.fastest_format import ALLOWED_RISE, fastest_format, predicted_ms
from merino_edge.export.onnx.plain import FusedPlain
from merino_edge.export.request import Target
from merino_edge.export.source import load_source
from merino_edge.profiles.reading import load_profile
from merino_runtime.errors import MerinoError

TEXT = "The river runs past the old mill, and the miller counts the sacks of flour in the evening. " * 20
PI_4, PI_5 = load_profile("raspberry-pi-4"), load_profile("raspberry-pi-5")


def exported(*words):
    done = CliRunner().invoke(app, ["export", *map(str, words)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def described(folder):
    return json.loads((folder / "bundle.json").read_text())


@pytest.mark.parametrize(("board", "dialect", "core"), [
    ("raspberry-pi-4", "fused", "plain"), ("raspberry-pi-5", "fused", "dotprod"), ("jetson-nano", "portable", None),
])  # fmt: skip
def test_a_bundle_for_a_board_has_its_dialect_and_core(board, dialect, core, tmp_path):
    exported("embedded", "--precision", "int8", "--for", board, "-o", tmp_path / "bundle")
    found = described(tmp_path / "bundle")
    assert (found["dialect"], found["core"]) == (dialect, core) and board in found["boards"]
    assert board not in [each["board"] for each in found["slower_on"]]


def test_what_a_bundle_costs_elsewhere_is_said(tmp_path):
    said = exported("embedded", "--precision", "int8", "-o", tmp_path / "bundle")
    slower = {each["board"]: each["times"] for each in described(tmp_path / "bundle")["slower_on"]}
    assert set(slower) == {"raspberry-pi-4", "raspberry-pi-zero-2w", "jetson-nano"}
    for board, times in slower.items():
        assert f"on {board} {times:g} times slower than an export with --for {board}" in said


def test_the_fastest_format_is_the_first_that_keeps_its_bar(tiny_checkpoint, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    source, said = load_source(str(tiny_checkpoint)), []
    tried = fastest_format(source, PI_4, Target("fused", "plain"), None, text, said.append)
    times = predicted_ms(source.arch, PI_4, ("fp32", "fp16", "int8", "int4"), 64)
    assert set(times) == {"fp32", "int8", "int4"}  # nothing predicts fp16 on a CPU
    assert [each.precision for each in tried] == sorted(times, key=lambda form: times[form])[: len(tried)]
    kept = [each.rise <= ALLOWED_RISE[each.precision] for each in tried]
    assert kept == [False] * (len(tried) - 1) + [True] and len(said) == len(tried)


def test_of_random_weights_nothing_is_measured_and_trained_ones_want_a_text(tiny_checkpoint, tiny_arch, tmp_path):
    path = tmp_path / "architecture.json"
    path.write_text(tiny_arch.model_dump_json())
    target = Target("fused", "dotprod")
    [found] = fastest_format(load_source(str(path)), PI_5, target, None, None, lambda _: None)
    assert found.rise is None
    with pytest.raises(MerinoError, match="--text FILE.*raspberry-pi-5 it would be"):
        fastest_format(load_source(str(tiny_checkpoint)), PI_5, target, None, None, lambda _: None)
    done = CliRunner().invoke(app, ["export", str(tiny_checkpoint), "--precision", "auto", "-o", str(tmp_path / "b")])
    assert done.exit_code and "name it with --for" in str(done.exception)


def test_an_outlier_in_a_prompt_leaves_the_other_rows_as_exact_as_alone(tmp_path):
    """Of what a gated activation puts out, each row is rounded by itself."""
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((48, 64)).astype(np.float32)}
    graph = FusedPlain(weights, 8, "int8")
    x = graph.input("x", "float32", 1, "sequence", 128)
    graph.output(graph.linear(graph.gated(x, "relu"), "w"), "float32", 1, "sequence", 48)
    graph.save(tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    rows = random.standard_normal((1, 3, 128)).astype(np.float32)
    rows[0, 1] *= 100
    rows[0, 2] = 0
    [found] = session.run(None, {"x": rows})
    right = (np.maximum(rows[..., :64], 0) * rows[..., 64:]) @ weights["w"].T
    for row in (0, 1):
        assert np.abs(found[0, row] - right[0, row]).max() < 0.02 * np.abs(right[0, row]).max()
    assert (found[0, 2] == 0).all()
