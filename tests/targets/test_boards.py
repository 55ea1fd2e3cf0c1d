"""The boards' CPUs, emulated: the same file, the same bundles, the same ids. `make test-boards` sets it up.

Emulated are instructions, not time: nothing here measures anything, and an instruction that a CPU has not kills.
Of float32 the greedy ids are compared; of quantised weights, whose kernels differ by CPU class, the logits behind
given ids, and the choices that lead clearly (`assert_same_choices`).
"""

import json
import shutil
import signal
import sys

import numpy as np
import pytest
from emulated_board import CPUS, INSTRUCTIONS, SCRIPTS, SITE, WITH_DOTPROD, needs_board, on_board, output, run

from merino_edge.bundles.board_app import write_board_app
from merino_edge.embedded import FOLDER as PACKAGED
from merino_edge.profiles.reading import load_profile
from merino_runtime.board import ARM_FEATURES
from merino_runtime.bundle import load_bundle
from merino_runtime.text import open_tokenizer

LOGITS = SCRIPTS / "logits.py"
PROMPT, TOKENS = "Once upon a time", 16
GENERATE = ["merino.pyz", "generate", ".", PROMPT, "-n", TOKENS, "--temperature", 0, "--ignore-eos", "--json"]
QUANTISED = [("fused", "int8"), ("fused", "int4"), ("portable", "int8")]

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


@pytest.fixture(scope="module", params=["packaged", "portable"])
def bundle(request, packaged, embedded_bundles):
    """float32: the bundle in the package, and the same model for old runtimes."""
    return packaged if request.param == "packaged" else embedded_bundles["portable", "fp32"]


@pytest.fixture(scope="module")
def ids_here(bundle):
    """The ids of a greedy continuation on this machine."""
    ids = greedy_ids(output(run(sys.executable, *GENERATE, cwd=bundle)))
    assert len(ids) == TOKENS and len(set(ids)) > 5
    return ids


@pytest.mark.parametrize("cpu", CPUS)
def test_greedy_ids_are_those_of_this_machine(cpu, bundle, ids_here):
    assert greedy_ids(output(on_board(cpu, *GENERATE, cwd=bundle))) == ids_here


@pytest.mark.parametrize("cpu", CPUS)
def test_the_selftest_passes(cpu, packaged):
    assert output(on_board(cpu, "merino.pyz", "selftest", ".", cwd=packaged)).startswith("ok: ")


@pytest.fixture(scope="module", params=QUANTISED, ids="-".join)
def quantised(request, embedded_bundles):
    """(folder, precision) of the same model in a format that wants dotprod."""
    return embedded_bundles[request.param], request.param[1]


@pytest.fixture(scope="module")
def chosen(quantised, assert_same_choices, tmp_path_factory):
    """By whether a CPU has dotprod, what it chooses behind the prompt and behind each id that this machine chooses.

    Fails where the logits of one of each kind are not near this machine's, or another choice leads clearly.
    """
    folder, precision = quantised
    ids = greedy_ids(output(run(sys.executable, *GENERATE, "--allow-slow", cwd=folder)))
    prompt = open_tokenizer(load_bundle(str(folder))).encode(PROMPT)
    steps = json.dumps([("prompt", prompt), *(("step", token) for token in ids[:-1])])
    out = tmp_path_factory.mktemp("logits") / "logits.npy"
    app = folder / "merino.pyz"
    output(run("env", f"PYTHONPATH={app}", sys.executable, LOGITS, folder, steps, out))
    expected = np.load(out)
    assert expected.argmax(1).tolist() == ids
    found = {}
    for cpu in ("cortex-a72", "cortex-a76"):
        output(on_board(cpu, LOGITS, folder, steps, out, path=f"{SITE}:{app}"))
        logits = np.load(out)
        assert_same_choices(logits, expected, precision)
        found[cpu in WITH_DOTPROD] = logits.argmax(1).tolist()
    return ids, found


