"""Does a score order small decoders as training does? A committed list of decoders, trained one after another.

    python bench/experiments/shape_training.py plan
    python bench/experiments/shape_training.py pilot --data TITLE=FILE... --held-out TITLE=FILE...
    python bench/experiments/shape_training.py run --rate RATE --data TITLE=FILE... --held-out TITLE=FILE...
    python bench/experiments/shape_training.py analyze [-o RECORD] [--plot SVG]

The question and what would change the default were written down before the first run:
docs/decisions/shape-training.md. `plan` writes the list, `shape_designs.json`, from a seed. `run` takes half a day of
one thread, and several processes share its runs. It may be killed at any time: the same command goes on, within a run
from at most a minute before. A run ends as a line of `runs.jsonl` in --folder. A new folder begins with the runs of
the record, where texts, tokenizer, designs and recipe are its own.
"""

import argparse
import hashlib
import io
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from shape_analysis import against, analyze, layers, picture, table
from shape_designs import plan
from write_record import commits_of, with_this, write_record

from merino_edge.families.designed import Architecture
from merino_edge.families.hugging_face import build_model
from merino_edge.storage.atomic import cache_folder, write_text
from merino_edge.text.documents import read_texts
from merino_edge.text.rows import PackedTokens, spread_rows
from merino_edge.text.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer
from merino_edge.training.loop import draw_matrices
from merino_runtime.errors import MerinoError
from merino_runtime.io.outputs import open_output

LIST = Path(__file__).with_name("shape_designs.json")
RECORD = Path(__file__).parents[1] / "results" / "shape-training-x86-2cores.json"
SEED = 0  # of the list
SAVE_SECONDS = 60
PILOT_RATES, PILOT_SHARE = (2e-3, 4e-3, 8e-3), 0.1
PILOT = "a-d02-0", "a-d16-0", "a-d04-0"
RUNS, PILOTS, TOKENIZER, IDENTITY = "runs.jsonl", "pilot.jsonl", "tokenizer.json", "identity.json"


class Recipe(NamedTuple):
    """`rate`: AdamW's for embedding, norms, and matrices of `rate_width` inputs in `rate_layers` layers; for others it
    goes by 1 / inputs and by 1 / sqrt(layers)."""

    tokens: int = 2_560_000  # 20 for each weight of set a
    batch: int = 8
    rate: float = 4e-3  # the pilot's and `run`'s own in its place
    rate_width: int = 64
    rate_layers: int = 4
    warmup: int = 50  # steps; then the rate is constant
    weight_decay: float = 0.1
    embedding_std: float = 0.06
    held_out_tokens: int = 40_960  # of each text
    shares: tuple[float, ...] = (0.25, 0.5, 1.0)  # of the tokens, after which the loss is taken


class Material(NamedTuple):
    rows: torch.Tensor  # [rows, context] of token ids
    held_out: dict[str, tuple[torch.Tensor, float]]  # by title: rows, bytes per token
    identity: dict


# --- text


def titled(words, option):
    """{title: its files} of TITLE=FILE..."""
    files = {}
    for word in words:
        title, equals, path = word.partition("=")
        if not equals:
            raise MerinoError(f"{option} {word} names no title: give it as TITLE=FILE")
        files.setdefault(title, []).append(Path(path))
    return files


def prepare(data, held_out, folder, listed, recipe):
    """The texts as token ids, by a tokenizer trained on `data` once. Raises MerinoError where `folder` holds runs of
    another experiment."""
    sizes = Architecture.model_validate(listed["designs"][0]["architecture"])
    texts = {title: read_texts(paths) for title, paths in titled(data, "--data").items()}
    documents = [document for documents_of, _ in texts.values() for document in documents_of]
    if not (folder / TOKENIZER).exists():
        write_text(folder / TOKENIZER, train_tokenizer(documents, sizes.vocab).to_str())
    tokenizer = load_tokenizer(folder / TOKENIZER)
    judged = {}
    for title, (path, *more) in titled(held_out, "--held-out").items():
        if more:
            raise MerinoError(f"--held-out {title} has two files: give one for each title")
        rows = spread_rows(path, tokenizer, sizes.context, recipe.held_out_tokens, "--held-out")
        read = read_texts([path])[0]
        ids = sum(len(each.ids) for each in tokenizer.encode_batch(read))
        judged[title] = rows, sum(len(document.encode()) for document in read) / ids
        texts[f"held out: {title}"] = read_texts([path])
    identity = {
        "texts": {title: [file.sha256 for file in files] for title, (_, files) in texts.items()},
        "tokenizer": tokenizer_hash(tokenizer),
        "designs": hashlib.sha256(json.dumps(listed["designs"]).encode()).hexdigest(),
    }  # fmt: skip
    return Material(PackedTokens(documents, tokenizer, sizes.context).rows, judged, identity)


