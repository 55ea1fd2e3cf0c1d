"""The boards' CPUs, emulated: the same file, the same bundles, the same ids. `make test-boards` sets it up.

Emulated are instructions, not time: nothing here measures anything, and an instruction that a CPU has not kills.
Of float32 the greedy ids are compared; of quantized weights, whose kernels differ by CPU class, the logits behind
given ids, and the choices that lead clearly (`assert_same_choices`). `make test` runs float32 on a CPU without dotprod
and a quantized format on a CPU of each kind, `make test-nightly` every format on each CPU.

Processes that start others, as installing does, run on the CPU that was named too.
"""
import functools
import itertools
import json
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from emulated_board import (
    BY_DEFAULT,
    CPUS,
    INSTRUCTIONS,
    OF_EACH_KIND,
    OLDER,
    ON_EACH,
    ON_THE_OLDER,
    SCRIPTS,
    SITE,
    WITH_DOTPROD,
    needs_board,
    on_board,
    on_board_with_children,
    output,
    python_words,
    run,
    under,
)
from served import ROOT, Server

from merino_edge.benchmarking.random_bundle import write_random_bundle
from merino_edge.bundles.board_app import write_board_app
from merino_edge.embedded import FOLDER as PACKAGED
from merino_edge.prediction.formats import FIRST_FUSED
from merino_edge.profiles.reading import load_profile
from merino_runtime.backends import open_backend
from merino_runtime.bundle import load_bundle
from merino_runtime.bundle.requirements import version_tuple
from merino_runtime.generation.text import open_tokenizer
from merino_runtime.io.board import ARM_FEATURES
from tests.sample_models import QWEN35, small

LOGITS = SCRIPTS / "logits.py"
PROMPT, TOKENS = "Once upon a time", 16
GENERATE = ["merino.pyz", "generate", ".", PROMPT, "-n", TOKENS, "--temperature", 0, "--set=ignore_eos=true", "--json"]
BY_NIGHT = pytest.mark.nightly
QUANTIZED = [("fused", "int4"), ("fused", "int8"), ("portable", "int8")]
DAILY = ("fused", "int4")  # by day on a CPU without dotprod: one with it runs a hybrid, of DAILY_HYBRIDS

pytestmark = [pytest.mark.slow, needs_board]


def greedy_ids(out):
    *tokens, last = [json.loads(line) for line in out.splitlines()]
    assert last["done"] and last["tokens"] == len(tokens)
    return [token["id"] for token in tokens]


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """A copy of the bundle in the package, with the board's application, which the package does not hold."""
    folder = tmp_path_factory.mktemp("packaged") / "bundle"
    shutil.copytree(PACKAGED, folder)
    write_board_app(folder / "merino.pyz")
    return folder


@pytest.fixture(scope="module", params=["packaged", pytest.param("portable", marks=BY_NIGHT)])
def bundle(request, packaged, embedded_bundles):
    """float32: the bundle in the package, and the same model for old runtimes."""
    return packaged if request.param == "packaged" else embedded_bundles["portable", "fp32"]


@pytest.fixture(scope="module")
def ids_here(bundle):
    """The ids of a greedy continuation on this machine."""
    ids = greedy_ids(output(run(sys.executable, *GENERATE, cwd=bundle)))
    assert len(ids) == TOKENS and len(set(ids)) > 5
    return ids


@pytest.mark.parametrize("cpu", ON_THE_OLDER)
def test_greedy_ids_are_those_of_this_machine(cpu, bundle, ids_here):
    assert greedy_ids(output(on_board(cpu, *GENERATE, cwd=bundle))) == ids_here


@pytest.fixture(scope="module")
def quantized(request, embedded_bundles):
    """(folder, precision) of the same model in integers."""
    return embedded_bundles[request.param], request.param[1]


@pytest.fixture(scope="module")
def chosen(quantized, assert_same_choices, tmp_path_factory):
    """(ids of this machine, a function: whether a CPU has dotprod -> its choices behind the prompt and each of these).

    That fails where the logits of one of each kind are not near this machine's, or another choice leads clearly.
    """
    folder, precision = quantized
    ids = greedy_ids(output(run(sys.executable, *GENERATE, cwd=folder)))
    prompt = open_tokenizer(load_bundle(str(folder))).encode(PROMPT)
    steps = json.dumps([("prompt", prompt), *(("step", token) for token in ids[:-1])])
    out = tmp_path_factory.mktemp("logits") / "logits.npy"
    app = folder / "merino.pyz"
    output(run("env", f"PYTHONPATH={app}", sys.executable, LOGITS, folder, steps, out))
    expected = np.load(out)
    assert expected.argmax(1).tolist() == ids

    @functools.cache
    def there(dotprod):
        (cpu,) = (each for each in BY_DEFAULT if (each in WITH_DOTPROD) == dotprod)
        output(on_board(cpu, LOGITS, folder, steps, out, path=f"{SITE}:{app}"))
        logits = np.load(out)
        assert_same_choices(logits, expected, precision)
        return logits.argmax(1).tolist()

    return ids, there


