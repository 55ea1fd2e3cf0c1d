"""What `bench` measures beside bundles: other engines under our protocol, on real tiny models; baselines by name, one
bundle per measured format, exported once by each exporter. `make .venv/peers` installs the engines.

An engine is skipped where one of its packages has no wheel for this machine; one that is not installed fails.
"""

import json
import os
import re
import shutil
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import sample_gguf
import torch
from transformers import AutoModelForCausalLM

from merino_bench.harness.cases import BenchRequest, decode_case, prefill_case
from merino_bench.harness.record import FAILED, RECORD_KEYS, failed_record
from merino_bench.harness.turns import Turns
from merino_bench.harness.worker import timed_rounds
from merino_edge.benchmarking import engine_rows, engines
from merino_edge.benchmarking import run as benchmarking
from merino_edge.benchmarking.engine_rows import make_separately, measure_peer_separately, peer_engines
from merino_edge.benchmarking.engines import (
    GENERIC_BUILD,
    PEERS,
    UNKNOWN,
    as_gpt2,
    matrix_weights,
    native_build,
    peers_of,
)
from merino_edge.benchmarking.run import baseline_bundles, bundles_of
from merino_edge.cli.app import main
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source, random_source
from merino_edge.families import zoo
from merino_edge.families.designed import Architecture
from merino_edge.families.opt import OptArchitecture
from merino_edge.families.zoo import model
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.errors import MerinoError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_benchmarks")]

OPT = OptArchitecture(
    width=64, layers=2, heads=2, ffn_width=128, embed_width=32, vocab=304, context=64, pre_norm=False
)
UNIFORM = Architecture(blocks=({"width": 64, "ffn_ratio": 1, "depth": 2},), vocab=304, head_size=32, context=64)
GROWING = Architecture(
    blocks=({"width": 32, "ffn_ratio": 1, "depth": 1}, {"width": 64, "ffn_ratio": 1, "depth": 2, "shared": True}),
    vocab=304, head_size=32, context=64,
)  # fmt: skip
OPT_350M = model("opt-350m").geometry
ONE_LAYER = UNIFORM.model_copy(update={"blocks": (UNIFORM.blocks[0].model_copy(update={"depth": 1}),)})
SMALL = BenchRequest(repetitions=1, threads=(1,))
DEADLINE_S = 600.0  # of what should take seconds
WITHOUT_WHEEL = Path(sys.prefix) / "peers"  # `make .venv/peers` writes the packages that have no wheel


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    made = {"opt": random_source(OPT, "opt"), "uniform": random_source(UNIFORM, "uniform")}
    made |= {"growing": random_source(GROWING, "growing"), "one layer": random_source(ONE_LAYER, "one-layer")}
    made["opt of one layer"] = random_source(OPT.model_copy(update={"layers": 1}), "opt-of-one-layer")
    for name, source in made.items():
        export(source, folder / name)
    return {name: load_bundle(str(folder / name)) for name in made}


@contextmanager
def making_here():
    """Models are made in this process, which has loaded torch: 5 s each time."""

    def run(module, request, *more):
        if module != engines.__name__:
            return run_separately(module, request, *more)
        result = engines.answer(json.loads(request))
        if "error" in result:
            raise MerinoError(result["error"])
        return result

    run_separately = engine_rows.run_separately
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_rows, "run_separately", run)
        yield patch


@pytest.fixture(autouse=True)
def made_here():
    with making_here() as patch:
        yield patch


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the engines' models are made, once for all tests."""
    return tmp_path_factory.mktemp("peers")


def peer_records(peers, folder, bundles, case, request):
    """A row per engine and geometry, measured in turn."""
    return rows_of(peer_engines(peers, folder, bundles), case, request)


def rows_of(engines, case, request):
    turns = Turns(engines, case._replace(threads=request.threads[0]), request.repetitions, DEADLINE_S)
    turns.measure(lambda *_: None)
    return [
        failed_record(engine.identity, case, reason) if reason else engine.row(case, processes, None, None, None)
        for engine, processes, reason in zip(engines, turns.processes, turns.reasons, strict=True)
    ]


def why_not_here(peer):
    """Why an engine cannot run on this machine; None where it can. Fails where it could and is not installed."""
    lacking = {package for module, package in peer.needs if find_spec(module) is None}
    without = set(WITHOUT_WHEEL.read_text().split()) if WITHOUT_WHEEL.exists() else set()
    assert lacking <= without, f"not installed: {', '.join(lacking - without)}: run `make .venv/peers`"
    if lacking:
        return f"no wheel of {', '.join(sorted(lacking))} for this machine"
    return None


def skip_if_not_here(peer):
    if reason := why_not_here(peer):
        pytest.skip(reason)