def check_identity(identity, folder):
    text = json.dumps(identity, indent=1, sort_keys=True) + "\n"
    if not (folder / IDENTITY).exists():
        write_text(folder / IDENTITY, text)
    elif (folder / IDENTITY).read_text() != text:
        kept = json.loads((folder / IDENTITY).read_text())
        parts = ", ".join(key for key in identity if json.loads(text)[key] != kept.get(key))
        raise MerinoError(f"{folder} holds runs with other {parts}: give the same ones, or choose another --folder")


def begin_with(record, folder):
    """The record's runs in a folder that holds none, where they are of the folder's experiment."""
    if record.exists() and not (folder / RUNS).exists():
        kept = json.loads(record.read_text())
        if kept["identity"] == json.loads((folder / IDENTITY).read_text()):
            write_rows(folder / RUNS, kept["runs"])


# --- one run


def initial(arch, seed, recipe):
    torch.manual_seed(seed)
    model = build_model(arch, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    draw_matrices(model)
    torch.nn.init.normal_(model.embed_tokens.weight, std=recipe.embedding_std)
    return model.train()


def optimizer(model, recipe):
    deep = (recipe.rate_layers / layers(model.config.architecture)) ** 0.5

    def group(name, weight):
        hidden = weight.ndim == 2 and name != "embed_tokens.weight"
        rate = recipe.rate * (deep * recipe.rate_width / weight.shape[1] if hidden else 1)
        return {"params": [weight], "lr": rate, "peak": rate, "weight_decay": recipe.weight_decay * (weight.ndim == 2)}

    groups = [group(name, weight) for name, weight in model.named_parameters()]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-10, fused=True)


