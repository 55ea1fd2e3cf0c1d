"""Evaluation: bundles in the board's runtime score as lm-eval's own models do, and an interrupted one goes on."""

import json
import math
import subprocess
import sys

import pytest
import torch
from tokenizers import normalizers

from merino_edge.evaluation.models import open_source
from merino_edge.evaluation.perplexity import document_ids, evaluate_text
from merino_edge.evaluation.request_cache import RequestCache, open_cache
from merino_edge.evaluation.run import TaskRequest, evaluate, language_model
from merino_edge.evaluation.tasks import LOCAL_TASKS
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source
from merino_edge.records.evaluation import parse_evaluations, to_json
from merino_edge.text.documents import END_OF_TEXT
from merino_runtime.errors import MerinoError

instance = pytest.importorskip("lm_eval.api.instance").Instance
MILL = "The river runs past the old mill, and the miller counts the sacks of flour in the evening."
ROWS = {
    "hellaswag": {"activity_label": "Milling", "ctx_a": "The miller counts", "ctx_b": "he", "ind": 1, "ctx": "x",
                  "endings": ["sells flour.", "sings [title] a song.", "sleeps.", "runs past the mill."], "label": "3"},
    "winogrande": {"sentence": "The baker paid the miller because _ sold flour.", "option1": "The baker",
                   "option2": "The miller", "answer": "2"},
    "arc_easy": {"question": "What is bread made of?", "answerKey": "B",
                 "choices": {"text": ["sand", "flour", "water alone"], "label": ["A", "B", "C"]}},
    "openbookqa": {"question_stem": "A mill stands at a river for", "answerKey": "A",
                   "choices": {"text": ["its force", "its fish", "its sand", "its sound"], "label": list("ABCD")}},
    "boolq": {"passage": MILL, "question": "is there a mill", "label": 1},
    "cb": {"premise": MILL, "hypothesis": "There is a river", "label": 0},
    "wic": {"word": "runs", "sentence1": "The river runs.", "sentence2": "She runs home.", "start1": 10, "end1": 14,
            "start2": 4, "end2": 8, "label": 0},
    "wsc": {"text": "The miller thanked the baker because he bought flour .", "span1_text": "the baker",
            "span1_index": 4, "span2_index": 6, "span2_text": "he", "label": 1},
    "sglue_rte": {"premise": MILL, "hypothesis": "Flour is counted.", "label": 0},
    "pubmedqa": {"CONTEXTS": [MILL, "Bread was warm."], "QUESTION": "Is bread warm?", "final_decision": "yes"},
    "piqa": {"goal": "Warm the bread", "sol1": "Put it in the oven.", "sol2": "Put it in the river.", "label": 0},
    "lambada_openai": {"text": MILL},
    "wikitext": {"page": " = Mill = \n \n " + MILL + " \n"},
}  # fmt: skip
ROWS["arc_challenge"] = ROWS["arc_easy"]


@pytest.fixture(scope="module")
def bundles(tiny_checkpoint, bundle_dirs, tmp_path_factory):
    """The tiny model by its graph."""
    folder = tmp_path_factory.mktemp("all") / "logits"
    export(load_source(str(tiny_checkpoint)), folder, ExportRequest(all_logits=True))
    return {"default": bundle_dirs["fused"], "all": str(folder), "portable": bundle_dirs["portable"]}