@pytest.mark.parametrize(("quantized", "cpu"), [
    pytest.param(kind, cpu, id="-".join((*kind, cpu)),
                 marks=() if kind == DAILY and cpu in BY_DEFAULT and cpu not in WITH_DOTPROD else BY_NIGHT)
    for kind in QUANTIZED for cpu in CPUS
], indirect=["quantized"], scope="module")  # fmt: skip
def test_quantized_weights_choose_as_on_this_machine(cpu, quantized, chosen):
    """Behind another choice the ids are others."""
    done = on_board(cpu, *GENERATE, cwd=quantized[0])
    here, there = chosen[0], chosen[1](cpu in WITH_DOTPROD)
    same = next((place for place in range(TOKENS) if here[place] != there[place]), TOKENS)
    assert greedy_ids(output(done))[: same + 1] == there[: same + 1]


@pytest.mark.nightly
@pytest.mark.parametrize("version", OLDER)
@pytest.mark.parametrize("cpu", [each for each in CPUS if each not in WITH_DOTPROD])
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_greedy_ids_are_the_same_under_earlier_versions(cpu, version, precision, embedded_bundles):
    """Up to 1.16 an operator gets no threads of ONNX Runtime: there the kernels have a pool of their own."""
    dialect = "portable" if version_tuple(version) < version_tuple(FIRST_FUSED) else "fused"
    folder = embedded_bundles[dialect, precision]
    here = greedy_ids(output(run(sys.executable, *GENERATE, cwd=folder)))
    assert greedy_ids(output(on_board(cpu, *GENERATE, "--set=threads=2", cwd=folder, **under(version)))) == here
    assert len(set(here)) > 5


@pytest.fixture(scope="module")
def server_packages(tmp_path_factory):
    """A folder with what serves HTTP, which is Python alone, of this machine's environment."""
    from importlib.util import find_spec

    folder = tmp_path_factory.mktemp("site")
    for name in ("uvicorn", "h11", "click"):
        spec = find_spec(name)
        if spec is None:
            pytest.skip(f"no {name} here")
        shutil.copytree(spec.submodule_search_locations[0], folder / name)
    return folder


SCHEMA = {"type": "object", "required": ["lamp"], "properties": {"lamp": {"enum": ["on", "off"]}}}


@pytest.mark.nightly
@pytest.mark.parametrize("cpu", BY_DEFAULT)
def test_the_server_says_there_what_generate_says_here(cpu, packaged, server_packages, tmp_path):
    here = output(run(sys.executable, *GENERATE, cwd=packaged))
    text = "".join(json.loads(line).get("text", "") for line in here.splitlines())
    body = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    path = f"{SITE}:{server_packages}:{ROOT}/runtime"
    with Server(packaged, python=python_words(cpu, path), options=[f"--set=cache_dir={tmp_path}"]) as server:
        assert server.post("/v1/completions", **body)["choices"][0]["text"] == text
        chunks, _ = server.stream("/v1/completions", **body)
        assert "".join(each["choices"][0]["text"] for each in chunks) == text
        with ThreadPoolExecutor(3) as clients:
            together = clients.map(lambda _: server.post("/v1/completions", **body)["choices"][0]["text"], range(3))
            assert set(together) == {text}
        assert server.call("GET", "/v1/stats")[1]["batches_total"] > 0
        formed = server.post("/api/generate", prompt=PROMPT, format=SCHEMA, stream=False, options={"temperature": 0})
        assert json.loads(formed["response"])["lamp"] in ("on", "off")
        connection, response = server.open("GET", "/")
        assert response.status == 200 and b"<script>" in response.read()
        connection.close()
        assert server.close() == 0


FIRST, *OTHERS = ON_EACH
BY_DAY_THE_FIRST = [FIRST, *(pytest.param(*other.values, marks=BY_NIGHT) for other in OTHERS)]


@pytest.mark.parametrize("cpu, device", BY_DAY_THE_FIRST)
def test_info_finds_the_profiles_instructions(cpu, device, packaged):
    described = json.loads(output(on_board(cpu, "merino.pyz", "info", ".", "--json", cwd=packaged)))["board"]
    assert described["architecture"] == "aarch64" and described["pointer_bits"] == 64
    assert {"neon", *described["isa"]} == set(load_profile(device).isa)


@pytest.mark.parametrize("cpu", [*OF_EACH_KIND, "max"])
def test_the_instructions_found_are_those_that_execute(cpu, tmp_path):
    """Detected without /proc/cpuinfo, which an emulator writes too; executed one by one."""
    executes = json.loads(output(on_board(cpu, INSTRUCTIONS)))
    assert executes.pop("none") and set(executes) == set(ARM_FEATURES.values())
    write_board_app(tmp_path / "merino.pyz")
    script = "from merino_runtime.io import board; board.read_text = lambda path: ''; print(*board.this_isa())"
    executed = output(on_board(cpu, "-c", script, path=tmp_path / "merino.pyz")).split()
    assert set(executed) == {name for name, ran in executes.items() if ran}
    assert cpu != "max" or all(executes.values())