def batch_of(rows, step, batch, seed):
    """The rows of a step, which seed and step alone decide: each pass has an order of its own. [batch, context]"""
    passes = len(rows) // batch
    order = np.random.default_rng([seed, step // passes]).permutation(len(rows))
    at = step % passes * batch
    return rows[order[at : at + batch]].long()


def loss_of(model, ids):
    """Mean cross entropy of all tokens but each row's first, in nats."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(model, held_out):
    """By title."""
    model.eval()
    by_title = {
        title: float(np.mean([float(loss_of(model, part.long())) for part in rows.split(16)])) / math.log(2) / per_token
        for title, (rows, per_token) in held_out.items()
    }  # fmt: skip
    model.train()
    return by_title


def train(arch, seed, material, recipe, state_file, steps=None):
    """{share of the tokens: {title: bits per byte}}, and seconds of CPU.

    The state in `state_file` is gone on from, saved each minute, and removed at the end. `steps`: fewer than the
    recipe's, whose last one is then judged too.
    """
    whole = recipe.tokens // (recipe.batch * arch.context)
    steps = steps or whole
    judged = {round(share * whole): f"{share:g}" for share in recipe.shares} | {steps: f"{steps / whole:g}"}
    model = initial(arch, seed, recipe)
    adam = optimizer(model, recipe)
    step, losses, before = 0, {}, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        adam.load_state_dict(state["adam"])
        step, losses, before = state["step"], state["losses"], state["seconds"]
    cpu, saved = time.process_time(), time.monotonic()
    while step < steps:
        for group in adam.param_groups:
            group["lr"] = group["peak"] * min(1.0, (step + 1) / recipe.warmup)
        loss = loss_of(model, batch_of(material.rows, step, recipe.batch, seed))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        step += 1
        if step in judged:
            losses[judged[step]] = bits_per_byte(model, material.held_out)
        if time.monotonic() - saved > SAVE_SECONDS:
            save({"model": model.state_dict(), "adam": adam.state_dict(), "step": step, "losses": losses,
                  "seconds": before + time.process_time() - cpu}, state_file)  # fmt: skip
            saved = time.monotonic()
    state_file.unlink(missing_ok=True)
    return losses, before + time.process_time() - cpu


def save(state, path):
    made = io.BytesIO()
    torch.save(state, made)
    with open_output(str(path), sync=False) as file:
        file.write(made.getvalue())


# --- all runs


def finished(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_line(path, row):
    """The file with one line more, or as it was."""
    with FileLock(path.with_suffix(".lock")):
        write_rows(path, [*finished(path), row])


def write_rows(path, rows):
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def run_designs(runs, designs, material, recipe, folder, file, share=1.0):
    def run(name, seed, rate, state):
        arch = Architecture.model_validate(designs[name]["architecture"])
        steps = round(share * recipe.tokens) // (recipe.batch * arch.context)
        return train(arch, seed, material, recipe._replace(rate=rate), state, steps)

    run_all(runs, run, folder, file)


def run_all(runs, run, folder, file):
    """`run(name, seed, rate, state file)` for each that `file` does not hold yet and no other process is at, in this
    order. It returns {share of the tokens: {title: bits per byte}}, and seconds of CPU."""
    for number, (name, seed, rate) in enumerate(runs, 1):
        state = folder / f"{name}-{seed}-{rate:g}.pt"
        try:
            with FileLock(state.with_suffix(".lock"), timeout=0):
                done = finished(folder / file)
                if any((row["name"], row["seed"], row["rate"]) == (name, seed, rate) for row in done):
                    continue
                losses, seconds = run(name, seed, rate, state)
                add_line(folder / file, {"name": name, "seed": seed, "rate": rate, "bits_per_byte": losses,
                                         "cpu_seconds": round(seconds, 1), "commit": with_this([])[0]})  # fmt: skip
        except Timeout:
            continue
        last = losses[max(losses, key=float)]
        print(f"{time.strftime('%H:%M')} {number}/{len(runs)} {name} seed {seed} rate {rate:g}:"
              f" {sum(last.values()) / len(last):.4f} bits per byte, {seconds:.0f} s of CPU", flush=True)  # fmt: skip


def lines(listed):
    """JSON, a line for each design and for each run."""
    parts = [f"{json.dumps(key)}: " + ("[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
             if isinstance(value, list) else json.dumps(value)) for key, value in listed.items()]  # fmt: skip
    return "{" + ",\n".join(parts) + "}\n"


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("plan")
    for name in ("pilot", "run", "analyze"):
        command = commands.add_parser(name)
        command.add_argument("--folder", type=Path, default=cache_folder() / "experiments" / "shape-training")
        command.add_argument("--list", type=Path, default=LIST, help="of designs and runs (default: %(default)s)")
        if name == "analyze":
            command.add_argument("-o", type=Path, dest="out")
            command.add_argument("--plot", type=Path)
            continue
        command.add_argument("--data", nargs="+", required=True, metavar="TITLE=FILE")
        command.add_argument("--held-out", nargs="+", required=True, metavar="TITLE=FILE")
        command.add_argument("--threads", type=int, default=1)
        if name == "run":
            command.add_argument("--rate", type=float, required=True, help="the base rate that the pilot chose")
            command.add_argument("--only", nargs="+", help="of these sets: a, b, sharing, kv, width", metavar="SET")
    return parser.parse_args()


def report(listed, folder, out, plot):
    rows = finished(folder / RUNS)
    summary = analyze(listed, rows) if any(each["set"] == "a" for each in listed["designs"]) else against(listed, rows)
    print(json.dumps(summary, indent=1))
    if out:
        write_record(out, {
            "commits": commits_of(rows), "identity": json.loads((folder / IDENTITY).read_text()),
            "summary": summary, "pilot": finished(folder / PILOTS), "rows": table(listed, rows), "runs": rows,
        })  # fmt: skip
    if plot and (drawn := picture(listed, rows)):
        write_text(plot, drawn)


def main():
    options = parsed()
    if options.command == "plan":
        write_text(LIST, lines(plan(SEED)))
        return
    listed, recipe = json.loads(options.list.read_text()), Recipe()
    if options.command == "analyze":
        report(listed, options.folder, options.out, options.plot)
        return
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    designs = {each["name"]: each for each in listed["designs"]}
    with FileLock(options.folder / "material.lock"):
        material = prepare(options.data, options.held_out, options.folder, listed, recipe)
        if options.command == "run":
            recipe = recipe._replace(rate=options.rate)
            material.identity["recipe"] = recipe._asdict()
            check_identity(material.identity, options.folder)
            begin_with(RECORD, options.folder)
    if options.command == "pilot":
        runs = [(name, SEED, rate) for name in PILOT for rate in PILOT_RATES]
        run_designs(runs, designs, material, recipe, options.folder, PILOTS, PILOT_SHARE)
        return
    runs = [(name, seed, recipe.rate) for name, seed in listed["runs"]
            if options.only is None or designs[name]["set"] in options.only]  # fmt: skip
    run_designs(runs, designs, material, recipe, options.folder, RUNS)


if __name__ == "__main__":
    main()
