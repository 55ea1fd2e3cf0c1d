"""What a training run needs and how it is refused: memory, text, paths; and what it says while it runs."""

import json
import os
import re
import subprocess
import sys

import psutil
import pytest
import torch
from sample_models import ARCH, story, write_stories
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from merino_edge.export.source import load_source
from merino_edge.families.designed import Architecture
from merino_edge.text.tokenizer import LONGEST_WORD_BYTES, train_tokenizer
from merino_edge.training import resources
from merino_edge.training.recipe import Recipe
from merino_edge.training.resources import available_bytes, check_memory, training_need
from merino_edge.training.train import train
from merino_runtime.errors import MerinoError

RECIPE = Recipe(steps=8, batch=2)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_stories(tmp_path_factory.mktemp("data") / "stories.txt")


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """(folder, lines it said, progress as (done, total, text))"""
    out, output, progress = tmp_path_factory.mktemp("trained") / "checkpoint", [], []
    train(ARCH, [text], out, recipe=RECIPE, name="tiny", say=output.append, progress=lambda *at: progress.append(at))
    return out, output, progress


def test_time_and_memory_are_said_after_a_few_steps_and_progress_is_shown(trained):
    _, output, progress = trained
    timed = [line for line in output if "s per step" in line]
    assert len(timed) == 1 and "to go" in timed[0] and "peak memory" in timed[0]
    assert [done for done, _, _ in progress] == list(range(1, 9)) and {total for _, total, _ in progress} == {8}
    assert all("loss" in what for _, _, what in progress)


def test_a_bundle_has_the_name_of_what_was_trained(trained):
    assert load_source(str(trained[0])).name == "tiny"


def test_the_tokenizer_can_pad(trained):
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    result = tokenizer(["the miller", "the miller counts flour."], padding=True)
    first, second = result["input_ids"]
    assert len(first) == len(second) and tokenizer.pad_token_id == json.loads(
        (trained[0] / "config.json").read_text()
    )["pad_token_id"]  # fmt: skip


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
        [sys.executable, "-c", BY_TRANSFORMERS_ALONE, trained[0]], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path)}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == load_source(str(trained[0])).model.num_parameters()


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
        ([*good, "--seed", "-1", *rest], "--seed -1"),
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
            train(ARCH, data, tmp_path / "out", recipe=RECIPE, held_out=held_out)
    some = write_stories(tmp_path / "some.txt", range(8))
    long = ARCH.model_copy(update={"context": 256})
    with pytest.raises(MerinoError, match="the last 2 % of --data, gives .* or one with --held-out"):
        train(long, [some], tmp_path / "out", recipe=RECIPE)
    assert not (tmp_path / "out").exists()
    train(long, [some], tmp_path / "out", recipe=RECIPE, held_out=[text])  # the remedy


def test_text_too_small_for_the_vocabulary_says_what_it_gives(text, tmp_path):
    with pytest.raises(MerinoError, match=r"design with --vocab (\d+) or fewer") as refusal:
        train(ARCH.model_copy(update={"vocab": 50257}), [text], tmp_path / "out", recipe=RECIPE)
    most = int(str(refusal.value).split("--vocab ")[1].split()[0])
    assert not (tmp_path / "out").exists()
    train(ARCH.model_copy(update={"vocab": most}), [text], tmp_path / "out", recipe=Recipe(steps=1, batch=1))


def test_words_are_bounded_where_a_bpe_is_trained():
    """One word of 200 kB: without the bound entries double in length, and time grows with the square of the text's."""
    tokenizer = train_tokenizer(["ab" * 100_000], 270)
    assert max(map(len, tokenizer.get_vocab())) <= LONGEST_WORD_BYTES
    spelled = "ab" * 3000
    assert tokenizer.decode(tokenizer.encode(spelled).ids) == spelled


def test_the_bound_changes_nothing_where_no_word_is_so_long(monkeypatch):
    documents = [story(seed) for seed in range(20)]
    bounded = train_tokenizer(documents, 300).to_str()
    monkeypatch.setattr("merino_edge.text.tokenizer.LONGEST_WORD_BYTES", 10**9)
    assert train_tokenizer(documents, 300).to_str() == bounded
    assert "FixedLength" not in bounded  # the board's tokenizers may not know it
    assert Tokenizer.from_str(bounded).get_vocab_size() == 300


def test_threads_are_torchs(text, tmp_path):
    before = torch.get_num_threads()
    try:
        train(ARCH, [text], tmp_path / "out", recipe=Recipe(steps=1, batch=1), threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_run_that_memory_does_not_suffice_for_is_refused_with_the_figures(text, tmp_path):
    """The batch that the refusal names fits, and one more does not."""
    large = Architecture(blocks=[{"width": 512, "ffn_ratio": 2.0, "depth": 8}], vocab=50257, context=1024)
    huge = Recipe(batch=1_000_000)
    with pytest.raises(MerinoError, match=r"about .* GB: .*GB are available.*--ignore-memory"):
        train(large, [text], tmp_path / "out", recipe=huge)
    assert not (tmp_path / "out").exists()
    there = available_bytes()
    fitting = sum(training_need(large, Recipe(batch=batch)) <= there for batch in range(1, 200))
    assert resources.largest_batch(large, huge, there) == f"--batch {fitting} fits"


def test_memory_may_be_ignored(text, tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "available_bytes", lambda: 1 << 20)
    with pytest.raises(MerinoError, match="Not even --batch 1 fits"):
        train(ARCH, [text], tmp_path / "out", recipe=RECIPE)
    train(ARCH, [text], tmp_path / "out", recipe=RECIPE, ignore_memory=True)
    output = check_memory(ARCH, RECIPE, ignore=True)
    assert "1 MB are available" in output
    figures = re.findall(r"([\d.]+) ([GM])B", output)[:3]
    total, held, need = (float(figure) * (1024 if unit == "G" else 1) for figure, unit in figures)
    rounding_mb = 103 if "GB" in output else 1  # figures from 1 GB on have one digit after the point
    assert abs(total - held - need) <= rounding_mb
    assert 0.9 < held / (psutil.Process().memory_info().rss / 2**20) < 1.1


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
        arguments = training_arguments(Recipe(steps=2, batch=batch, bf16=bf16), Path(folder))
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
        [sys.executable, "-c", STARVED, *arguments, "--threads", "1"], capture_output=True, text=True, check=False,
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "out of memory in training with --batch 1000" in last and "has held up to" in last and "available" in last
