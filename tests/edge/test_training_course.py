"""The course of a run: parts of a batch, evaluation and early stop, logs, optimizer, several processes."""

import csv
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from sample_models import ARCH, story, write_stories
from served import free_port
from test_training_data import write_lines
from test_training_runs import ctrl_c_at, main_ends, same_weights

from merino_edge.families.designed import Block
from merino_edge.families.hugging_face import build_model
from merino_edge.text.tokenizer import load_tokenizer
from merino_edge.training.checkpoint import saved_states, step_of
from merino_edge.training.optimizer import Muon, optimizer_for
from merino_edge.training.recipe import Recipe, usual_weight_decay
from merino_edge.training.train import train
from merino_runtime.errors import MerinoError

pytestmark = pytest.mark.slow
# By AdamW, as the preset gpu-day: Muon in bfloat16 makes more of a rounding.
RECIPE = Recipe(steps=20, batch=4, learning_rate=3e-3, optimizer="adamw", warmup_share=0.02, length=ARCH.context)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_stories(tmp_path_factory.mktemp("data") / "stories.txt")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Rows whose numbers of learned tokens differ much."""
    records = [{"prompt": story(seed, 1), "completion": " yes." * (1 + seed % 6)} for seed in range(400)]
    return write_lines(tmp_path_factory.mktemp("data") / "samples.jsonl", records)


@pytest.fixture(scope="module")
def whole(text, samples, tmp_path_factory):
    """(folder, record) of a run in one process and one part."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, train(ARCH, [f"{text}:1", f"{samples}:1"], out, recipe=RECIPE)


def losses(record, key="loss"):
    return [entry[key] for entry in record["losses"] if key in entry]


def alike(one, other):
    """Weights that differ by rounding alone."""
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return all(torch.allclose(first[name], second[name], atol=2e-4) for name in first)


def test_a_batch_in_parts_is_the_same_batch(whole, text, samples, tmp_path):
    record = train(ARCH, [f"{text}:1", f"{samples}:1"], tmp_path / "out", recipe=RECIPE, parts=4)
    assert losses(record) == pytest.approx(losses(whole[1]), rel=1e-3)
    assert losses(record, "eval_loss") == pytest.approx(losses(whole[1], "eval_loss"), rel=1e-3)
    assert alike(tmp_path / "out", whole[0])
    with pytest.raises(MerinoError, match="--batch 4 is not a multiple of 3, by --accumulate 3: give --batch 6"):
        train(ARCH, [text], tmp_path / "other", recipe=RECIPE, parts=3)


def test_the_held_out_loss_is_the_mean_over_learned_tokens_however_rows_are_batched(samples, tmp_path):
    few = write_lines(tmp_path / "few.jsonl", map(json.loads, samples.read_text().splitlines()[:40]))
    results = []
    for batch in (1, 8):
        recipe = dataclasses.replace(RECIPE, steps=1, batch=batch, learning_rate=1e-12)
        results.append(train(ARCH, [samples], tmp_path / str(batch), recipe=recipe, held_out=[few])["held_out_loss"])
    assert results[0] == pytest.approx(results[1], rel=1e-6)


def test_a_run_ends_early_with_the_weights_of_its_best_evaluation(text, tmp_path):
    """At a rate at which it soon becomes worse; and a run that was stopped between ends at the same step."""
    recipe = Recipe(steps=60, batch=2, learning_rate=0.08, patience=3, evaluations=30)
    record = train(ARCH, [text], tmp_path / "out", recipe=recipe)
    held_out = losses(record, "eval_loss")[:-1]
    assert record["steps_taken"] < 60 and record["steps_taken"] == 2 * len(held_out)
    assert held_out.index(min(held_out)) == len(held_out) - 4
    assert record["held_out_loss"] == pytest.approx(min(held_out), rel=1e-5)
    with pytest.raises(KeyboardInterrupt):
        train(ARCH, [text], tmp_path / "again", recipe=recipe, progress=ctrl_c_at(3))
    again = train(ARCH, [text], tmp_path / "again", recipe=recipe, resume=True)
    assert again["steps_taken"] == record["steps_taken"] and same_weights(tmp_path / "out", tmp_path / "again")