@pytest.mark.parametrize("cpu", OF_EACH_KIND)
def test_an_instruction_that_the_cpu_has_not_kills(cpu):
    """The emulation would catch such a one in a wheel: without this the tests above would prove nothing."""
    status = 0 if cpu in WITH_DOTPROD else -signal.SIGILL
    done = on_board(cpu, INSTRUCTIONS, "dotprod")
    assert (done.returncode, done.stdout) == (status, "" if status else "24\n")


# A shell that Python starts, and a Python that this shell starts.
GRANDCHILD = "import subprocess, sys; sys.exit(subprocess.call(['sh', '-c', '\"$@\"; exit $?', 'sh', *sys.argv[1:]]))"


def in_grandchild(cpu, *command, cwd):
    return on_board_with_children(cpu, "python3", "-c", GRANDCHILD, *command, cwd=cwd)


@pytest.mark.parametrize("cpu, device", BY_DAY_THE_FIRST)
def test_a_child_has_the_instructions_of_the_profile(cpu, device, tmp_path):
    write_board_app(tmp_path / "merino.pyz")
    script = "import os; from merino_runtime.io import board; print(os.uname().machine, *board.this_isa())"
    done = in_grandchild(cpu, "env", "PYTHONPATH=merino.pyz", "python3", "-c", script, cwd=tmp_path)
    assert set(output(done).split()) | {"neon"} == {"aarch64", *load_profile(device).isa}


@pytest.mark.parametrize("cpu", OF_EACH_KIND)
def test_an_instruction_that_the_cpu_has_not_kills_a_child(cpu, tmp_path):
    killed = cpu not in WITH_DOTPROD
    shutil.copy(INSTRUCTIONS, tmp_path)
    done = in_grandchild(cpu, "python3", INSTRUCTIONS.name, "dotprod", cwd=tmp_path)
    assert (done.returncode, done.stdout) == ((128 + signal.SIGILL, "") if killed else (0, "24\n"))


@pytest.mark.nightly
@pytest.mark.parametrize("cpu", CPUS)
def test_a_virtual_environment_made_there_generates_the_golden_tokens(cpu, tmp_path):
    shutil.copytree(PACKAGED, tmp_path / "bundle")
    write_board_app(tmp_path / "merino.pyz")
    output(on_board_with_children(cpu, "python3", "-m", "venv", "--without-pip", "env", cwd=tmp_path))
    (tmp_path / "env" / "lib" / "python3.11" / "site-packages" / "board.pth").write_text("/opt/site\n")
    done = in_grandchild(cpu, "env/bin/python3", "merino.pyz", "selftest", "bundle", cwd=tmp_path)
    assert output(done).startswith("ok: ")


# Gated convolutions (LFM2) and recurrent states (Qwen3.5), also truncated.
HYBRIDS = {"lfm2": small("lfm2", width=128, ffn_width=192, head_size=32), "qwen3.5": QWEN35}
IDS = [7, 41, 3, 90, 12, 55, 8, 23, 77, 61]
# A text, a part of it again behind another end, and the first one continued.
STEPS = [["prompt", IDS[:6]], ["step", IDS[6]], ["step", IDS[7]], ["truncate", 4], ["step", 30], ["prompt", IDS[:9]]]
DAILY_HYBRIDS = [("cortex-a53", "lfm2", "int4"), ("cortex-a76", "qwen3.5", "int4")]


@pytest.mark.parametrize(("cpu", "family", "precision"), [
    pytest.param(*case, marks=() if case in DAILY_HYBRIDS else pytest.mark.nightly, id="-".join(case))
    for case in itertools.product(BY_DEFAULT, HYBRIDS, ["fp32", "int4"])
])  # fmt: skip
def test_a_board_computes_what_this_machine_does(cpu, family, precision, tmp_path):
    write_random_bundle(HYBRIDS[family], precision, tmp_path / "bundle", family)
    backend, expected = open_backend(load_bundle(str(tmp_path / "bundle"))), []
    for place, length in ((None, 6), (6, None), (7, None)):
        expected.append((backend.prefill(IDS[:length]) if place is None else backend.step(IDS[place])).copy())
    backend.truncate(4)
    expected.append(backend.step(30).copy())
    backend.truncate(4)
    expected.append(backend.prefill(IDS[4:9]).copy())
    out, app = tmp_path / "logits.npy", tmp_path / "bundle" / "merino.pyz"
    output(on_board(cpu, LOGITS, tmp_path / "bundle", json.dumps(STEPS), out, path=f"{SITE}:{app}"))
    logits, expected = np.load(out), np.array(expected)
    error = np.square(logits - expected).mean() / np.square(expected).mean()
    assert error < (1e-9 if precision == "fp32" else 1e-2)
