"""Makes the model of a job: data, tokenizer, design, training, export, evaluation, package. Each step is kept in the
output folder, so that a run that was stopped goes on."""

import json
import math
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from merino_edge import embedded
from merino_edge.calibration.board import board
from merino_edge.design.budgets import predictable
from merino_edge.jobs.data import fitted, records, test_rows
from merino_edge.jobs.folder import Job
from merino_edge.storage.atomic import write_text
from merino_edge.text.documents import read_json_lines
from merino_edge.training.recipe import Recipe, new_recipe
from merino_runtime.errors import MerinoError
from merino_runtime.io.json_file import read_json
from merino_runtime.job import JOB, REFUSE, SCHEMA, JobModel, open_job

TRAIN, TEST, CALIBRATION, TOKENIZER = "train.jsonl", "test.jsonl", "calibrate.txt", "tokenizer.json"
DESIGN, CHECKPOINT, BUNDLE, RESULT, STATE = "design.json", "checkpoint", "bundle", "evaluation.json", "job.json"
HOUSE = Path(embedded.__file__).parent / "house"  # the model that a job begins from by default
WORDS = r"'s ?|\p{L}+ ?|\p{N} ?|[^\s\p{L}\p{N}]+ ?|\s"  # with the space behind them: names are copied
PROMPT_WEIGHT = 0.3  # of prompt tokens in the loss: they are made, and teach the names' tokens
CALIBRATED = 500  # samples
COMPILED = 10_000  # steps for which compiling pays
BEGUN_RATE = 1e-3  # peak learning rate of a job that begins from a trained model
Say = Callable[[str], None]


