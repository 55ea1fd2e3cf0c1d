"""runtime/kernels/check.c built for a kind of CPU; what it prints, and how many instructions of the kernels it takes.

The instructions are counted without a plugin of the emulator: each is a block of its own, and each block that is
executed is a line of its log.
"""

import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from c_compilers import has_headers

KERNELS = Path(__file__).parents[2] / "runtime" / "kernels"
SOURCES = [KERNELS / "check.c", *sorted(KERNELS.glob("matmul*.c")), KERNELS / "attention.c", KERNELS / "pool.c"]
CROSS, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
MACHINES = {  # with the words of build.sh
    "aarch64": [CROSS, "-O3", "-mtune=cortex-a53", "-mno-outline-atomics", "-frename-registers", "-static"],
    "x86_64": ["cc", "-O3", "-march=x86-64-v3"],
    "races": ["cc", "-g", "-O1", "-march=x86-64-v3", "-fsanitize=thread"],
    "sanitized": ["cc", "-g", "-O1", "-march=x86-64-v3", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
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
    ends = [names.index(name) for name in ("round_rows", "matmul", "round_group", "attention", "matmul_row")]
    first, last = min(ends), max(ends)
    return f"0x{symbols[first][0]}..0x{symbols[last + 1][0]}"


def instructions_per_mac(name: str) -> float:
    """Executed in the kernels per multiply-add of one call, whatever comes before the first."""
    flags = ("-one-insn-per-tb", "-d", "exec,nochain", "-dfilter", code_range(), "-D", "/dev/stdout")
    one, three = (printed("aarch64", "run", name, calls, flags=flags) for calls in (1, 3))
    macs = int(re.findall(r"^(\d+)$", one, re.MULTILINE)[0])
    return (three.count("Trace ") - one.count("Trace ")) / 2 / macs


class Loop(NamedTuple):
    """A loop that holds no other, as disassembled."""

    multiplications: int  # vector instructions that multiply
    on_stack: int  # loads and stores there


def inner_loops(library: Path) -> list[Loop]:
    listed = subprocess.run(["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", library], capture_output=True,
                            text=True, check=True)  # fmt: skip
    instructions = re.findall(r"^\s*([0-9a-f]+):\t(\S+)[ \t]*(.*)$", listed.stdout, re.MULTILINE)
    place = {int(address, 16): index for index, (address, _, _) in enumerate(instructions)}
    loops = []
    for index, (_, name, words) in enumerate(instructions):
        target = re.search(r"([0-9a-f]+) <", words)
        jumps = target and (name == "b" or name.startswith(("b.", "cb", "tb")))
        begin = place.get(int(target[1], 16)) if jumps else None
        if begin is not None and begin <= index:
            loops.append((begin, index))
    inner = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    return [
        Loop(
            sum(name.startswith(("smull", "smlal", "fmla")) for _, name, _ in instructions[a : b + 1]),
            sum("[sp" in words for _, _, words in instructions[a : b + 1]),
        )
        for a, b in inner
    ]
