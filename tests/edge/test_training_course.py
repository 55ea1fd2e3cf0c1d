"""The course of a run: parts of a batch, early stop, optimizer, several processes; and what it needs or refuses."""

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

from merino_edge.export.source import load_source
from merino_edge.families.designed import Architecture, Block
from merino_edge.families.hugging_face import build_model
from merino_edge.text.tokenizer import LONGEST_WORD_BYTES, load_tokenizer, train_tokenizer
from merino_edge.training import resources
from merino_edge.training.optimizer import MuonAndAdamW, optimizer_for
from merino_edge.training.recipe import Recipe
from merino_edge.training.resources import available_bytes, check_memory, training_need
from merino_edge.training.train import train
from merino_runtime.errors import MerinoError

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


def in_parts(count):
    return RECIPE.model_copy(update={"accumulate": count})


def losses(record, key="loss"):
    return [entry[key] for entry in record["losses"] if key in entry]


def alike(one, other):
    """Weights that differ by rounding alone."""
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return all(torch.allclose(first[name], second[name], atol=2e-4) for name in first)


@pytest.mark.slow
def test_a_batch_in_parts_is_the_same_batch(whole, text, samples, tmp_path):
    record = train(ARCH, [f"{text}:1", f"{samples}:1"], tmp_path / "out", recipe=in_parts(4))
    assert losses(record) == pytest.approx(losses(whole[1]), rel=1e-3)
    assert losses(record, "eval_loss") == pytest.approx(losses(whole[1], "eval_loss"), rel=1e-3)
    assert alike(tmp_path / "out", whole[0])
    with pytest.raises(MerinoError, match="--batch 4 is not a multiple of 3, by --set accumulate=3: give --batch 6"):
        train(ARCH, [text], tmp_path / "other", recipe=in_parts(3))


@pytest.mark.slow
def test_the_held_out_loss_is_the_mean_over_learned_tokens_however_rows_are_batched(samples, tmp_path):
    few = write_lines(tmp_path / "few.jsonl", map(json.loads, samples.read_text().splitlines()[:40]))
    results = []
    for batch in (1, 8):
        recipe = RECIPE.model_copy(update={"steps": 1, "batch": batch, "learning_rate": 1e-12})
        results.append(train(ARCH, [samples], tmp_path / str(batch), recipe=recipe, held_out=[few])["held_out_loss"])
    assert results[0] == pytest.approx(results[1], rel=1e-6)


@pytest.mark.slow
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


@pytest.mark.slow
def test_muon_takes_the_matrices_of_the_layers_and_resumes_exactly(text, tmp_path):
    recipe = RECIPE.model_copy(update={"optimizer": "muon"})
    model = build_model(ARCH)
    names = {id(weight): name for name, weight in model.named_parameters()}
    groups = optimizer_for(model, recipe, by_width=True).param_groups
    adamw, muon = ({names[id(weight)] for group in groups if group["muon"] == kind for weight in group["params"]}
                   for kind in (False, True))  # fmt: skip
    assert adamw | muon == set(names.values()) and adamw & muon == set()
    assert adamw == {name for name in names.values() if "norm" in name or name == "embed_tokens.weight"}
    record = train(ARCH, [text], tmp_path / "whole", recipe=recipe)
    with pytest.raises(KeyboardInterrupt):
        train(ARCH, [text], tmp_path / "out", recipe=recipe, progress=ctrl_c_at(9))
    train(ARCH, [text], tmp_path / "out", recipe=recipe, resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "out")
    assert losses(record)[-1] < losses(record)[0] - 0.5


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_takes_the_steps_of_torchs(dtype):
    """In bfloat16 exactly; in float32 its updates differ by the rounding alone."""
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(weight.clone()) for weight in drawn]
                    for drawn in [[torch.randn(shape) for shape in ((24, 24), (16, 48), (48, 16))]] * 2)  # fmt: skip
    mine = MuonAndAdamW([{"params": ours, "lr": 0.02, "weight_decay": 0.1, "muon": True}], dtype)
    torchs = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        mine.step()
        torchs.step()
    off = max(float((one - other).detach().abs().max()) for one, other in zip(ours, theirs, strict=True))
    assert off == 0 if dtype is torch.bfloat16 else 0 < off < 2e-3


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value", "what"), [
    ("steps", 0, "--steps 0 must be at least 1"), ("batch", 0, "--batch 0 must be"),
    ("learning_rate", 0.0, "--learning-rate 0 must be greater than 0"), ("learning_rate", math.nan, "-rate nan must"),
    ("optimizer", "sgd", "--set optimizer=sgd must be 'adamw' or 'muon'"),
    ("patience", -1, "--set patience=-1 must be"),
    ("prompt_weight", 2.0, "--set prompt_weight=2 must be at most 1"), ("weight_decay", -0.1, "must be at least 0"),
])  # fmt: skip
def test_a_recipe_that_cannot_be_is_refused(name, value, what):
    with pytest.raises(MerinoError, match=what):
        Recipe(**{name: value})


