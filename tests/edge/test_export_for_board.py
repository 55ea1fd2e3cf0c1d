"""Exports for a board: the graph for its runtime and kind of core, and the fastest format that reads a text well."""

import json
import shutil

import pytest
from sample_models import ARCH
from typer.testing import CliRunner

from merino_edge.bundles.description import GraphFormat
from merino_edge.cli.app import app
from merino_edge.export import divergence
from merino_edge.export.export import export
from merino_edge.export.plan import predicted_ms
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source
from merino_edge.families.designed import Architecture
from merino_edge.families.operators import CPU_FORMATS
from merino_edge.profiles.reading import load_profile
from merino_runtime.bundle import load_bundle, quantized_cache
from merino_runtime.errors import MerinoError

TEXT = "The river runs past the old mill, and the miller counts the sacks of flour in the evening. " * 20
PI_4, PI_5 = load_profile("raspberry-pi-4"), load_profile("raspberry-pi-5")


def exported(*words):
    done = CliRunner().invoke(app, ["export", *map(str, words)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


@pytest.fixture
def design(tmp_path):
    (tmp_path / "design.json").write_text(ARCH.model_dump_json())
    return tmp_path / "design.json"


def described(folder):
    return json.loads((folder / "bundle.json").read_text())


@pytest.mark.parametrize(("board", "dialect"), [("raspberry-pi-4", "fused"), ("jetson-nano", "portable")])
def test_a_bundle_for_a_board_has_its_dialect(board, dialect, design, tmp_path):
    exported(design, "--precision", "int8", "--board", board, "-o", tmp_path / "bundle")
    result = described(tmp_path / "bundle")
    assert result["dialect"] == dialect and board in result["boards"]


def test_without_a_board_the_bundle_is_that_of_every_board_with_the_dialect(design, tmp_path):
    for name, board in (("any", []), ("pi-4", ["--board", "raspberry-pi-4"]), ("pi-5", ["--board", "raspberry-pi-5"])):
        exported(design, "--precision", "int8", "--name", "story", *board, "-o", tmp_path / name)
    assert described(tmp_path / "any") == described(tmp_path / "pi-4") == described(tmp_path / "pi-5")
    assert "raspberry-pi-zero-2w" in described(tmp_path / "any")["boards"]


def test_a_design_is_exported_for_its_board_and_keeps_its_cache(tmp_path):
    for board, kv in (("raspberry-pi-4", "int8"), ("jetson-nano", "fp32")):
        calls = ["--decode-ms", "4", "--vocab", "300", "--context", "64", "--precision", "int8", "--kv", kv]
        place = str(tmp_path / f"{board}.json")
        done = CliRunner().invoke(app, ["design", "--board", f"{board}:onnxruntime", *calls, "-o", place])
        assert done.exit_code == 0, (done.output, done.exception)
        exported(place, "-o", tmp_path / board)
        made = load_bundle(str(tmp_path / board))
        assert (made.precision, quantized_cache(made) or "fp32", board in made.boards) == ("int8", kv, True)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


FOR_PI_4 = ExportRequest(precision="auto", board=PI_4)
FOR_PI_5 = ExportRequest(precision="auto", board=PI_5)


@pytest.fixture(scope="module")
def wide(tiny_checkpoint, tiny_arch, decoder, tmp_path_factory):
    """Folders of checkpoints so wide that float32 is the slowest: blocks of 32 divide the FFN of one alone."""
    results = {}
    for name, ratio in (("even", 2.0), ("odd", 2.0625)):
        block = {"width": 256, "ffn_ratio": ratio, "depth": 2, "kv_heads": 1}
        arch = Architecture(blocks=[block], vocab=tiny_arch.vocab, head_size=64, context=64)
        results[name] = tmp_path_factory.mktemp("wide") / name
        decoder(arch, 3, bos_token_id=0, eos_token_id=0).save_pretrained(results[name])
        shutil.copy(tiny_checkpoint / "tokenizer.json", results[name])
    return results


@pytest.mark.parametrize("allowed, kv", [(1.0, "int8"), (1.0, None), (-1.0, None)])
def test_the_fastest_format_that_keeps_its_bar_is_written_as_it_was_judged(
    allowed, kv, wide, text, tmp_path, monkeypatch
):
    """With weights rounded for a text and the cache asked for, as an export in that format by name has them."""
    monkeypatch.setattr(divergence, "MOST_LOST", allowed)
    source, output, given = load_source(str(wide["even"])), [], {"kv": kv, "calibration": text}
    made = export(source, tmp_path / "bundle", FOR_PI_4._replace(**given), say=output.append)
    forms = [GraphFormat(name, "fused", 64, kv or (None if name == "fp32" else "int8")) for name in CPU_FORMATS]
    times = predicted_ms(source.arch, PI_4, forms)
    order = sorted(times, key=times.get)
    assert [line.split(":")[0] for line in output] == order[: len(output)] and not any("\n" in line for line in output)
    assert [line.split(": ")[-1] for line in output] == ["refused"] * (len(output) - 1) + ["taken"]
    precision = order[0] if allowed > 0 else "fp32"
    assert (made.bundle.precision, quantized_cache(made.bundle)) == (precision, kv or ("int8" if allowed > 0 else None))
    assert load_bundle(str(tmp_path / "bundle")) == made.bundle and bool(made.calibrated) == (precision != "fp32")
    if precision == "fp32" and not kv:
        given["calibration"] = None
    named = export(source, tmp_path / "named", ExportRequest(precision=precision, **given))
    assert named.bundle.files == made.bundle.files and named.bundle.golden == made.bundle.golden
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "named", "text.txt"]
    if precision != "fp32":
        assert divergence.divergence_words(made.divergence) in output[-1] and made.divergence == named.divergence


@pytest.mark.parametrize("weights", ["trained", "random"])
def test_a_format_that_cannot_be_written_is_left_out_in_a_line(weights, wide, tmp_path):
    source, output = load_source(str(wide["odd"]))._replace(weights=weights), []
    made = export(source, tmp_path / "bundle", FOR_PI_5, say=output.append)
    assert made.bundle.precision == "fp32" and len(output) == 3 and output[-1].endswith(": taken")
    assert all("refused: " in line and "rows of 528 weights" in line and "\n" not in line for line in output[:-1])


def test_of_random_weights_nothing_is_measured_and_trained_ones_want_a_tokenizer(wide, text, tmp_path):
    source, out, output = load_source(str(wide["even"])), tmp_path / "bundle", []
    made = export(source._replace(weights="random"), out, FOR_PI_5._replace(kv="int8"), say=output.append)
    assert (made.bundle.precision, quantized_cache(made.bundle)) == ("int4", "int8")
    assert len(output) == 1 and output[0].endswith("raspberry-pi-5: taken")
    drawn = source._replace(weights="random", tokenizer=None)
    with pytest.raises(MerinoError, match="has no tokenizer. Export without --text"):
        export(drawn, tmp_path / "unread", FOR_PI_5._replace(calibration=text))
    assert not (tmp_path / "unread").exists()
    with pytest.raises(MerinoError, match="no tokenizer, .*raspberry-pi-5 it would be int4"):
        export(source._replace(tokenizer=None), out, FOR_PI_5, say=output.append)
    done = CliRunner().invoke(app, ["export", str(wide["even"]), "--precision", "auto", "-o", str(tmp_path / "b")])
    assert done.exit_code and "name it with --board" in str(done.exception)


def test_where_float32_is_the_fastest_nothing_is_read(tiny_checkpoint, text, tmp_path):
    source, output = load_source(str(tiny_checkpoint)), []
    slow = PI_4.cpu.cycles_per_weight.model_copy(update={"matmul8": 20.0, "matmul4": 20.0})
    board = PI_4.model_copy(update={"cpu": PI_4.cpu.model_copy(update={"cycles_per_weight": slow})})
    request = FOR_PI_4._replace(board=board, calibration=text)
    with pytest.raises(MerinoError, match="the weights are fp32 and the cache is not quantized"):
        export(source, tmp_path / "bundle", request, say=output.append)
    request = request._replace(kv="int8")
    made = export(source, tmp_path / "bundle", request, say=output.append)
    assert (made.bundle.precision, quantized_cache(made.bundle), output) == ("fp32", "int8", [])


@pytest.mark.usefixtures("text")
@pytest.mark.parametrize("words, message", [
    (("--dialect", "onnx"), "--dialect onnx is not known"),
    (("--kv", "int2"), "--kv int2 is not known"),
    (("--kv", "int8", "--dialect", "portable"), "not possible in dialect portable"),
    (("--kv", "int4", "--board", "jetson-orin-nano"), "has 1.23.2: give --kv fp32"),
    (("--context", "65"), "--context 65 is not allowed"),
    (("--text", "short.txt"), "--text short.txt"),
], ids=str)  # fmt: skip
def test_what_cannot_be_is_refused_before_a_format_is_tried(words, message, wide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("The river.")
    usual = {"--precision": "auto", "--board": "raspberry-pi-4"}
    given = {**usual, **dict(zip(words[::2], words[1::2], strict=True))}
    requested = [word for pair in given.items() for word in pair]
    done = CliRunner().invoke(app, ["export", str(wide["even"]), *requested, "-o", "bundle"])
    assert done.exit_code == 1 and isinstance(done.exception, MerinoError) and message in str(done.exception)
    assert "predicted on" not in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.txt", "text.txt"]
