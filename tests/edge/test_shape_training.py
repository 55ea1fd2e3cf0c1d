"""The experiment on shapes: a run that is killed goes on to the same losses, and the analysis finds what it should."""

import json
import math
import signal
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import torch

from merino_edge.design.score import MEASURED
from merino_edge.families.designed import Architecture, Block
from merino_edge.families.hugging_face import build_model

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench" / "experiments"))

import shape_analysis  # noqa: E402 - scripts beside the packages
import shape_designs  # noqa: E402
import shape_training  # noqa: E402

KILLED = """
import os, signal, sys
sys.path[:0] = [{here!r}, {tests!r}]
import torch
import test_shape_training as tests

def save_and_die(state, path, save=tests.shape_training.save):
    save(state, path)
    if state["step"] == 17:
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
tests.shape_training.SAVE_SECONDS, tests.shape_training.save = 0, save_and_die
tests.trained({folder!r})
"""
RECIPE = shape_training.Recipe(tokens=40 * 64, batch=2, warmup=3)
LISTED = json.loads(shape_training.LIST.read_text())


def trained(folder):
    """40 steps of a decoder with a projection, shared weights and one KV head."""
    blocks = (Block(width=32, ffn_ratio=1, depth=2, shared=True, kv_heads=1), Block(width=64, ffn_ratio=1, depth=1))
    arch = Architecture(blocks=blocks, vocab=64, head_size=16, context=32)
    rows = torch.from_numpy(np.random.default_rng(1).integers(0, 64, (15, 32)))
    material = shape_training.Material(rows, {"text": (rows[:3], 2.0)}, {})
    return shape_training.train(arch, 0, material, RECIPE, Path(folder) / "state.pt")[0]


def test_a_run_that_is_killed_goes_on_to_the_same_losses(tmp_path):
    here = Path(__file__).parent
    code = KILLED.format(here=str(here), tests=str(here.parent), folder=str(tmp_path))
    assert forked.run(["train"], first=code).returncode == -signal.SIGKILL
    state, threads = tmp_path / "state.pt", torch.get_num_threads()
    assert torch.load(state, weights_only=True)["step"] == 17
    try:
        torch.set_num_threads(1)
        resumed = trained(tmp_path)
        assert not state.exists()
        assert resumed == trained(tmp_path) and sorted(resumed) == ["0.25", "0.5", "1"]
    finally:
        torch.set_num_threads(threads)


def test_a_folder_begins_with_the_runs_of_a_record_of_the_same_experiment(tmp_path):
    record, identity, row = tmp_path / "record.json", {"recipe": {"shares": (0.5, 1.0)}}, {"name": "a", "seed": 0}
    record.write_text(json.dumps({"identity": identity, "runs": [row]}))
    for name, texts, begun in (("other", {"tokenizer": "x"}, []), ("same", identity, [row])):
        (tmp_path / name).mkdir()
        shape_training.check_identity(texts, tmp_path / name)
        shape_training.begin_with(record, tmp_path / name)
        assert shape_training.finished(tmp_path / name / shape_training.RUNS) == begun
    shape_training.add_line(tmp_path / "same" / shape_training.RUNS, {"name": "b"})
    shape_training.begin_with(record, tmp_path / "same")
    assert shape_training.finished(tmp_path / "same" / shape_training.RUNS) == [row, {"name": "b"}]


def test_initial_weights_and_rates_go_by_inputs_and_layers():
    arch = Architecture(blocks=(Block(width=128, ffn_ratio=4, depth=3),), vocab=64, head_size=16, context=32)
    recipe = shape_training.Recipe()
    model = shape_training.initial(arch, 0, recipe)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    groups = shape_training.optimizer(model, recipe).param_groups
    rates = {name: group["peak"] for name, group in zip(weights, groups, strict=True)}
    up, down = "blocks.0.layers.0.up.weight", "blocks.0.layers.0.down.weight"
    assert float(weights[up].std()) == pytest.approx(128**-0.5, rel=0.02)
    assert float(weights[down].std()) == pytest.approx(512**-0.5 / 6**0.5, rel=0.02)
    deep = (4 / 3) ** 0.5
    assert rates[up] == pytest.approx(recipe.rate * deep / 2) and rates[down] == pytest.approx(recipe.rate * deep / 8)
    assert rates["embed_tokens.weight"] == rates["norm.weight"] == recipe.rate