@pytest.mark.parametrize("cpu", CPUS)
def test_quantised_weights_choose_as_on_this_machine(cpu, quantised, chosen):
    """Where the CPU has dotprod; where it has not, with --allow-slow. Behind another choice the ids are others."""
    folder, precision = quantised
    slow = cpu not in WITH_DOTPROD
    done = on_board(cpu, *GENERATE, *(["--allow-slow"] if slow else []), cwd=folder)
    here, there = chosen[0], chosen[1][not slow]
    same = next((place for place in range(TOKENS) if here[place] != there[place]), TOKENS)
    assert greedy_ids(output(done))[: same + 1] == there[: same + 1]
    assert (f"note: this CPU lacks dotprod, which {precision} weights need" in done.stderr) == slow


@pytest.mark.parametrize("cpu", WITH_DOTPROD)
def test_the_selftest_of_quantised_weights_passes(cpu, quantised):
    assert output(on_board(cpu, "merino.pyz", "selftest", ".", cwd=quantised[0])).startswith("ok: ")


@pytest.fixture(scope="module")
def poison(tmp_path_factory):
    """A path on which whatever a board installs ends the process when it is imported."""
    folder = tmp_path_factory.mktemp("poison")
    for name in ("numpy", "onnxruntime", "tokenizers"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')\n")
    return folder


@pytest.mark.parametrize("verb", [["generate", ".", PROMPT], ["selftest", "."]], ids=lambda verb: verb[0])
@pytest.mark.parametrize("cpu", sorted(set(CPUS) - set(WITH_DOTPROD)))
def test_quantised_weights_are_refused_before_anything_is_imported(cpu, verb, quantised, poison):
    done = on_board(cpu, "merino.pyz", *verb, cwd=quantised[0], path=poison)
    assert done.returncode == 1 and done.stdout == ""
    assert f"lacks dotprod, which {quantised[1]} weights need" in done.stderr
    assert "--allow-slow" in done.stderr and "was imported" not in done.stderr


def test_the_poison_works(quantised, poison):
    """Else the test above would not show that nothing is imported."""
    done = on_board("cortex-a72", "merino.pyz", "selftest", ".", "--allow-slow", cwd=quantised[0], path=poison)
    assert done.returncode == 1 and done.stderr.endswith(" was imported\n")


@pytest.mark.parametrize("cpu, device", CPUS.items())
def test_info_finds_the_profiles_instructions(cpu, device, packaged):
    described = json.loads(output(on_board(cpu, "merino.pyz", "info", ".", "--json", cwd=packaged)))["board"]
    assert described["architecture"] == "aarch64" and described["pointer_bits"] == 64
    assert {"neon", *described["isa"]} == set(load_profile(device).isa)


@pytest.mark.parametrize("cpu", [*CPUS, "max"])
def test_the_instructions_found_are_those_that_execute(cpu, tmp_path):
    """Found without /proc/cpuinfo, which an emulator writes too; executed one by one."""
    executes = json.loads(output(on_board(cpu, INSTRUCTIONS)))
    assert executes.pop("none") and set(executes) == set(ARM_FEATURES.values())
    write_board_app(tmp_path / "merino.pyz")
    script = "from merino_runtime import board; board.read_text = lambda path: ''; print(*board.this_isa())"
    found = output(on_board(cpu, "-c", script, path=tmp_path / "merino.pyz")).split()
    assert set(found) == {name for name, ran in executes.items() if ran}
    assert cpu != "max" or all(executes.values())


@pytest.mark.parametrize("cpu, status", [
    ("cortex-a53", -signal.SIGILL), ("cortex-a57", -signal.SIGILL), ("cortex-a72", -signal.SIGILL), ("cortex-a76", 0),
])  # fmt: skip
def test_an_instruction_that_the_cpu_has_not_kills(cpu, status):
    """The emulation would catch such a one in a wheel: without this the tests above would prove nothing."""
    done = on_board(cpu, INSTRUCTIONS, "dotprod")
    assert (done.returncode, done.stdout) == (status, "" if status else "24\n")