def test_the_logs_have_every_loss_of_the_record(text, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(ARCH, [text], out, recipe=RECIPE, progress=ctrl_c_at(9))
    stopped = max(step_of(state) for state in saved_states(out / "trainer"))
    assert (out / "trainer" / "losses.csv").read_text().count("\n") == 1 + stopped == 11
    record = train(ARCH, [text], out, recipe=RECIPE, resume=True)
    rows = list(csv.DictReader((out / "losses.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(1, 21))
    assert [float(row["loss"]) for row in rows] == losses(record)
    assert [float(row["held_out_loss"]) for row in rows if row["held_out_loss"]] == losses(record, "eval_loss")


def test_muon_takes_the_matrices_of_the_layers_and_resumes_exactly(text, tmp_path):
    recipe = dataclasses.replace(RECIPE, optimizer="muon")
    model = build_model(ARCH)
    names = {id(weight): name for name, weight in model.named_parameters()}
    adamw, muon = ({names[id(weight)] for group in part.param_groups for weight in group["params"]}
                   for part in optimizer_for(model, recipe, by_width=True).parts)  # fmt: skip
    assert adamw | muon == set(names.values()) and adamw & muon == set()
    assert adamw == {name for name in names.values() if "norm" in name or name == "embed_tokens.weight"}
    record = train(ARCH, [text], tmp_path / "whole", recipe=recipe)
    with pytest.raises(KeyboardInterrupt):
        train(ARCH, [text], tmp_path / "out", recipe=recipe, progress=ctrl_c_at(9))
    train(ARCH, [text], tmp_path / "out", recipe=recipe, resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "out")
    assert losses(record)[-1] < losses(record)[0] - 0.5


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_takes_the_steps_of_torchs(dtype):
    """In bfloat16 exactly; in float32 its updates differ by the rounding alone."""
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(weight.clone()) for weight in drawn]
                    for drawn in [[torch.randn(shape) for shape in ((24, 24), (16, 48), (48, 16))]] * 2)  # fmt: skip
    mine = Muon([{"params": ours, "lr": 0.02, "weight_decay": 0.1}], dtype)
    torchs = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        mine.step()
        torchs.step()
    off = max(float((one - other).detach().abs().max()) for one, other in zip(ours, theirs, strict=True))
    assert off == 0 if dtype is torch.bfloat16 else 0 < off < 2e-3


def test_prompts_count_by_their_weight(tmp_path):
    """At a rate of nearly zero a token costs ln(vocab), in a completion and in a prompt, but not in the padding."""
    records = [{"prompt": story(seed, 1), "completion": " yes."} for seed in range(400)]
    samples, result = write_lines(tmp_path / "samples.jsonl", records), []
    for weight in (0.0, 0.5):
        recipe = Recipe(steps=1, batch=1024, learning_rate=1e-12, prompt_weight=weight)
        record = train(ARCH, [samples], tmp_path / str(weight), recipe=recipe)
        result.append((losses(record)[0], record["held_out_loss"]))
    tokenizer = load_tokenizer(tmp_path / "0.0" / "tokenizer.json")
    prompt, completion = (
        sum(len(tokenizer.encode(record[part], add_special_tokens=False).ids) for record in records)
        for part in ("prompt", "completion")
    )
    expected = 0.5 * math.log(ARCH.vocab) * prompt / (completion + len(records))
    assert result[1][0] - result[0][0] == pytest.approx(expected, rel=0.02)
    assert result[1][1] == pytest.approx(result[0][1], rel=1e-6)


@pytest.mark.parametrize(
    "keys", [{"optimizer": "sgd"}, {"prompt_weight": 2.0}, {"patience": -1}, {"weight_decay": -0.1}]
)
def test_a_recipe_that_cannot_be_is_refused(keys):
    with pytest.raises(MerinoError, match="must be (adamw or muon|at least 0|from 0 to 1)"):
        Recipe(**keys)


@pytest.mark.parametrize(("options", "decay"), [
    ([], 0.5), (["--preset", "laptop-hour", "--length", 32], 0.5), (["--set", "weight_decay=0.03"], 0.03),
])  # fmt: skip
def test_a_short_run_from_drawn_weights_has_more_weight_decay(options, decay, tmp_path):
    (tmp_path / "arch.json").write_text(ARCH.model_dump_json())
    data, out = write_stories(tmp_path / "a.txt"), tmp_path / "out"
    main_ends(0, "train", tmp_path / "arch.json", "--data", data, "--steps", 2, "--batch", 2, *options, "-o", out)
    assert json.loads((out / "training.json").read_text())["recipe"]["weight_decay"] == decay


@pytest.mark.parametrize(("steps", "rate", "decay"), [
    (100, 1e-2, 0.5), (1000, 1e-2, 0.5), (3000, 1e-2, 0.17), (5000, 1e-2, 0.1), (60_000, 4e-3, 0.021),
])  # fmt: skip
def test_weights_are_an_average_over_a_fifth_of_a_long_run(steps, rate, decay):
    assert usual_weight_decay(steps, rate) == decay


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]


def torchrun(words, port, **keys):
    """Two processes of `merino-edge train`; stdout and stderr in one."""
    command = [*TORCHRUN, "--master-port", str(port), "-m", "merino_edge", "train", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
        **keys,
    )  # fmt: skip


def words_of(text, samples, out, tmp_path, *more):
    (tmp_path / "arch.json").write_text(ARCH.model_dump_json())
    data = ["--data", f"{text}:1", "--data", f"{samples}:1"]
    recipe = ["--preset", "gpu-day", "--accumulate", 1, "--steps", 20, "--batch", 4, "--learning-rate", 3e-3,
              "--length", ARCH.context, "--set", "evaluations=10", "--set", "weight_decay=0.1", "--no-bf16"]
    return [tmp_path / "arch.json", *data, *recipe, "-o", out, *more]


@pytest.mark.nightly
def test_two_processes_compute_what_one_does_and_only_the_first_talks(whole, text, samples, tmp_path):
    process = torchrun(words_of(text, samples, tmp_path / "out", tmp_path), free_port())
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert losses(record) == pytest.approx(losses(whole[1]), rel=1e-3)
    assert losses(record, "eval_loss") == pytest.approx(losses(whole[1], "eval_loss"), rel=1e-3)
    assert alike(tmp_path / "out", whole[0]) and record["seen_tokens"] == whole[1]["seen_tokens"]
    assert output.count("held-out loss") == output.count("the checkpoint is") == output.count("training needs") == 1


@pytest.mark.nightly
def test_two_processes_compile_a_design_of_several_gradient_buckets(text, tmp_path):
    """In bfloat16, parts of a graph that torch.compile cut at the buckets had gradients that were not finite."""
    arch = ARCH.model_copy(update={"blocks": tuple(Block(width=width, ffn_ratio=2, depth=1) for width in (192, 256))})
    (tmp_path / "arch.json").write_text(arch.model_dump_json())
    words = [tmp_path / "arch.json", "--data", text, "--steps", 3, "--batch", 4, "--set", "evaluations=1", "--bf16"]
    process = torchrun([*words, "--compile", "-o", tmp_path / "two"], free_port())
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 0, output
    main_ends(0, "train", *words, "-o", tmp_path / "one")
    two, one = (losses(json.loads((tmp_path / name / "training.json").read_text())) for name in ("two", "one"))
    assert len(two) == 3 and two == pytest.approx(one, rel=5e-3)


@pytest.mark.nightly
def test_several_processes_refuse_with_one_voice(whole, text, samples, tmp_path):
    shutil.copytree(whole[0], tmp_path / "out")
    refused = torchrun(words_of(text, samples, tmp_path / "out", tmp_path, "--seed", 3), free_port())
    output = refused.communicate(timeout=300)[0]
    assert refused.returncode != 0 and output.count("--seed is 3; the run's is 0") == 1


@pytest.mark.nightly
def test_a_rank_that_is_killed_ends_the_run_which_one_process_goes_on_with(whole, text, samples, tmp_path):
    out = tmp_path / "out"
    process = torchrun(words_of(text, samples, out, tmp_path), free_port())
    while not list((out / "trainer").glob("checkpoint-*/saved.json")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode != 0 and not (out / "training.json").exists()
    assert all(
        {"rng_state_0.pth", "rng_state_1.pth"} <= json.loads(path.read_text()).keys()
        for path in (out / "trainer").glob("checkpoint-*/saved.json")
    )
    main_ends(0, "train", *words_of(text, samples, out, tmp_path, "--resume"))
    record = json.loads((out / "training.json").read_text())
    assert losses(record) == pytest.approx(losses(whole[1]), rel=1e-3) and alike(out, whole[0])
