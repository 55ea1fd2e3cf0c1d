"""A training run that is stopped, killed, damaged, repeated or changed: it goes on as it began, or it is refused."""

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file
from sample_models import ARCH, story, write_stories
from test_training_data import write_lines

from merino_edge.cli.app import main
from merino_edge.export.source import load_source
from merino_edge.families.designed import Architecture, Block
from merino_edge.families.hugging_face import build_model
from merino_edge.text.tokenizer import train_tokenizer
from merino_edge.training import loop
from merino_edge.training import train as training
from merino_edge.training.checkpoint import saved_states, step_of
from merino_edge.training.recipe import Recipe
from merino_edge.training.train import train
from merino_runtime.errors import MerinoError

pytestmark = pytest.mark.slow

RECIPE = Recipe(steps=20, batch=2, learning_rate=3e-3)  # a saved state every second step
FILES = {  # of a saved state
    "config.json", "generation_config.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt",
    "trainer_state.json", "training_args.bin",
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_stories(tmp_path_factory.mktemp("data") / "stories.txt")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "tiny.json"
    path.write_text(ARCH.model_dump_json())
    return path


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """A run without interruption; nobody writes to it."""
    out = tmp_path_factory.mktemp("finished") / "out"
    train(ARCH, [text], out, recipe=RECIPE)
    return out


def ctrl_c_at(step, number=signal.SIGINT):
    def on_progress(done, _total, _what):
        if done == step:
            signal.raise_signal(number)

    return on_progress


@pytest.fixture(scope="module")
def stopped_run(text, tmp_path_factory):
    """A run stopped by ctrl-C after step 7, with states of steps 6 and 7; nobody writes to it."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    with pytest.raises(KeyboardInterrupt):
        train(ARCH, [text], out, recipe=RECIPE, progress=ctrl_c_at(6))
    return out


@pytest.fixture
def stopped(stopped_run, tmp_path):
    return shutil.copytree(stopped_run, tmp_path / "out")


def content(folder):
    """Hash and time of each file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def same_weights(one, other):
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def states(out):
    return sorted(path.name for path in (out / "trainer").glob("checkpoint-*"))


def test_ctrl_c_saves_and_the_resumed_run_ends_as_if_nothing_had_happened(stopped, finished, text):
    assert states(stopped) == ["checkpoint-6", "checkpoint-7"] and not (stopped / "training.json").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(MerinoError, match="holds an unfinished run: continue with --resume"):
        train(ARCH, [text], stopped, recipe=RECIPE)
    train(ARCH, [text], stopped, recipe=RECIPE, resume=True)
    assert same_weights(stopped, finished)


def test_an_unfinished_run_is_no_checkpoint_and_its_error_says_how_to_go_on(stopped_run):
    with pytest.raises(MerinoError, match="is not finished. Go on with the same `merino-edge train` command and --res"):
        load_source(str(stopped_run))


@pytest.mark.nightly
def test_sigterm_saves_as_ctrl_c_does(finished, text, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(ARCH, [text], tmp_path / "out", recipe=RECIPE, progress=ctrl_c_at(6, signal.SIGTERM))
    assert states(tmp_path / "out") == ["checkpoint-6", "checkpoint-7"]
    assert signal.getsignal(signal.SIGTERM) is before
    train(ARCH, [text], tmp_path / "out", recipe=RECIPE, resume=True)
    assert same_weights(tmp_path / "out", finished)


def test_states_are_saved_by_time_between_evaluations(finished, text, tmp_path, monkeypatch):
    """And they change nothing: the weights are those of a run without them."""
    saved = []
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    after_saving(monkeypatch, lambda folder: saved.append(step_of(saved_states(folder)[0])))
    train(ARCH, [text], tmp_path / "out", recipe=RECIPE)
    assert saved == list(range(1, 21)) and same_weights(tmp_path / "out", finished)


def after_saving(monkeypatch, look):
    """Call `look` with the folder of the saved states after each one that a run saves."""
    save = loop.CheckedTrainer._save_checkpoint

    def saving(self, *arguments):
        save(self, *arguments)
        look(Path(self.args.output_dir))

    monkeypatch.setattr(loop.CheckedTrainer, "_save_checkpoint", saving)


@pytest.mark.nightly
@pytest.mark.parametrize("prompt_weight", [0.0, 0.5])
def test_a_compiled_run_has_the_losses_of_another_and_is_resumed(prompt_weight, text, tmp_path):
    """Attention is written out there, and each document or sample sees itself alone."""
    if not shutil.which("g++"):
        pytest.skip("no g++ here")
    if prompt_weight:
        text = write_lines(tmp_path / "a.jsonl", [{"prompt": story(i, 1), "completion": " yes."} for i in range(400)])
    base = RECIPE.model_copy(update={"optimizer": "adamw", "prompt_weight": prompt_weight})  # Muon rounds more
    recipe = base.model_copy(update={"compile": True})
    records = [
        train(ARCH, [text], tmp_path / "plain", recipe=base),
        train(ARCH, [text], tmp_path / "out", recipe=recipe),
    ]
    plain, compiled = ([entry.get("loss", entry.get("eval_loss")) for entry in record["losses"]] for record in records)
    assert compiled == pytest.approx(plain, rel=1e-3)
    with pytest.raises(KeyboardInterrupt):
        train(ARCH, [text], tmp_path / "stopped", recipe=recipe, progress=ctrl_c_at(6))
    train(ARCH, [text], tmp_path / "stopped", recipe=recipe, resume=True)
    assert same_weights(tmp_path / "stopped", tmp_path / "out")


@pytest.mark.nightly
def test_compiled_gradients_in_bfloat16_are_those_of_the_model():
    """Of two samples in a row. With the rotary table in the compiled graph the last layer's queries had NaN."""
    if not shutil.which("g++"):
        pytest.skip("no g++ here")
    blocks = tuple(Block(width=width, ffn_ratio=2, depth=1) for width in (256, 256, 320))
    arch = Architecture(blocks=blocks, vocab=1536, head_size=64, context=256, width_change="padding")
    torch.manual_seed(0)
    model = build_model(arch, bos_token_id=0, eos_token_id=0, pad_token_id=0).train()
    model.set_attn_implementation("eager")
    ids = torch.randint(1, arch.vocab, (16, arch.context))
    positions = torch.cat((torch.arange(100), torch.arange(156))).repeat(16, 1)

    def gradients(forward):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = forward(input_ids=ids, labels=ids, position_ids=positions, use_cache=False).loss
        loss.backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters()}

    plain, compiled = gradients(model), gradients(torch.compile(model))
    for name, gradient in plain.items():
        assert (compiled[name] - gradient).norm() <= 0.02 * gradient.norm(), name


def test_compilation_without_a_compiler_is_refused_before_anything_is_written(text, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MerinoError, match="no no-such-compiler: install one"):
        train(ARCH, [text], tmp_path / "out", recipe=RECIPE.model_copy(update={"compile": True}))
    assert not (tmp_path / "out").exists()


def other_text(tmp_path):
    return write_stories(tmp_path / "other.txt", range(60, 120))


def other_tokenizer(tmp_path):
    path = tmp_path / "other.json"
    path.write_text(train_tokenizer([story(7).upper()], 270).to_str())
    return path


CHANGES = {
    "--steps": lambda _: {"recipe": RECIPE.model_copy(update={"steps": 21})},
    "--batch": lambda _: {"recipe": RECIPE.model_copy(update={"batch": 3})},
    "--learning-rate": lambda _: {"recipe": RECIPE.model_copy(update={"learning_rate": 1e-3})},
    "--set weight_decay": lambda _: {"recipe": RECIPE.model_copy(update={"weight_decay": 0.3})},
    "--set seed": lambda _: {"recipe": RECIPE.model_copy(update={"seed": 1})},
    "--set compile": lambda _: {"recipe": RECIPE.model_copy(update={"compile": True})},
    "--set bf16": lambda _: {"recipe": RECIPE.model_copy(update={"bf16": True})},
    "--data": lambda tmp_path: {"data": [other_text(tmp_path)]},
    "--held-out": lambda tmp_path: {"held_out": [other_text(tmp_path)]},
    "--tokenizer": lambda tmp_path: {"tokenizer_file": other_tokenizer(tmp_path)},
    "--set length": lambda _: {"recipe": RECIPE.model_copy(update={"length": 16})},
    "SOURCE": lambda _: {"arch": ARCH.model_copy(update={"context": 16})},
}


@pytest.mark.parametrize("of", ["stopped", pytest.param("finished", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("option", CHANGES)
def test_a_run_with_another_option_is_refused_and_nothing_changes(option, of, request, text, tmp_path):
    out = request.getfixturevalue(of)
    before = content(out)
    keys = {"arch": ARCH, "data": [text], "recipe": RECIPE, **CHANGES[option](tmp_path)}
    with pytest.raises(MerinoError, match=f"{option} is .*the run's.*another -o"):
        train(keys.pop("arch"), keys.pop("data"), out, **keys, resume=of == "stopped")
    assert content(out) == before


def test_options_left_out_are_those_of_the_resumed_run(stopped, finished, text, plan):
    """And a file of the same text under another name is the same text."""
    moved = shutil.copy(text, stopped.parent / "moved.txt")
    main_ends(0, "train", plan, "--data", moved, "-o", stopped, "--resume")
    assert json.loads((stopped / "training.json").read_text())["recipe"] == RECIPE.model_dump()
    assert same_weights(stopped, finished)


def main_ends(code, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in arguments])
    assert (ended.value.code or 0) == code


def test_a_finished_run_stays_finished(finished, text, plan, capfd, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    arguments = ["--steps", 20, "--batch", 2, "--learning-rate", 3e-3, "-o", out]
    for more in ((), ("--resume",)):
        before = content(out)
        main_ends(0, "train", plan, "--data", text, *arguments, *more)
        output = capfd.readouterr()
        assert "this run is finished" in output.err and "held-out loss" in output.out
        assert content(out) == before
    shutil.rmtree(out / "trainer")  # it may be deleted afterwards
    main_ends(0, "train", plan, "--data", text, *arguments)
    assert "this run is finished" in capfd.readouterr().err and not (out / "trainer").exists()


def test_a_state_that_a_killed_process_left_unfinished_is_no_state(stopped, finished, text):
    """Whatever it holds: it is removed, and the run goes on from the newest state in its place."""
    half = stopped / "trainer" / "saving" / "checkpoint-8"
    half.mkdir(parents=True)
    shutil.copy(stopped / "trainer" / "checkpoint-7" / "model.safetensors", half)
    messages = []
    train(ARCH, [text], stopped, recipe=RECIPE, resume=True, say=messages.append)
    assert "resuming from checkpoint-7" in messages and same_weights(stopped, finished)
    assert not list(half.parent.iterdir())


def test_a_run_that_does_not_say_what_it_is_is_not_resumed(stopped, text):
    (stopped / "trainer" / "run.json").unlink()
    with pytest.raises(MerinoError, match="has no run.json.*another -o"):
        train(ARCH, [text], stopped, recipe=RECIPE, resume=True)


def started(*words):
    """`merino-edge train` in a process of its own: (process, its stderr)."""
    read, write = os.pipe()
    process = forked.Forked(["train", *words], stderr=write)
    os.close(write)
    return process, os.fdopen(read)


def start(plan, text, out, *more):
    """Once its first step is timed: (process, its stderr, the lines of that so far)."""
    recipe = ["--steps", "150", "--batch", "2", "--learning-rate", "3e-3", "--set", "bf16=false"]
    process, stderr = started(plan, "--data", text, "-o", out, *recipe, *more)
    lines = []
    for line in stderr:
        lines.append(line)
        if "s per step" in line:
            return process, stderr, lines
    raise AssertionError("".join(lines))


def test_ctrl_c_and_kill_of_a_process_and_a_second_process_in_its_folder(plan, text, tmp_path):
    out = tmp_path / "out"
    recipe = Recipe(steps=150, batch=2, learning_rate=3e-3, weight_decay=0.5)
    process, stderr, lines = start(plan, text, out)
    assert any("to go" in line and "peak memory" in line for line in lines)
    with pytest.raises(MerinoError, match="another `train` is running"):
        train(ARCH, [text], out, recipe=recipe)
    os.kill(process.pid, signal.SIGINT)
    with stderr:
        rest = stderr.read()
    assert process.wait() == 130 and "same command and --resume" in rest and "Traceback" not in rest
    assert states(out) and not (out / "training.json").exists()

    process, stderr, _ = start(plan, text, out, "--resume")
    before = set(states(out))
    while set(states(out)) <= before:
        os.kill(process.pid, 0)  # it has not ended
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    with stderr:
        assert process.wait() == -signal.SIGKILL

    train(ARCH, [text], out, recipe=recipe, resume=True)
    whole = tmp_path / "whole"
    train(ARCH, [text], whole, recipe=recipe)
    assert same_weights(out, whole)


@pytest.mark.nightly
def test_killed_at_random_moments_a_run_ends_as_if_nothing_had_happened(plan, text, tmp_path):
    """Wherever it is hit: in tokenizing, in a step, in an evaluation, while it saves. No whole state is lost."""
    kills, out = 10, tmp_path / "out"
    moments = random.Random(kills)
    recipe = Recipe(steps=100 * kills, batch=2, learning_rate=3e-3, weight_decay=0.5, evaluations=20 * kills)
    options = ["--steps", recipe.steps, "--batch", 2, "--learning-rate", 3e-3, "--set", "bf16=false"]
    options += ["--set", f"evaluations={recipe.evaluations}"]
    for _ in range(kills):
        whole = saved_states(out / "trainer")
        resume = ["--resume"] if whole else []
        process, stderr = started(plan, "--data", text, "-o", out, *options, *resume)
        with stderr:
            printed = stderr.readline()
            time.sleep(moments.uniform(0, 3))
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            printed += stderr.read()
        process.wait()
        assert "Traceback" not in printed, printed
        newest = saved_states(out / "trainer")[:1]  # an older one may have been in removal
        assert all({path.name for path in state.iterdir()} == FILES for state in newest)
        assert not whole or step_of(newest[0]) >= step_of(whole[0])
    whole = saved_states(out / "trainer")
    record = train(ARCH, [text], out, recipe=recipe, resume=bool(whole))
    expected = train(ARCH, [text], tmp_path / "whole", recipe=recipe)
    assert same_weights(out, tmp_path / "whole")
    # A logged training loss is a mean over the steps of one process: a run that goes on begins a new mean.
    held_out = [[(each["step"], each["eval_loss"]) for each in losses if "eval_loss" in each]
                for losses in (record["losses"], expected["losses"])]  # fmt: skip
    assert held_out[0] == held_out[1] != []


@pytest.mark.parametrize("patience", [0, 30])
def test_a_state_stays_until_the_next_one_is_whole(patience, text, tmp_path, monkeypatch):
    """Also where an older one has the lowest held-out loss: with patience it is kept beside the newest two."""
    seen = [[]]

    def look(folder):
        steps = list(map(step_of, saved_states(folder)))
        assert steps[1:2] == seen[-1][:1]
        assert all({path.name for path in state.iterdir()} == FILES for state in saved_states(folder))
        seen.append(steps)

    after_saving(monkeypatch, look)
    recipe = Recipe(steps=20, batch=2, learning_rate=1.0, patience=patience)  # the loss rises
    record = train(ARCH, [text], tmp_path / "out", recipe=recipe)
    losses = {each["step"]: each["eval_loss"] for each in record["losses"] if "eval_loss" in each}
    best = min(losses, key=losses.__getitem__)
    assert best < 18, "its losses try nothing: the lowest is that of the newest two"
    kept = [20, 18, best] if patience else [20, 18]
    assert [step_of(state) for state in saved_states(tmp_path / "out" / "trainer")] == kept


@contextlib.contextmanager
def files_of_at_most(limit):
    """Each write beyond fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Bytes: the first text; the weights; the optimizer's moments.
@pytest.mark.parametrize("limit", [1, 20_000, pytest.param(150_000, marks=pytest.mark.nightly)])
def test_a_disk_that_is_full_at_first_blocks_no_later_start(limit, text, finished, tmp_path):
    out = tmp_path / "out"
    with files_of_at_most(limit), pytest.raises(MerinoError, match="cannot write .*out"):
        train(ARCH, [text], out, recipe=RECIPE)
    assert not out.exists() or states(out) == []
    train(ARCH, [text], out, recipe=RECIPE)
    assert same_weights(out, finished)


def test_a_disk_that_is_full_later_costs_no_saved_state(stopped, finished, text):
    with files_of_at_most(150_000), pytest.raises(MerinoError, match="continue from checkpoint-7 .*--resume"):
        train(ARCH, [text], stopped, recipe=RECIPE, resume=True)
    assert states(stopped) == ["checkpoint-6", "checkpoint-7"]
    train(ARCH, [text], stopped, recipe=RECIPE, resume=True)
    assert same_weights(stopped, finished)


def test_a_disk_that_is_full_at_the_end_costs_no_step(stopped, finished, text, monkeypatch):
    """The model is trained and its last state is saved; then not even its record can be written."""
    real = training.save_model

    def full(model, folder):
        with files_of_at_most(20_000):
            real(model, folder)

    with monkeypatch.context() as patch, pytest.raises(MerinoError, match="continue from checkpoint-20"):
        patch.setattr(training, "save_model", full)
        train(ARCH, [text], stopped, recipe=RECIPE, resume=True)
    assert {path.name for path in stopped.iterdir()} == {"trainer"}
    train(ARCH, [text], stopped, recipe=RECIPE, resume=True)
    assert same_weights(stopped, finished)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_place_that_is_read_only_is_not_called_full(small_disk, text):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(MerinoError, match="cannot write .*Read-only file system"):
        train(ARCH, [text], small_disk / "out", recipe=RECIPE)


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_loss_that_is_not_finite_ends_the_run(bf16, text, finished, tmp_path):
    wild = RECIPE.model_copy(update={"learning_rate": 1e30, "bf16": bf16})
    with pytest.raises(MerinoError, match=r"is (nan|inf) at step \d+: .* --learning-rate below 1e\+30"):
        train(ARCH, [text], tmp_path / "wild", recipe=wild)
    assert {path.name for path in (tmp_path / "wild").iterdir()} <= {"trainer"}
    for weights in (tmp_path / "wild").rglob("model.safetensors"):
        assert all(torch.isfinite(weight).all() for weight in load_file(weights).values())
    train(ARCH, [text], tmp_path / "tame", recipe=RECIPE)  # the remedy
    assert same_weights(tmp_path / "tame", finished)
