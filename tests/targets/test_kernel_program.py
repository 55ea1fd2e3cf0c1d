"""The kernels without onnxruntime, by runtime/kernels/check.c built for a kind of CPU: memory errors, equal results on
Arm and x86, instructions for a multiply-add.

The instructions are counted without a plugin of the emulator: each is a block of its own, and each block that is
executed is a line of its log.
"""
import functools
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from processes import has_headers

KERNELS = Path(__file__).parents[2] / "runtime" / "kernels"
NAMES = ("attention", "taps", "pool")
SOURCES = [KERNELS / "check.c", *sorted(KERNELS.glob("matmul*.c")), *(KERNELS / f"{name}.c" for name in NAMES)]
CROSS, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
MACHINES = {  # with the words of build.sh
    "aarch64": [CROSS, "-O3", "-mtune=cortex-a53", "-mno-outline-atomics", "-frename-registers", "-static"],
    "x86_64": ["cc", "-O3", "-march=x86-64-v3"],
    # Not optimized: GCC takes 45 s of CPU to follow the variables of checked intrinsics through its optimizations.
    "races": ["cc", "-g", "-O0", "-march=x86-64-v3", "-fsanitize=thread"],
    "sanitized": ["cc", "-g", "-O0", "-march=x86-64-v3", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
ALWAYS = ["-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fwrapv", "-Wall", "-Wextra", "-Werror"]


def why_not(*programs: str) -> str:
    """Which of the programs is not there; "" where all are. A compiler is there with the headers of its C library."""
    missing = [f"no {each}" for each in programs if not shutil.which(each)]
    if not missing and CROSS in programs and not has_headers(CROSS):
        missing = ["no libc6-dev-arm64-cross"]
    return ", ".join(missing)


@functools.cache
def scratch() -> "tempfile.TemporaryDirectory[str]":
    """For the programs of this process; removed at its end."""
    return tempfile.TemporaryDirectory(prefix="merino-kernels-")


@functools.cache
def program(machine: str) -> Path:
    path = Path(scratch().name) / machine
    compiler, *words = MACHINES[machine]
    subprocess.run([compiler, *ALWAYS, *words, *SOURCES, "-lm", "-pthread", "-o", path], check=True)
    return path


def printed(machine: str, *words: object, cpu: str = "cortex-a53", flags: tuple[object, ...] = ()) -> str:
    before = {"aarch64": [EMULATOR, "-cpu", cpu, *flags], "races": ["setarch", "-R"]}.get(machine, [])
    call = [*before, program(machine), *words]
    done = subprocess.run([str(word) for word in call], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@functools.cache
def code_range() -> str:
    """Where the kernels lie in the program, as qemu's -dfilter takes it."""
    call = ["aarch64-linux-gnu-nm", "-n", program("aarch64")]
    listed = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    symbols = [line.split() for line in listed.splitlines()]
    names = [name for _, _, name in symbols]
    functions = ("round_rows", "matmul", "round_group", "attention", "matmul_row", "causal_taps")
    ends = [names.index(name) for name in functions]
    first, last = min(ends), max(ends)
    return f"0x{symbols[first][0]}..0x{symbols[last + 1][0]}"


def instructions_per_mac(name: str, cpu: str) -> float:
    """Executed in the kernels per multiply-add of one call, whatever comes before the first."""
    flags = ("-one-insn-per-tb", "-d", "exec,nochain", "-dfilter", code_range(), "-D", "/dev/stdout")
    one, three = (printed("aarch64", "run", name, calls, cpu=cpu, flags=flags) for calls in (1, 3))
    macs = int(re.findall(r"^(\d+)$", one, re.MULTILINE)[0])
    return (three.count("Trace ") - one.count("Trace ")) / 2 / macs


pytestmark = pytest.mark.slow
on_arm = pytest.mark.skipif(why_not(CROSS, EMULATOR) != "", reason=why_not(CROSS, EMULATOR))
DAILY = ("decode", "decode-minimums", "decode-8", "attention-8", "attention-8-int8", "taps")
CASES = [(1, 150), pytest.param(10**6, 20_000, marks=pytest.mark.nightly)]
# The most instructions for a multiply-add, the whole kernel counted: what is rounded, packed and joined as well.
MOST = {
    "decode": 0.36, "decode-minimums": 0.38, "prefill": 0.30, "decode-8": 0.42, "prefill-8": 0.34, "attention-8": 0.45,
    "attention-9-3": 0.62, "attention-8-int8": 0.65,
    "taps": 0.003,  # a gated convolution, for its layer's matrices: below a hundredth of what these cost
}  # fmt: skip
WITH_DOTPROD = {"decode": 0.23, "decode-minimums": 0.25, "prefill": 0.14, "decode-8": 0.25, "prefill-8": 0.145}
COUNTED = [("cortex-a53", name, most) for name, most in MOST.items()]
COUNTED += [("cortex-a76", name, most) for name, most in WITH_DOTPROD.items()]


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
@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76", pytest.param("cortex-a72", marks=pytest.mark.nightly)])
def test_arm_and_x86_agree_to_the_bit(cpu, seed, cases):
    hashes = printed("x86_64", "fuzz", seed, cases, "reference").split()
    assert len(set(hashes)) == cases
    assert printed("aarch64", "fuzz", seed, cases, cpu=cpu).split() == hashes


@on_arm
def test_a_cpu_without_dotprod_does_not_run_it():
    assert printed("aarch64", "fuzz", 1, 1, "dotprod", cpu="cortex-a76")
    with pytest.raises(AssertionError):  # status 2: there is no such set
        printed("aarch64", "fuzz", 1, 1, "dotprod", cpu="cortex-a53")


@on_arm
@pytest.mark.parametrize(("cpu", "name", "most"), [
    pytest.param(*case, marks=[] if case[1] in DAILY else pytest.mark.nightly) for case in COUNTED
])  # fmt: skip
def test_instructions_for_a_multiply_add(cpu, name, most):
    per_mac = instructions_per_mac(name, cpu)
    assert most * 0.8 < per_mac <= most, "far below: set a lower bound"


@pytest.mark.nightly
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_a_board_prints_one_line_of_json():
    script = KERNELS.parents[1] / "bench" / "kernels_on_board.sh"
    done = subprocess.run(["sh", script], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    times = json.loads(done.stdout)["times"]
    assert times[0]["threads"] == 1 and all(each["decode"]["ms_best"] > 0 for each in times)