def test_the_list_is_what_the_page_says():
    assert json.loads(shape_training.lines(shape_designs.plan(shape_training.SEED))) == LISTED
    designs = {each["name"]: each for each in LISTED["designs"]}
    archs = {name: Architecture.model_validate(each["architecture"]) for name, each in designs.items()}
    kinds = [each["set"] for each in designs.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {"a": 40, "b": 40, "sharing": 16, "kv": 16, "width": 12}
    for name, seed in LISTED["runs"]:
        assert name in designs and seed in range(shape_designs.SEEDS)
    assert len(set(map(tuple, LISTED["runs"]))) == len(LISTED["runs"])
    for each in designs.values():
        if each["set"] in ("a", "kv"):
            assert each["weights"] == pytest.approx(128_000, rel=0.01)
    members = [each for each in designs.values() if each["set"] == "sharing"]
    prior = MEASURED.having(sharing=shape_designs.PRIOR)
    for one, two in zip(members[::2], members[1::2], strict=True):
        left, right = (shape_analysis.effective(archs[each["name"]], prior) for each in (one, two))
        assert left == pytest.approx(right, rel=0.01)
    sizes = [build_model(archs[name], bos_token_id=0, eos_token_id=0, pad_token_id=0).num_parameters()
             for name, each in designs.items() if each["set"] == "width"]  # fmt: skip
    assert sizes[::2] == pytest.approx(sizes[1::2], rel=0.01)


def made_up(designs, alpha=0.1, sharing=0.7, kv=0.004, padded=-0.01, aspect=3.0, kappa=0.005, noise=0.0):
    """Rows as of runs whose losses follow a law with these constants."""
    random, rows = np.random.default_rng(0), []
    for each in designs:
        arch = Architecture.model_validate(each["architecture"])
        block, depth = arch.blocks[0], sum(block.depth for block in arch.blocks)
        amount = each["weights"] * (block.depth**sharing if block.shared else 1)
        if each["set"] == "sharing":  # at equal aspect, as the pairs are by 0.46
            loss = -alpha * math.log(amount)
        else:
            away = math.log(math.sqrt(amount / (12 * depth)) / depth) - aspect
            loss = -alpha * math.log(amount) + kappa * away**2
        loss += kv * math.log2(block.width / block.kv_width(arch.head_size))
        loss += padded * (each["set"] == "width" and arch.padded)
        for seed in (0, 1):
            value = math.exp(2 + loss + noise * random.standard_normal())
            by_share = {share: {"x": value, "y": value} for share in shape_analysis.SHARES}
            rows.append({"name": each["name"], "seed": seed, "rate": 1, "commit": "0000000", "bits_per_byte": by_share})
    return rows


def test_the_analysis_finds_the_constants_that_the_losses_were_made_with():
    rows = made_up(LISTED["designs"], noise=1e-4)
    result = shape_analysis.analyze(LISTED, rows)
    assert result["runs"] == {"done": 248, "of": len(LISTED["runs"])}
    assert result["sharing_exponent"]["value"] == pytest.approx(0.7, abs=0.01)
    assert result["kv_loss_per_halving"]["value"] == pytest.approx(0.004, abs=3e-4)
    assert result["padded_less_projected"]["interval"][1] < -0.008
    assert result["law"]["alpha"]["value"] == pytest.approx(0.1, abs=2e-3)
    assert result["law"]["aspect"]["value"] == pytest.approx(3.0, abs=0.1)
    assert result["noise"]["rho_between_seeds"] > 0.99 and result["set_a"]["rho"]["measured"]["value"] > 0.7
    assert "<svg" in shape_analysis.picture(LISTED, rows)
    assert len(shape_analysis.table(LISTED, rows)) == 124


def test_the_analysis_says_what_the_first_runs_do_not_yet_tell():
    rows = [row for row in made_up(LISTED["designs"]) if row["name"] in ("a-d01-1", "kv-5x", "kv-5y")][::2]
    result = shape_analysis.analyze(LISTED, rows)
    assert result["runs"]["done"] == 3 and result["designs"]["a"] == {"done": 1, "of": 40}
    assert result["set_a"] is result["law"] is result["sharing_exponent"]["value"] is None
    assert result["kv_loss_per_halving"]["pairs"] == 1
    assert shape_analysis.analyze(LISTED, [])["runs"]["done"] == 0


def test_rivals_are_compared_by_seed():
    data = {"designs": [{"name": name} for name in ("measured", "random")], "runs": [None] * 4}
    rows = [{"name": name, "seed": seed, "bits_per_byte": {"1": {"x": 2 * (1.01 + 0.01 * seed) ** (name == "random")}}}
            for name in ("measured", "random") for seed in (0, 1)]  # fmt: skip
    compared = shape_analysis.against(data, rows, base="measured")
    assert compared["random"]["value"] == pytest.approx(math.log(1.01 * 1.02) / 2, abs=1e-5)
