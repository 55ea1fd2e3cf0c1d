"""Time per token against the cache's length, and prefill time against the prompt's: measured, fitted, and predicted
from bytes over bandwidth and operations over rate."""

from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from entrants import PROBE, Entrant, ours
from runs import Runs, table

from merino_bench.harness.cases import Case, decode_case, prefill_case

SECTION, CONTEXT = "growth", 2048
DEPTHS = (0, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2016)
PROMPTS = (16, 32, 64, 128, 256, 512, 1024, 1536, 2048)
STEPS = 16  # behind each depth, so the mean step finds half as many more
PRECISIONS = ("fp32", "int8", "int4")


def entrants(model: str) -> list[Entrant]:
    return [ours(model, precision, context=CONTEXT) for precision in PRECISIONS]


def tests(model: str, few: bool) -> list[tuple[Entrant, Case]]:
    depths, prompts = (DEPTHS[::4], PROMPTS[::4]) if few else (DEPTHS, PROMPTS)
    cases = [decode_case(STEPS, depth) for depth in depths] + [prefill_case(prompt) for prompt in prompts]
    probe = (Entrant(PROBE), Case("probe", 0, 0))
    return [probe] + [(entrant, case) for entrant in entrants(model) for case in cases]


def points(runs: Runs, entrant: Entrant, phase: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [n], ms [n]): of decode the cache's length at the mean step, of prefill the prompt's."""
    found: dict[float, list[float]] = {}
    tests = sorted({run["test"] for run in runs.find(section=SECTION, entrant=entrant.name)})
    for run in [run for test in tests for run in runs.good(section=SECTION, entrant=entrant.name, test=test)]:
        name, _, depth = run["test"].partition(" @ d")
        if name.startswith("tg") != (phase == "decode"):
            continue
        if phase == "decode":
            start = int(depth) if depth else decode_case(STEPS).prompt
            found.setdefault(start + (STEPS - 1) / 2, []).append(median(mean(steps) for steps in run["step_ms"]))
        else:
            found.setdefault(int(name[2:]), []).append(median(run["prefill_ms"]))
    lengths = sorted(found)
    return np.array(lengths, float), np.array([median(found[length]) for length in lengths])


def fit(lengths: np.ndarray, ms: np.ndarray, degree: int) -> np.ndarray:
    """Coefficients from the constant upward, by least squares of the relative error."""
    powers = np.vander(lengths, degree + 1, increasing=True)  # [n, degree + 1]
    return np.asarray(np.linalg.lstsq(powers / ms[:, None], np.ones_like(ms), rcond=None)[0])


def predicted(runs: Runs, entrant: Entrant) -> dict[str, float] | None:
    """decode: weights over bandwidth, and per cached token its keys and values over bandwidth. prefill (float32
    arithmetic): per token 2 operations per weight of the layers, and per pair of tokens 4 per channel."""
    probes = runs.good(section=SECTION, entrant=PROBE)
    facts = runs.facts(entrant)
    if not probes or not facts:
        return None
    gb_s, gflops = (median(run[key] for run in probes) for key in ("read_gb_s", "sgemm_gflops"))
    channels = facts["kv_slot_bytes"] / 8  # keys and values in float32, over all layers
    return {
        "weights_ms": facts["decode_weight_bytes"] / gb_s / 1e6,
        "slot_us": facts["kv_slot_bytes"] / gb_s / 1e3,
        "token_us": 2 * facts["layer_params"] / gflops / 1e3,
        "pair_ns": 4 * channels / 2 / gflops,  # a token attends to half of the prompt on average
        "read_gb_s": gb_s, "sgemm_gflops": gflops,
    }  # fmt: skip


def report(runs: Runs, model: str) -> str:
    rows = []
    for entrant in entrants(model):
        expected = predicted(runs, entrant)
        cached, decode_ms = points(runs, entrant, "decode")
        prompts, prefill_ms = points(runs, entrant, "prefill")
        if expected is None or len(cached) < 2 or len(prompts) < 3:
            continue
        start, slope = fit(cached, decode_ms, 1)
        _, linear, square = fit(prompts, prefill_ms, 2)
        rows.append([
            entrant.name, f"{start:.2f}", f"{expected['weights_ms']:.2f}", f"{1e3 * slope:.2f}",
            f"{expected['slot_us']:.2f}", f"{1e3 * linear:.0f}", f"{expected['token_us']:.0f}", f"{1e6 * square:.1f}",
            f"{expected['pair_ns']:.1f}",
        ])  # fmt: skip
    titles = ["entrant", "decode, empty cache ms", "bytes / bandwidth", "per cached token us", "bytes / bandwidth",
              "prefill per token us", "operations / float32 rate", "per pair of tokens ns", "operations / float32 rate"]
    return f"\n### Growth of {model}\n\n" + table(titles, rows)


def plot(runs: Runs, model: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, entrant in enumerate(entrants(model)):
        color = f"C{number}"
        for axes, phase, degree in ((left, "decode", 1), (right, "prefill", 2)):
            lengths, ms = points(runs, entrant, phase)
            if len(lengths) <= degree:
                continue
            axes.plot(lengths, ms, "o", color=color, label=entrant.precision)
            dense = np.linspace(lengths[0], lengths[-1], 200)
            axes.plot(dense, np.polyval(fit(lengths, ms, degree)[::-1], dense), "-", color=color, linewidth=1)
        expected = predicted(runs, entrant)
        if expected:
            dense = np.linspace(0, CONTEXT, 2)
            left.plot(dense, expected["weights_ms"] + expected["slot_us"] / 1e3 * dense, ":", color=color)
    left.set(xlabel="tokens in the cache", ylabel="ms per token", ylim=(0, None))
    left.set_title("decode (dotted: bytes / bandwidth)")
    right.set(xlabel="tokens of the prompt", ylabel="ms", xscale="log", yscale="log")
    right.set_title("prefill (line: a + b n + c n²)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    here: dict[str, Any] = runs.content["machine"]
    figure.suptitle(f"{model}, random weights, {here['board']}, {here['cpus']} CPUs", fontsize=9)
    figure.savefig(path, dpi=110)