def make(job: Job, out: Path, say: Say, progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Write all steps that `out` does not have -> the evaluation. Raises MerinoError if `out` is of another job, or of
    this one before its files were changed."""
    if job.folder.resolve() in Path(os.path.realpath(out / STATE)).parents:
        raise MerinoError(f"-o {out} is in the job's folder, whose files make the job: choose another -o")
    begun, why = beginning(job)
    if not begun and not job.settings.decoder.architecture:
        predictable(job.settings.decoder.budget, board(job.settings.decoder.device))
    recipe_of(job, job.settings.decoder.context, begun is not None)
    check_state(job, out)
    say(f"begins from {f'the model {begun}' if begun else f'random weights: {why}'}")
    steps: list[tuple[str, str, Callable[[], None]]] = [
        ("tokenizer", TOKENIZER, lambda: write_tokenizer(job, out, begun)),
        ("data", TEST, lambda: write_data(job, out)),
        ("design", DESIGN, lambda: write_design(job, out, begun)),
        ("training", f"{CHECKPOINT}/training.json", lambda: train(job, out, begun, say, progress)),
        ("export", f"{BUNDLE}/{JOB}", lambda: export(job, out, say)),
        ("evaluation", RESULT, lambda: evaluate(job, out)),
        ("package", f"{job.settings.name}.merino", lambda: package(job, out, say)),
    ]
    for number, (name, path, run) in enumerate(steps, 1):
        done = (out / path).exists()
        say(f"step {number} of {len(steps)}, {name}: {f'{out / path} is there' if done else '...'}")
        if not done:
            start = time.perf_counter()
            run()
            say(f"  {time.perf_counter() - start:.1f} s")
    result: dict[str, Any] = read_json(str(out / RESULT), "Remove it and run this again.")
    return result


def check_state(job: Job, out: Path) -> None:
    path = out / STATE
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise MerinoError(f"{out} is not empty: choose another -o")
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"sha256": job.sha256}) + "\n")
    elif read_json(str(path), f"Remove {out}, or choose another -o.") != {"sha256": job.sha256}:
        raise MerinoError(f"{out} was made of other files than {job.folder} has now: remove it, or choose another -o")


def beginning(job: Job) -> tuple[Path | None, str]:
    """Return (the model whose weights, tokenizer and architecture the job starts from, or None; the reason for None).
    Raises MerinoError if `begin` names no model."""
    from merino_edge.bundles.source_name import describe
    from merino_edge.design.design_file import read_plan

    begin, decoder = job.settings.training.begin, job.settings.decoder
    if not begin:
        return None, "training.begin is empty"
    folder = HOUSE if begin == "house" else job.folder / begin
    if not (folder / TOKENIZER).is_file():
        raise MerinoError(
            f"training.begin = {begin!r}: {folder} has no {TOKENIZER}. Give `house`, or a bundle or checkpoint by its"
            " path from the job's folder, or nothing"
        )
    geometry = describe(str(folder)).geometry
    given = decoder.model_fields_set
    if "architecture" in given and read_plan(job.folder / decoder.architecture) != geometry:
        return None, f"decoder.architecture is not that of {begin}"
    if "budget" in given:
        return None, f"decoder.budget is for a search, and {begin} has its architecture; leave it out to begin from it"
    for name, own in (("context", geometry.context), ("vocab", geometry.vocab)):
        if name in given and getattr(decoder, name) != own:
            return None, f"decoder.{name} is {getattr(decoder, name)}, and {begin} has {own}"
    return folder, ""


def write_data(job: Job, out: Path) -> None:
    from merino_edge.text.tokenizer import load_tokenizer

    data, seed = job.settings.data, job.settings.training.seed
    tokenizer, context = load_tokenizer(out / TOKENIZER), job.settings.decoder.context

    def length(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    made = (fitted(record, length, context) for record in records(job, data.samples, seed))
    trained = [record for record in made if record]
    write_lines(out / TRAIN, trained)
    write_text(out / CALIBRATION, "<|endoftext|>".join(map(text_of, trained[:CALIBRATED])))
    write_lines(out / TEST, test_rows(job, data.test, seed + 1))


def text_of(record: dict[str, Any]) -> str:
    """Return the turns of a training sample as one text."""
    return "".join(map("".join, zip(record["prompt"], record["completion"], strict=True)))


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_tokenizer(job: Job, out: Path, begun: Path | None) -> None:
    """Write the tokenizer of the begun model, or one of other samples than the training's, a seventh as many."""
    from merino_edge.text.tokenizer import largest_tokenizer, load_tokenizer

    if begun and not job.settings.training.own_tokenizer:
        write_text(out / TOKENIZER, (begun / TOKENIZER).read_text(encoding="utf-8"))
        return
    read = records(job, math.ceil(job.settings.data.samples / 7), job.settings.training.seed + 2)
    vocab = load_tokenizer(begun / TOKENIZER).get_vocab_size() if begun else job.settings.decoder.vocab
    tokenizer, _ = largest_tokenizer(list(map(text_of, read)), vocab, WORDS)
    if begun and (size := tokenizer.get_vocab_size()) != vocab:
        raise MerinoError(
            f"training.own_tokenizer: the samples give {size} tokens, and {begun} has {vocab}: give more samples, or"
            " set it to false"
        )
    write_text(out / TOKENIZER, tokenizer.to_str())


def write_design(job: Job, out: Path, begun: Path | None) -> None:
    from merino_edge.bundles.source_name import describe
    from merino_edge.design.budgets import with_board_defaults
    from merino_edge.design.designer import design
    from merino_edge.text.tokenizer import load_tokenizer

    decoder = job.settings.decoder
    if begun:
        write_text(out / DESIGN, json.dumps(describe(str(begun)).geometry.model_dump(mode="json"), indent=1) + "\n")
        return
    if decoder.architecture:
        write_text(out / DESIGN, (job.folder / decoder.architecture).read_text(encoding="utf-8"))
        return
    profile = board(decoder.device)
    made = design(
        profile, with_board_defaults(decoder.budget, profile), context=decoder.context, prompt=decoder.context // 2,
        vocabs=[load_tokenizer(out / TOKENIZER).get_vocab_size()], precisions=[decoder.precision], kvs=[None],
    )  # fmt: skip
    write_text(out / DESIGN, made.to_json())


def train(job: Job, out: Path, begun: Path | None, say: Say, progress: Callable[[int, int, str], None]) -> None:
    from merino_edge.design.design_file import Design, read_plan
    from merino_edge.export.source import load_source
    from merino_edge.families.hugging_face import Checkpoint
    from merino_edge.text.tokenizer import load_tokenizer
    from merino_edge.training.checkpoint import saved_states
    from merino_edge.training.train import train as run

    made = read_plan(out / DESIGN)
    design = made if isinstance(made, Design) else None
    architecture = made.architecture if isinstance(made, Design) else made

    def say_without_resume(line: str) -> None:  # `job make` resumes without an option
        say(line.replace(" and --resume", "").replace("--resume continues", "the same command continues"))

    pretrained = None
    if begun:
        source = load_source(str(begun), say=say)
        if job.settings.training.own_tokenizer:
            respell(source.model, load_tokenizer(begun / TOKENIZER), load_tokenizer(out / TOKENIZER))
        pretrained = Checkpoint(source.arch, source.model, source.stop_ids, out / TOKENIZER, source.chat)
    run(
        architecture, [out / TRAIN], out / CHECKPOINT, recipe=recipe_of(job, architecture.context, begun is not None),
        name=job.settings.name, design=design, pretrained=pretrained, tokenizer_file=out / TOKENIZER,
        resume=bool(saved_states(out / CHECKPOINT / "trainer")),
        say=say_without_resume, progress=progress,
    )  # fmt: skip


def respell(model: Any, old: Any, new: Any) -> None:
    """Give each token of a new tokenizer the mean embedding of the old tokens that spell it (Gee et al., EMNLP 2022).
    The two have equally many tokens."""
    import torch

    weight = model.get_input_embeddings().weight.data
    same = [old.token_to_id(new.id_to_token(token)) for token in range(len(weight))]
    rows = [[one] if one is not None else old.encode(new.decode([token])).ids for token, one in enumerate(same)]
    weight.copy_(torch.stack([weight[ids].mean(0) for ids in rows]))


def recipe_of(job: Job, context: int, begun: bool) -> Recipe:
    """Raises MerinoError for a setting that `train` does not have, or a value that it does not allow."""
    training = job.settings.training
    if unknown := training.settings.keys() - Recipe.model_fields.keys():
        allowed = ", ".join(sorted(Recipe.model_fields))
        raise MerinoError(f"{job.folder}/job.toml: training.settings has {min(unknown)}: choose from {allowed}")
    options = {"steps": training.steps, "batch": training.batch, "seed": training.seed, "prompt_weight": PROMPT_WEIGHT,
               "evaluations": 5, "length": min(context, job.settings.decoder.context),
               "compile": training.steps >= COMPILED and bool(shutil.which("g++")),
               **({"learning_rate": BEGUN_RATE} if begun else {}), **training.settings}  # fmt: skip
    return new_recipe(options, {}, fine_tuned=False, context=context, bf16=False)


def export(job: Job, out: Path, say: Say) -> None:
    """Export the checkpoint, choose the threshold, and write both into the bundle."""
    from merino_edge.bundles.description import write_description
    from merino_edge.export.export import export as export_source
    from merino_edge.export.request import ExportRequest
    from merino_edge.export.source import load_source
    from merino_runtime.api import open_model
    from merino_runtime.bundle import BundleFile, load_bundle, sha256_of

    precision = job.settings.decoder.precision
    calibration = out / CALIBRATION if precision in ("int8", "int4") else None
    folder = out / BUNDLE
    request = ExportRequest(precision=precision, calibration=calibration)
    export_source(load_source(str(out / CHECKPOINT), say=say), folder, request, last_use=True, say=say)
    half, _ = halves(out / TEST)
    with open_model(str(folder), say=say) as model:
        judged = list(judged_rows(job, JobModel(model, job.tools, 0.0), half))
    threshold = best_threshold(judged, job.settings.wrong_costs)
    content = {"schema": SCHEMA, "name": job.settings.name, "language": job.settings.language, "tools": job.tools,
               "threshold": threshold}  # fmt: skip
    path = folder / JOB
    write_text(path, json.dumps(content, indent=1) + "\n")
    bundle = load_bundle(str(folder), verify=False)
    listed = {file.path: file for file in bundle.files}
    listed[JOB] = BundleFile(JOB, path.stat().st_size, sha256_of(str(path)))
    write_description(bundle._replace(files=tuple(listed[name] for name in sorted(listed))))


def halves(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the sentences by which the threshold is chosen, and those by which it is judged."""
    rows = [row for _, row in read_json_lines(path, str(path))]
    random.Random(0).shuffle(rows)
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


class Judged(NamedTuple):
    """`right`: whether the call is the expected one. `acts`: whether it is a call and no refusal."""

    family: str
    right: bool
    acts: bool
    probability: float


def judge(model: JobModel, rows: Sequence[dict[str, Any]]) -> Iterator[Judged]:
    for row in rows:
        answer = model.answer(row["items"], row["sentence"])
        got = {"name": answer.name, "arguments": answer.arguments}
        acts = answer.name != REFUSE
        yield Judged(row.get("family", "given"), got == row["call"], acts, answer.probability)


def judged_rows(job: Job, model: JobModel, rows: Sequence[dict[str, Any]]) -> Iterator[Judged]:
    """Yield the answers as the job's program judges them, or by the expected calls."""
    return (Judged(*found) for found in job.program.judge(model.model, rows)) if job.program else judge(model, rows)


def best_threshold(judged: Sequence[Judged], wrong_costs: float) -> float:
    """Return the least probability of a call that is carried out, by which wrong calls and questions cost least."""
    calls = [one for one in judged if one.acts]

    def cost(threshold: float) -> float:
        return sum((one.probability < threshold) or (not one.right) * wrong_costs for one in calls)

    return min((0.0, *sorted(math.ceil(one.probability * 1e4) / 1e4 for one in calls)), key=cost)


def counts(judged: Iterable[Judged], threshold: float) -> dict[str, Counter[str]]:
    """Return by family, and for `all`: right, asked (the call right or wrong), refused, wrong."""
    result: dict[str, Counter[str]] = {"all": Counter()}
    for one in judged:
        asked = one.acts and one.probability < threshold
        kind = ("asked, right" if one.right else "asked, wrong") if asked else (
            "right" if one.right else "wrong call" if one.acts else "refused wrongly")  # fmt: skip
        for name in ("all", one.family):
            result.setdefault(name, Counter())[kind] += 1
    return result


def evaluate(job: Job, out: Path) -> None:
    model = open_job(str(out / BUNDLE))
    with model.model:
        result = counts(judged_rows(job, model, halves(out / TEST)[1]), model.threshold)
    new = sorted({*job.settings.data.held_out} & result.keys())
    content = {"threshold": model.threshold, "held out": new, "counts": result}
    write_text(out / RESULT, json.dumps(content, indent=1) + "\n")


def package(job: Job, out: Path, say: Say) -> None:
    from merino_edge.delivery.pack import pack

    pack([out / BUNDLE], out / f"{job.settings.name}.merino", say=say)