# By day each engine once: the first imports torch.
OF_RANDOM_WEIGHTS = [peer for peer in PEERS if peer.precision != UNKNOWN]
BY_DAY = {peer.engine: peer for peer in reversed(OF_RANDOM_WEIGHTS[1:])}.values()


@pytest.mark.parametrize(
    "peer", [pytest.param(peer, marks=() if peer in BY_DAY else pytest.mark.nightly) for peer in OF_RANDOM_WEIGHTS],
    ids=lambda peer: f"{peer.engine} {peer.shown_precision}",
)  # fmt: skip
def test_each_engine_gets_the_ids_and_lengths_of_our_rows(peer, bundles, kept):
    skip_if_not_here(peer)
    bundle, case = bundles["opt"], decode_case(6)._replace(threads=1)
    model = make_separately(peer, kept, bundle)
    result = measure_peer_separately(peer, bundle, model["path"], case, 2)
    fed = []
    backend = open_backend(bundle, 1)
    prefill = backend.prefill
    backend.prefill = lambda ids: (fed.append(list(ids)), prefill(ids))[1]
    timed_rounds(backend, case, 1)
    backend.close()
    assert result["ids"] == fed[-1] and len(result["ids"]) == case.prompt
    assert len(result["chosen"]) == case.steps + 1 and all(0 <= token < bundle.vocab for token in result["chosen"])
    assert [len(step_ms) for step_ms in result["step_ms"]] == [6, 6] and len(result["prefill_ms"]) == 2
    assert min(result["prefill_ms"]) > 0 and result["threads"] == 1


def assert_measured(row, peer):
    """The contract's keys, and figures of its own. Without a GGUF openvino-genai gives the reason."""
    assert set(row) == set(RECORD_KEYS) and json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["weights"] == "random" and row["dialect"] is None
    if why_not_here(peer) or peer.runner == "openvino":
        assert row["flags"][0].startswith(FAILED) and row["tok_s"] is None
    else:
        assert not [flag for flag in row["flags"] if flag.startswith(FAILED)], row["flags"]
        assert row["tok_s"] > 0 and row["peak_rss_mb"] > row["bundle_bytes"] / 2**20 and row["load_ms"] > 0


def test_a_missing_engine_is_a_row_with_the_command_that_helps(bundles, kept):
    absent = PEERS[2]._replace(needs=(("no_such_module_here", "no-such-package"),))
    row, = peer_records([absent], kept, [bundles["opt"]], decode_case(4), SMALL)
    assert set(row) == set(RECORD_KEYS) and row["tok_s"] is None
    assert row["flags"] == ["failed: llama.cpp is not installed: python -m pip install no-such-package"]


def test_a_model_that_an_engine_does_not_know_is_a_row_with_the_reason(bundles, kept):
    for peer in PEERS[1:3]:
        skip_if_not_here(peer)
    peers = peers_of(("ctranslate2", "llama.cpp"))
    rows = peer_records(peers, kept, [bundles["growing"]], decode_case(4), SMALL)
    assert "No conversion is registered for the model configuration MerinoConfig" in rows[0]["flags"][0]
    assert all("layers of one width" in row["flags"][0] for row in rows[1:])
    deep = peer_records(peers, kept, [bundles["opt"]], prefill_case(8, 8), SMALL)
    assert all("into an empty cache only" in row["flags"][0] for row in deep)


@pytest.fixture(scope="module")
def varied(bundles, kept, randomize):
    """(bundle, its peers' checkpoint, its model) with weights whose greedy ids vary: as made, it repeats one id."""
    bundle, peer = bundles["one layer"], PEERS[0]
    with making_here():
        path = make_separately(peer, kept, bundle)["path"]
    model = randomize(AutoModelForCausalLM.from_pretrained(path), 6)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.02)  # else a tied table answers with the last id
    model.save_pretrained(path)
    return bundle, path, model


@pytest.mark.nightly
@torch.no_grad()
def test_the_tokens_of_transformers_are_those_of_torch_without_a_cache(varied):
    bundle, path, model = varied
    case = decode_case(8)._replace(threads=1)
    result = measure_peer_separately(PEERS[0], bundle, path, case, 2)
    ids = result["ids"][:]
    for _ in range(9):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    assert result["chosen"] == ids[-9:] and len(set(ids[-9:])) > 4


def test_opt_as_gpt2_says_what_it_reads_more():
    made, notes = as_gpt2(OPT_350M)
    more = 50272 * 512 - 2 * 512 * 1024
    read, own = (matrix_weights(geometry.operators, "linear", "head") for geometry in (made, OPT_350M))
    assert read - own == more
    assert f"{more:,} more weights" in notes[1]
    with pytest.raises(ValueError, match="layers of one width"):
        as_gpt2(GROWING)
    with pytest.raises(ValueError, match="layers with shared weights"):
        as_gpt2(UNIFORM.model_copy(update={"blocks": (UNIFORM.blocks[0].model_copy(update={"shared": True}),)}))
    for gated in ("smollm-135m", "qwen3-0.6b"):
        with pytest.raises(ValueError, match="FFN of two matrices"):
            as_gpt2(model(gated).geometry)


