"""lm-eval's own client of OpenAI-compatible servers scores a served bundle as `eval` does."""

import pytest

from merino_edge.evaluation.models import open_source
from merino_edge.evaluation.run import language_model

pytest.importorskip("uvicorn")
instance = pytest.importorskip("lm_eval.api.instance").Instance

from served import Server  # noqa: E402

pytestmark = pytest.mark.slow
MILL = "The river runs past the old mill"  # with what follows it, shorter than the context: lm-eval cuts it elsewhere
PAIRS = [("The miller counts the", each) for each in (" sacks", " bread", " door of the old mill")]
PAIRS += [("The baker ", "buys three"), ("a", " mill"), (MILL, " of flour")]


def test_local_completions_is_equal_to_eval(bundle_dirs, tiny_checkpoint, tmp_path):
    from lm_eval.models.openai_completions import LocalCompletionsAPI

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