@pytest.mark.slow
@pytest.mark.parametrize(("options", "decay"), [
    ([], 0.5), (["--config", "laptop-hour", "--set", "length=32"], 0.5), (["--set", "weight_decay=0.03"], 0.03),
])  # fmt: skip
def test_a_short_run_from_drawn_weights_has_more_weight_decay(options, decay, tmp_path):
    (tmp_path / "arch.json").write_text(ARCH.model_dump_json())
    data, out = write_stories(tmp_path / "a.txt"), tmp_path / "out"
    main_ends(0, "train", tmp_path / "arch.json", "--data", data, "--steps", 2, "--batch", 2, *options, "-o", out)
    assert json.loads((out / "training.json").read_text())["recipe"]["weight_decay"] == decay


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
    recipe = ["--config", "gpu-day", "--set", "accumulate=1", "--steps", 20, "--batch", 4, "--learning-rate", 3e-3,
              "--set", f"length={ARCH.context}", "--set", "evaluations=10", "--set", "weight_decay=0.1",
              "--set", "bf16=false"]
    return [tmp_path / "arch.json", *data, *recipe, "-o", out, *more]


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.nightly
def test_two_processes_compile_a_design_of_several_gradient_buckets(text, tmp_path):
    """In bfloat16, parts of a graph that torch.compile cut at the buckets had gradients that were not finite."""
    arch = ARCH.model_copy(update={"blocks": tuple(Block(width=width, ffn_ratio=2, depth=1) for width in (192, 256))})
    (tmp_path / "arch.json").write_text(arch.model_dump_json())
    words = [tmp_path / "arch.json", "--data", text, "--steps", 3, "--batch", 4, "--set", "evaluations=1",
             "--set", "bf16=true"]
    process = torchrun([*words, "--set", "compile=true", "-o", tmp_path / "two"], free_port())
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 0, output
    main_ends(0, "train", *words, "-o", tmp_path / "one")
    two, one = (losses(json.loads((tmp_path / name / "training.json").read_text())) for name in ("two", "one"))
    assert len(two) == 3 and two == pytest.approx(one, rel=5e-3)


@pytest.mark.slow
@pytest.mark.nightly
def test_several_processes_refuse_with_one_voice(whole, text, samples, tmp_path):
    shutil.copytree(whole[0], tmp_path / "out")
    refused = torchrun(words_of(text, samples, tmp_path / "out", tmp_path, "--set", "seed=3"), free_port())
    output = refused.communicate(timeout=300)[0]
    assert refused.returncode != 0 and output.count("--set seed is 3; the run's is 0") == 1


@pytest.mark.slow
@pytest.mark.nightly
def test_a_rank_that_is_killed_ends_the_run_which_one_process_goes_on_with(whole, text, samples, tmp_path):
    out = tmp_path / "out"
    process = torchrun(words_of(text, samples, out, tmp_path), free_port())
    while not list((out / "trainer").glob("checkpoint-*")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode != 0 and not (out / "training.json").exists()
    assert all(
        {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in state.iterdir()}
        for state in (out / "trainer").glob("checkpoint-*")
    )
    main_ends(0, "train", *words_of(text, samples, out, tmp_path, "--resume"))
    record = json.loads((out / "training.json").read_text())
    assert losses(record) == pytest.approx(losses(whole[1]), rel=1e-3) and alike(out, whole[0])


QUICK = Recipe(steps=8, batch=2)


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "checkpoint"
    train(ARCH, [text], out, recipe=QUICK)
    return out


BY_TRANSFORMERS_ALONE = """
import sys
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1])
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
else:
    raise AssertionError("loaded without being told to")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
assert "merino_edge.families.designed_torch" == type(model).__module__
print(model.num_parameters())
"""


@pytest.mark.slow
@pytest.mark.nightly
def test_transformers_loads_a_checkpoint_without_an_import_of_ours(trained, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BY_TRANSFORMERS_ALONE, trained], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path)}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == load_source(str(trained)).model.num_parameters()