def bench(capsys, *words):
    """(exit code, stdout, stderr) of `bench`."""
    with pytest.raises(SystemExit) as ended:
        main(["bench", *words])
    return ended.value.code, *capsys.readouterr()


@pytest.mark.nightly
def test_peers_all_gives_a_row_of_every_engine_beside_ours(bundles, capsys, made_here):
    """Of OPT, which every engine runs."""
    made_here.undo()  # as a user has it: apart
    words = (bundles["opt of one layer"].folder, "-p", "8", "-n", "0", "-r", "1", "-t", "1", "--format", "json")
    code, out, err = bench(capsys, *words, "--peers", "all")
    rows = json.loads(out)
    peers = [peer for peer in PEERS if peer.engine != "openvino-genai"]  # it runs a GGUF alone, and none is given
    assert code == 0 and len(rows) == 1 + len(peers), err
    for peer in peers:
        precision = "fp32" if peer.engine == "onnxruntime-genai" else peer.shown_precision
        row, = [row for row in rows if re.split(r"[ ,]", row["engine"].lower())[0] == peer.engine
                and row["precision"] == precision]  # fmt: skip
        assert_measured(row, peer)
        assert (row["test"], row["bundle"]) == ("pp8", "opt-of-one-layer")
        assert row["tok_s"] is None or row["prefill_ms"] > 0


def test_the_command_shows_peers_beside_ours(bundles, capsys):
    """One JSON list, told apart by engine and precision; without -r more than one process of ours each."""
    skip_if_not_here(next(peer for peer in PEERS if peer.engine == "llama.cpp"))
    folder = bundles["uniform"].folder
    words = (folder, "-p", "0", "-n", "4", "-r", "2", "-t", "1", "--format", "json", "--peers", "llama.cpp")
    code, out, _ = bench(capsys, *words)
    rows = json.loads(out)
    expected = [("fp32", "fused")] + [(precision, None) for precision in ("F32", "Q8_0", "Q4_0, table Q8_0", "Q4_0")]
    assert code == 0
    assert [(row["precision"], row["dialect"]) for row in rows] == expected
    assert len({row["bundle"] for row in rows}) == 1 and {row["threads"] for row in rows} == {1}
    assert ["llama.cpp" in row["engine"] for row in rows] == [False, True, True, True, True]
    code, _, err = bench(capsys, folder, "--peers", "vllm")
    assert code == 1 and "known are transformers" in err


def test_llama_cpp_runs_the_file_of_the_bundles_weights_where_it_is_named(tmp_path, bundles, kept):
    skip_if_not_here(next(peer for peer in PEERS if peer.engine == "llama.cpp"))
    path = sample_gguf.write_gguf(
        tmp_path / "small.gguf", sample_gguf.random_model("llama"), "Q8_0"
    )
    bundle = export(load_source(str(path)), tmp_path / "bundle", ExportRequest(precision="int8")).bundle
    assert peers_of(["transformers"], path) == peers_of(["transformers"])
    peers = peers_of(["llama.cpp"], path)
    (own,) = peers
    assert (own.precision, own.embedding) == ("Q8_0", "Q8_0") and own.shown_precision == "Q8_0"
    same, other = peer_records(peers, kept, [bundle, bundles["uniform"]], decode_case(4), SMALL)
    assert same["weights"] == "real" and same["weights_source"] == "file small.gguf" and same["tok_s"] > 0
    assert same["bundle_bytes"] == path.stat().st_size
    assert same["params"] == bundle.params and same["bytes_per_token"] is None
    assert "is no file of the bundle's weights" in other["flags"][0]


