"""The kernels without onnxruntime: memory errors, equal results on Arm and x86, instructions for a multiply-add."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from kernel_program import CROSS, EMULATOR, KERNELS, inner_loops, instructions_per_mac, printed, why_not

from merino_runtime.bundle.fit import library_path

pytestmark = pytest.mark.slow
on_arm = pytest.mark.skipif(why_not(CROSS, EMULATOR) != "", reason=why_not(CROSS, EMULATOR))
DAILY = ("decode", "decode-minimums", "decode-8", "attention-8", "attention-8-int8")
CASES = [(1, 150), pytest.param(10**6, 20_000, marks=pytest.mark.nightly)]
# The most instructions for a multiply-add, the whole kernel counted: what is rounded, packed and joined as well.
MOST = {
    "decode": 0.36, "decode-minimums": 0.38, "prefill": 0.30, "decode-8": 0.42, "prefill-8": 0.34, "attention-8": 0.45,
    "attention-9-3": 0.62, "attention-8-int8": 0.65,
}  # fmt: skip


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize(("seed", "cases"), CASES)
def test_random_shapes_and_extreme_values_make_no_memory_error(seed, cases):
    """Under AddressSanitizer and UndefinedBehaviorSanitizer, in part ThreadSanitizer: as the optimized build."""
    expected = printed("x86_64", "fuzz", seed, cases)
    assert printed("sanitized", "fuzz", seed, cases) == expected
    some = min(cases, 1000)
    assert printed("races", "fuzz", seed, some).split() == expected.split()[:some]


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize(("seed", "cases"), CASES)
@pytest.mark.parametrize("instructions", ["avx2", "avx512"])
def test_each_instruction_set_agrees_with_the_reference_to_the_bit(instructions, seed, cases):
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if instructions == "avx512" and "avx512_vnni" not in flags:
        pytest.skip("this CPU has no AVX-512 VNNI")
    reference = printed("x86_64", "fuzz", seed, cases, "reference")
    assert printed("x86_64", "fuzz", seed, cases, instructions) == reference


@on_arm
@pytest.mark.parametrize(("seed", "cases"), CASES)
@pytest.mark.parametrize("cpu", ["cortex-a53", pytest.param("cortex-a72", marks=pytest.mark.nightly)])
def test_arm_and_x86_agree_to_the_bit(cpu, seed, cases):
    hashes = printed("x86_64", "fuzz", seed, cases, "reference").split()
    assert len(set(hashes)) == cases
    assert printed("aarch64", "fuzz", seed, cases, cpu=cpu).split() == hashes


@on_arm
@pytest.mark.parametrize("name", [
    each if each in DAILY else pytest.param(each, marks=pytest.mark.nightly) for each in MOST
])  # fmt: skip
def test_instructions_for_a_multiply_add(name):
    per_mac = instructions_per_mac(name)
    assert MOST[name] * 0.8 < per_mac <= MOST[name], "far below: set a lower bound"


@pytest.mark.nightly
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_a_board_prints_one_line_of_json():
    script = KERNELS.parents[1] / "bench" / "kernels_on_board.sh"
    done = subprocess.run(["sh", script], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    times = json.loads(done.stdout)["times"]
    assert times[0]["threads"] == 1 and all(each["decode"]["ms_best"] > 0 for each in times)


@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-objdump"), reason="no objdump for arm64")
def test_no_inner_loop_keeps_a_value_on_the_stack():
    loops = [loop for loop in inner_loops(library_path("aarch64")) if loop.multiplications > 8]
    kinds = {loop.multiplications for loop in loops}
    matrices = {34, 36, 136, 144} | {68, 72, 280} | {17, 18}
    assert matrices < kinds, "in 4 bits, in 8, and in 5 and 6, of one row and of four, with and without minimums"
    assert {64, 32, 16} | {24, 12} == kinds - matrices, "scores and sums of values, in tiles; of few rows"
    assert [loop for loop in loops if loop.on_stack] == []