TYPOS = """
import json, sys
from merino_edge.cli.app import main
for arguments, says in json.loads(sys.argv[1]):
    try:
        main(["train", *arguments])
    except SystemExit as ended:
        assert ended.code == 1, (arguments, ended.code)
    print(says, file=sys.stderr)
    assert not {"torch", "transformers"} & set(sys.modules), arguments
"""


def test_typos_are_refused_before_torch_is_loaded(text, tmp_path):
    (tmp_path / "tiny.json").write_text(ARCH.model_dump_json())
    (tmp_path / "taken").write_text("")
    good, rest = ["tiny.json", "--data", str(text)], ["-o", "out"]
    cases = [
        (["nope.json", "--data", str(text), *rest], "cannot read nope.json"),
        (["tiny.json", "--data", "nope.txt", *rest], "--data nope.txt does not exist"),
        (["tiny.json", "--data", ".", *rest], "--data . is a folder"),
        ([*good, "--held-out", "nope.txt", *rest], "--held-out nope.txt does not exist"),
        ([*good, "--tokenizer", "nope.json", *rest], "--tokenizer nope.json does not exist"),
        ([*good, "--steps", "0", *rest], "--steps 0"),
        ([*good, "--set", "seed=-1", *rest], "--set seed=-1"),
        ([*good, "--resume", *rest], "no run to resume"),
        ([*good, "-o", "taken"], "taken is a file"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", TYPOS, json.dumps(cases)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    for output, expected in zip(lines[::2], lines[1::2], strict=True):
        assert expected in output
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.json", "taken"}


def test_the_option_that_the_user_gave_is_blamed(text, tmp_path):
    latin, short = tmp_path / "latin.txt", tmp_path / "short.txt"
    latin.write_bytes("caf\u00e9".encode("latin-1"))
    short.write_text("the miller")
    for data, held_out, message in (
        ([latin], [], "--data .*latin.txt is not UTF-8"),
        ([text], [latin], "--held-out .*latin.txt is not UTF-8"),
        ([text], [short], "the text of --held-out gives .* fewer than one sequence of 32: give more text"),
    ):
        with pytest.raises(MerinoError, match=message):
            train(ARCH, data, tmp_path / "out", recipe=QUICK, held_out=held_out)
    some = write_stories(tmp_path / "some.txt", range(8))
    long = ARCH.model_copy(update={"context": 256})
    with pytest.raises(MerinoError, match="the end of --data, gives .* or one with --held-out"):
        train(long, [some], tmp_path / "out", recipe=QUICK)
    assert not (tmp_path / "out").exists()
    train(long, [some], tmp_path / "out", recipe=QUICK, held_out=[text])  # the remedy


def test_text_too_small_for_the_vocabulary_says_what_it_gives(text, tmp_path):
    with pytest.raises(MerinoError, match=r"with --vocab (\d+) or fewer") as refusal:
        train(ARCH.model_copy(update={"vocab": 50257}), [text], tmp_path / "out", recipe=QUICK)
    most = int(str(refusal.value).split("--vocab ")[1].split()[0])
    assert not (tmp_path / "out").exists()
    train(ARCH.model_copy(update={"vocab": most}), [text], tmp_path / "out", recipe=Recipe(steps=1, batch=1))


def test_words_are_bounded_where_a_bpe_is_trained():
    """One word of 200 kB: without the bound entries double in length, and time grows with the square of the text's."""
    tokenizer = train_tokenizer(["ab" * 100_000], 270)
    assert max(map(len, tokenizer.get_vocab())) <= LONGEST_WORD_BYTES
    spelled = "ab" * 3000
    assert tokenizer.decode(tokenizer.encode(spelled).ids) == spelled


def test_threads_are_torchs(text, tmp_path):
    before = torch.get_num_threads()
    try:
        train(ARCH, [text], tmp_path / "out", recipe=Recipe(steps=1, batch=1, threads=before + 1))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_run_that_memory_does_not_suffice_for_is_refused_with_the_figures(text, tmp_path, monkeypatch):
    """The batch that the refusal names fits, and one more does not."""
    large = Architecture(blocks=[{"width": 512, "ffn_ratio": 2.0, "depth": 8}], vocab=300, context=1024)
    huge = Recipe(batch=1_000_000)
    with pytest.raises(MerinoError, match=r"about .* GB: .*GB are available.*--set ignore_memory=true"):
        train(large, [text], tmp_path / "out", recipe=huge)
    assert not (tmp_path / "out").exists()
    there = available_bytes()
    fitting = sum(training_need(large, Recipe(batch=batch)) <= there for batch in range(1, 200))
    monkeypatch.setattr(resources, "available_bytes", lambda: there)
    with pytest.raises(MerinoError, match=f"--batch {fitting} fits"):
        check_memory(large, huge)


def test_memory_may_be_ignored(text, tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "available_bytes", lambda: 1 << 20)
    with pytest.raises(MerinoError, match="Not even --batch 1 fits"):
        train(ARCH, [text], tmp_path / "out", recipe=QUICK)
    ignoring = QUICK.model_copy(update={"ignore_memory": True})
    train(ARCH, [text], tmp_path / "out", recipe=ignoring)
    assert "1 MB are available" in check_memory(ARCH, ignoring)


# (block, vocabulary, context, batch, bf16); what counts most
MEASURED_RUNS = [
    ((64, 1.0, 2), 20000, 256, 4, False),  # logits
    ((64, 4.0, 8), 300, 512, 8, False),  # activations
    ((512, 1.0, 8), 300, 32, 1, False),  # weights and moments
    ((256, 2.0, 6), 4096, 256, 8, True),  # all of them, in bfloat16
]
# A process per run, since a peak never falls; forked, since torch takes seconds to load.
MEASURED = """
import json, os, sys, tempfile
from pathlib import Path
import psutil, torch
from transformers import Trainer
from merino_edge.families.designed import Architecture
from merino_edge.families.hugging_face import build_model
from merino_edge.training.loop import training_arguments
from merino_edge.training.recipe import Recipe
from merino_edge.training.resources import available_bytes, check_memory, training_need
from merino_runtime.io.board import peak_rss_mb
for arch, batch, bf16 in json.loads(sys.argv[1]):
    if os.fork():
        assert os.wait()[1] == 0
        continue
    arch = Architecture(**arch)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, arch.vocab, (8, arch.context))]
    before = psutil.Process().memory_info().rss
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(Recipe(steps=2, batch=batch, bf16=bf16), Path(folder), batch)
        Trainer(model=build_model(arch), args=arguments, train_dataset=rows, eval_dataset=rows).train()
    print("peak", int(peak_rss_mb() * 2**20 - before), flush=True)
    os._exit(0)
"""


@pytest.mark.nightly
@pytest.mark.slow
def test_the_estimate_of_memory_is_within_a_quarter_of_the_measured_peak():
    runs = []
    for (width, ffn_ratio, depth), vocab, context, batch, bf16 in MEASURED_RUNS:
        blocks = [{"width": width, "ffn_ratio": ffn_ratio, "depth": depth}]
        runs.append((Architecture(blocks=blocks, vocab=vocab, head_size=32, context=context), batch, bf16))
    requested = json.dumps([(arch.model_dump(mode="json"), batch, bf16) for arch, batch, bf16 in runs])
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, requested], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peaks = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak ")]
    estimates = [training_need(arch, Recipe(batch=batch, bf16=bf16)) for arch, batch, bf16 in runs]
    assert estimates == [pytest.approx(peak, rel=0.25) for peak in peaks]


STARVED = """
import resource, sys
from pathlib import Path
import psutil
from merino_edge.cli.app import main
import merino_edge.training.train
held = psutil.Process().memory_info().vms + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (held, held))
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.nightly
def test_memory_that_runs_out_all_the_same_is_a_message_with_the_figures(tmp_path):
    (tmp_path / "tiny.json").write_text(ARCH.model_dump_json())
    text = write_stories(tmp_path / "many.txt", range(600))
    arguments = ["train", "tiny.json", "--data", text, "--batch", "1000", "--steps", "3", "-o", "out"]
    done = subprocess.run(
        [sys.executable, "-c", STARVED, *arguments, "--set", "threads=1"], capture_output=True, text=True, check=False,
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "out of memory in training with --batch 1000" in last and "has held up to" in last and "available" in last