@torch.no_grad()
def test_llama_cpp_built_for_this_machine_runs_in_place_of_the_wheel(tmp_path, kept, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ["MERINO_USERS_CACHE"])
    if native_build() is None:
        pytest.skip("no llama.cpp built for this machine: make peers-native")
    small = sample_gguf.random_model("llama", strength=6)
    path = sample_gguf.write_gguf(tmp_path / "small.gguf", small, "F32")
    bundle = export(load_source(str(path)), tmp_path / "bundle").bundle
    (peer,) = peers_of(["llama.cpp"], path)
    (row,) = peer_records([peer], kept, [bundle], decode_case(6), SMALL)
    assert "built for this machine" in row["engine"] and row["tok_s"] > 0
    assert GENERIC_BUILD not in row["flags"] and any(note.startswith("built with") for note in row["notes"])
    result = measure_peer_separately(peer, bundle, str(path), decode_case(6)._replace(threads=1), 1)
    ids = result["ids"][:]
    for _ in range(7):
        ids.append(int(small(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    assert result["chosen"] == ids[-len(result["chosen"]) :] and len(set(result["chosen"])) > 2


@torch.no_grad()
@pytest.mark.parametrize("name", ["openvino-genai", "onnxruntime-genai"])
def test_engines_of_a_file_and_of_a_bundle_choose_our_ids(tmp_path, kept, name):
    small = sample_gguf.random_model("llama", strength=6)
    path = sample_gguf.write_gguf(tmp_path / "small.gguf", small, "Q8_0", **{"general.file_type": 7})
    source, form = load_source(str(path)), "int8"
    bundle = export(source, tmp_path / "bundle", ExportRequest(form, kv="fp32")).bundle
    other = export(source, tmp_path / "int8-cache", ExportRequest(form, kv="int8")).bundle
    peers = peers_of([name], path)
    skip_if_not_here(peers[0])
    row, *more = peer_records(peers, kept, [bundle, other], decode_case(6), SMALL)
    assert row["weights"] == "real" and row["tok_s"] > 0 and row["engine"].startswith(name), row["flags"]
    assert row["precision"] == {"openvino-genai": "Q8_0"}.get(name, form)
    if name == "openvino-genai":
        assert not more
        (without,) = peer_records(peers_of([name]), kept, [bundle], decode_case(6), SMALL)
        assert "name the file among --peers" in without["flags"][0]
    else:
        assert "--kv fp32" in more[0]["flags"][0]
    file = Path(bundle.folder) if name == "onnxruntime-genai" else path
    peer = peers[0]._replace(file=file)
    case = decode_case(6)._replace(threads=1)
    result = measure_peer_separately(peer, bundle, make_separately(peer, kept, bundle)["path"], case, 1)
    backend = open_backend(bundle, 1)
    logits, ids = backend.prefill(result["ids"]), []
    for _ in result["chosen"]:
        ids.append(int(logits.argmax()))
        logits = backend.step(ids[-1])
    backend.close()
    assert result["chosen"] == ids and len(set(ids)) > 2


TINY = OPT_350M.model_copy(
    update={"width": 64, "layers": 1, "heads": 2, "ffn_width": 64, "embed_width": 32, "vocab": 64, "context": 32}
)


@pytest.fixture
def tiny_opt(monkeypatch, tmp_path):
    models = (zoo.model("opt-125m"), zoo.model("opt-350m").model_copy(update={"geometry": TINY}))
    monkeypatch.setattr(zoo, "load_models", lambda: models)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def formats(folders):
    bundles = [load_bundle(folder) for folder in folders]
    assert {bundle.name for bundle in bundles} == {"opt-350m"}
    return [(bundle.precision, bundle.dialect) for bundle in bundles]


@pytest.mark.usefixtures("tiny_opt")
def test_there_is_one_per_measured_format_and_it_is_exported_once(bundle_dirs):
    notes = []
    measured = [bundle_dirs["fused"], bundle_dirs["portable"], bundle_dirs["fused"]]
    folders = baseline_bundles("opt-350m", measured, None, notes.append)
    assert formats(folders) == [("fp32", "fused"), ("fp32", "portable")] and len(notes) == 2
    assert baseline_bundles("opt-350m", measured[::-1], None, notes.append) == folders and len(notes) == 2


@pytest.mark.usefixtures("tiny_opt")
def test_a_baseline_of_another_exporter_is_exported_again_and_the_old_one_removed(bundle_dirs, monkeypatch):
    notes = []
    measured = [bundle_dirs["fused"], bundle_dirs["portable"]]
    old_fused, portable = (Path(folder) for folder in baseline_bundles("opt-350m", measured, None, notes.append))
    mine = old_fused.with_name("opt-350m-fp32-fused-of-mine")
    shutil.copytree(old_fused, mine)
    monkeypatch.setattr(benchmarking, "exporter_digest", lambda: "0123456789ab")
    (new,) = baseline_bundles("opt-350m", measured[:1], None, notes.append)
    assert Path(new) != old_fused and formats([new]) == [("fp32", "fused")]
    assert sum("exporting" in line for line in notes) == 3
    assert sorted(old_fused.parent.iterdir()) == sorted([Path(new), portable, mine])




@pytest.mark.usefixtures("tiny_opt")
def test_a_folder_is_taken_as_it_is_and_has_its_own_precision(bundle_dirs):
    folder = bundle_dirs["fused"]
    assert baseline_bundles(folder, [folder], None, print) == [folder]
    with pytest.raises(MerinoError, match="no such bundle"):
        bundles_of([str(folder)], f"{folder}:int8", print)