@pytest.fixture(scope="module")
def stock(tiny_checkpoint):
    """lm-eval's `hf` as its command makes it."""
    from lm_eval.models.huggingface import HFLM

    import merino_edge.families.hugging_face  # noqa: F401

    return HFLM(pretrained=str(tiny_checkpoint), dtype="float32", device="cpu", batch_size=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, row in ROWS.items():
        (folder / LOCAL_TASKS[name].file).write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n", "utf-8")
    return folder


def requests_of(kind, *arguments):
    return [instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


@pytest.mark.parametrize("graph", ["default", "all", "portable"])
def test_a_bundle_scores_as_lm_evals_own_model(graph, bundles, stock):
    """Shared beginnings, one-token answers, an empty context, spaces at a seam, requests longer than the context."""
    pairs = [
        *[("The miller counts the", end) for end in (" sacks", " bread", " door of the old mill", " sacks")],
        ("", "The river"), ("The baker ", "buys three"), (MILL * 3, " The end of it"), (MILL * 3, " no"), ("a", MILL),
    ]  # fmt: skip
    with open_source(bundles[graph], print) as model:
        lm = language_model(model)
        requests = requests_of("loglikelihood", *pairs)
        result, expected = (model.loglikelihood(requests, disable_tqdm=True) for model in (lm, stock))
        assert lm.truncated >= 2
        for (own, greedy), (other, also) in zip(result, expected, strict=True):
            assert own == pytest.approx(other, abs=1e-3) and greedy == also
        texts = requests_of("loglikelihood_rolling", (MILL * 3,), ("a",), (MILL,))
        assert lm.loglikelihood_rolling(texts) == pytest.approx(stock.loglikelihood_rolling(texts, True), abs=1e-3)
        prompts = requests_of(
            "generate_until",
            *[(prompt, {"until": until, "max_gen_toks": 12}) for prompt in ("The miller", MILL * 3)
              for until in ([], ["e", "th"], ["\n"])],
        )  # fmt: skip
        assert lm.generate_until(prompts) == stock.generate_until(prompts, True)


def test_a_chat_template_is_written_as_lm_evals_own_model_writes_it(chat_dir):
    with open_source(chat_dir, print) as model:
        lm = language_model(model)
        text = lm.apply_chat_template([{"role": "user", "content": "Who are you?"}])
        assert text.startswith("<|im_start|>") and "Who are you?" in text and text.rstrip().endswith("assistant")
        ids = lm.tok_encode(text)
        assert ids.count(lm.tok_encode("<|im_start|>", add_special_tokens=False)[0]) == text.count("<|im_start|>")


def test_every_task_reads_its_file_and_an_interruption_changes_no_figure(bundles, tiny_checkpoint, data, tmp_path):
    out = tmp_path / "scores.json"
    request = TaskRequest(tuple(ROWS), data)
    sources = [bundles["all"], str(tiny_checkpoint)]
    whole = list(evaluate(sources, request, RequestCache()))
    assert [row.task for row in whole] == 2 * list(ROWS) and all(row.items == row.of_items == 2 for row in whole)

    def interrupts(*progress):
        if progress[-1] == "piqa":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(evaluate(sources, request, open_cache(out), interrupts))
    (tmp_path / "scores.json.partial").open("a").write('["cut')
    kept = open_cache(out)
    before, evaluated_again = len(kept), []
    again = list(evaluate(sources, request, kept, lambda *progress: evaluated_again.append(progress[-1])))
    assert before > 20 and evaluated_again.count("piqa") < 16 and "hellaswag" not in evaluated_again[:1]
    assert [row.metrics for row in again] == [row.metrics for row in whole]
    for own, other in zip(whole, whole[len(ROWS) :], strict=False):
        assert own.main[1].value == pytest.approx(other.main[1].value, rel=1e-4)
    assert parse_evaluations(to_json(whole), out) == whole


@pytest.mark.parametrize(("tasks", "change", "message"), [
    (("helaswag",), None, "near names: hellaswag"),
    (("piqa",), lambda text: text.replace('"sol2"', '"sol"'), "line 1 lacks sol2: give each line goal"),
    (("piqa",), lambda text: text + "{", "line 3, is not JSON"),
    (("piqa",), lambda _: "", "is empty"),
    (("piqa", ""), None, "has an empty name"),
])  # fmt: skip
def test_wrong_tasks_and_data_are_named(tasks, change, message, bundles, data, tmp_path):
    for name in ("piqa",):
        file = LOCAL_TASKS[name].file
        (tmp_path / file).write_text((change or str)((data / file).read_text("utf-8")), "utf-8")
    with pytest.raises(MerinoError, match=message):
        list(evaluate([bundles["all"]], TaskRequest(tasks, tmp_path), RequestCache()))


def test_a_task_of_ones_own_is_scored(bundles, tmp_path):
    """A file in lm-evaluation-harness's form, over a file of one's own."""
    rows = [{"question": "Is ice cold?", "answer": 0}, {"question": "Is fire cold?", "answer": 1}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "cold_things", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path / "cache")},
        "doc_to_text": "{{question}}", "doc_to_target": "answer", "doc_to_choice": ["yes", "no"],
        "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "cold_things.yaml").write_text(json.dumps(task))  # JSON is YAML
    own = f"{tmp_path}/tasks/cold_things.yaml"
    row, = evaluate([bundles["all"]], TaskRequest((own,)), RequestCache())
    assert (row.task, row.items) == ("cold_things", 2)
    for name, data, message in ((tmp_path / "none.yaml", None, "neither a file"), (own, tmp_path, "leave --data out")):
        with pytest.raises(MerinoError, match=message):
            list(evaluate([bundles["all"]], TaskRequest((str(name),), data), RequestCache()))


def test_the_command_writes_a_record_that_report_shows(bundles, data, tmp_path, here):
    out = tmp_path / "scores.json"
    code, printed, _ = here("eval", bundles["all"], "--tasks", "piqa,wikitext", "--data", data, "-o", out)
    assert code == 0 and "wikitext" in printed
    assert [row["task"] for row in json.loads(out.read_text())] == ["piqa", "wikitext"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.json"]
    code, shown, _ = here("report", out)
    assert code == 0
    assert "1 model scored on 2 tasks" in shown and "| piqa | acc\\_norm |" in shown
    assert here("report", out, "-o", tmp_path / "page.html")[0] == 0
    assert "What they know" in (tmp_path / "page.html").read_text()
    code, _, err = here("eval", bundles["all"], "--tasks", "piqa", "--data", data, "--chat-template")
    assert code == 1 and "has no chat template" in err
    assert here("eval", bundles["all"], "--tasks", "piqa", "--data", data, "--limit", 0)[0] == 1
    assert here("eval", bundles["all"], "--tasks", "piqa", "--perplexity", out)[0] == 2


def expected_loss(model, ids, context):
    """Each token from the window that begins by half a context, or from the text's beginning."""
    total, last = 0.0, len(ids) - 1
    for target in range(1, len(ids)):
        steps = max(0, math.ceil((target - context) / (context // 2)))
        start = max(0, min(last, context + steps * (context // 2)) - context)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[start:target]])).logits[0, -1]
        total -= float(torch.log_softmax(logits, -1)[ids[target]])
    return total


def test_perplexity_is_strided_and_has_an_interval_over_documents(bundles, tiny_checkpoint, tmp_path):
    documents = [MILL, "The baker.", MILL * 3, "Bread!", "The miller counts", "sacks of flour"]
    text = tmp_path / "text.txt"
    text.write_text(f"\n{END_OF_TEXT}\n".join(documents))
    rows = list(evaluate_text([*bundles.values(), str(tiny_checkpoint)], text, None, RequestCache()))
    with open_source(str(tiny_checkpoint), print) as model:
        ids = [[0, *document_ids(model, document, 1)] for document in documents]
        assert max(map(len, ids)) > 1.6 * model.context
        losses = [expected_loss(model.source.model, inputs, model.context) for inputs in ids]
    tokens, words, length = (sum(map(count, documents)) for count in (
        lambda document: len(ids[documents.index(document)]) - 1, lambda document: len(document.split()), len
    ))  # fmt: skip
    for row in rows:
        results = {name: metric.value for name, metric in row.metrics.items()}
        assert row.scored_tokens == tokens and row.items == 6
        assert results["perplexity"] == pytest.approx(math.exp(sum(losses) / tokens), rel=1e-4)
        assert results["word_perplexity"] == pytest.approx(math.exp(sum(losses) / words), rel=1e-3)
        assert results["bits_per_byte"] == pytest.approx(sum(losses) / length / math.log(2), rel=1e-4)
        low, high = row.metrics["bits_per_byte"].interval
        assert low < results["bits_per_byte"] < high
    (row,) = evaluate_text([bundles["all"]], text, 2, RequestCache())
    assert row.items == 2 and row.of_items == 6 and row.metrics["perplexity"].interval is None


def test_perplexity_is_measured_without_lm_eval(bundles, tmp_path):
    (tmp_path / "text.txt").write_text(MILL)
    code = "import sys; sys.modules['lm_eval'] = None; from merino_edge.cli.app import main; main()"
    words = [sys.executable, "-c", code, "eval", bundles["all"], "--perplexity", str(tmp_path / "text.txt")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "bits_per_byte" in done.stdout, done.stderr


def test_a_tokenizer_that_does_not_give_back_the_text_is_named(tiny_checkpoint):
    with open_source(str(tiny_checkpoint), print) as model:
        model.tokenizer.normalizer = normalizers.Lowercase()
        with pytest.raises(MerinoError, match="does not give back document 3.*at character 5 'Baker"):
            document_ids(model, "the Baker", 3)


@pytest.mark.nightly
def test_without_a_network_the_local_file_is_named(bundles, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    words = [sys.executable, "-m", "merino_edge", "eval", bundles["all"], "--tasks"]
    done = subprocess.run([*words, "piqa"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Check the network or give its file with --data DIR (piqa.validation" in done.stderr
    done = subprocess.run([*words, "helaswag"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "near names: hellaswag" in done.stderr


SHORT_MILL = "The river runs past the old mill"  # shorter than the context: lm-eval cuts elsewhere
PAIRS = [("The miller counts the", each) for each in (" sacks", " bread", " door of the old mill")]
PAIRS += [("The baker ", "buys three"), ("a", " mill"), (SHORT_MILL, " of flour")]


@pytest.mark.slow
def test_local_completions_is_equal_to_eval(bundle_dirs, tiny_checkpoint, tmp_path):
    """lm-eval's own client of OpenAI-compatible servers scores a served bundle as `eval` does."""
    pytest.importorskip("uvicorn")
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from served import Server

    requests = [instance("loglikelihood", {}, pair, place) for place, pair in enumerate(PAIRS)]
    with open_source(str(bundle_dirs["fused"]), print) as model:
        expected = language_model(model).loglikelihood(requests, disable_tqdm=True)
    with Server(bundle_dirs["fused"], XDG_CACHE_HOME=str(tmp_path)) as server:
        name = server.call("GET", "/v1/models")[1]["data"][0]["id"]
        client = LocalCompletionsAPI(
            model=name, base_url=server.url + "/v1/completions", tokenizer_backend="huggingface", batch_size=1,
            tokenizer=str(tiny_checkpoint), max_length=64, num_concurrent=1, max_retries=1,
            add_bos_token=True,  # as `eval` has it
        )  # fmt: skip
        result = client.loglikelihood(requests, disable_tqdm=True)
    assert [greedy for _, greedy in result] == [greedy for _, greedy in expected]
    assert [score for score, _ in result] == pytest.approx([score for score, _ in expected], abs=1e-3)
