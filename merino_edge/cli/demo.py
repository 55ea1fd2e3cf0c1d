"""The demo: the calls of the commands, in order, with explanations."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from merino_bench.harness.cases import BenchRequest
from merino_bench.harness.render import render, save
from merino_bench.harness.run import run_bench
from merino_edge.benchmarking.run import baseline_bundle
from merino_edge.bundles.board_app import write_board_app
from merino_edge.bundles.files import APP_FILE
from merino_edge.cli.design_tables import print_design
from merino_edge.cli.record_tables import bench_table
from merino_edge.cli.tables import show
from merino_edge.cli.terminal import bench_progress, working
from merino_edge.design.budgets import with_board_defaults
from merino_edge.design.designer import design
from merino_edge.embedded import FOLDER
from merino_edge.export.export import export
from merino_edge.export.source import load_source
from merino_edge.families.zoo import model
from merino_edge.prediction.shape import default_prompt
from merino_edge.profiles.reading import load_profile
from merino_edge.storage.atomic import check_file, write_text
from merino_runtime.errors import MerinoError
from merino_runtime.io.streams import CLOSED_PIPE, say_line

BOARD = "raspberry-pi-4"
PROMPT = "Once upon a time"
REQUEST = BenchRequest(prompts=(128,), steps=(64,), repetitions=5)


def run_demo(out: Path) -> None:
    """Run the demo, which takes minutes on two cores. Writes design.json, a bundle and the records into `out`."""
    began = time.monotonic()
    check_file(out / "design.json")
    # 1. Design.
    profile = load_profile(BOARD)
    context = profile.budget.context
    heading(1, f"design a decoder for a {profile.name}")
    designed = design(profile, with_board_defaults({}, profile), context=context, prompt=default_prompt(context))
    write_text(out / "design.json", designed.to_json())
    print_design(designed, profile)
    # 2. Export. Random weights do, because speed does not depend on their values.
    heading(2, "export to ONNX with KV cache, this design and OPT-350M by the same exporter")
    say("exporting the design, and comparing it with torch at every step")
    bundle = out / "pi4-design"
    with working("exporting the design") as progress:
        source = load_source(str(out / "design.json"))._replace(name="pi4-design")
        done = export(source, bundle, last_use=True, progress=progress)
    print(f"{bundle}: maximum logit error against torch {done.error:.1e} relative, over prefill and every decode step")
    with working("exporting OPT-350M"):
        opt = baseline_bundle(model("opt-350m"), say)
    print(f"{opt}: OPT-350M")
    # 3. Generate.
    heading(3, "generate: the embedded model, trained on stories, by the file that a board runs")
    print(PROMPT, end="", flush=True)
    run_application(["generate", str(FOLDER), PROMPT, "-n", "160", "--temperature", "0"])
    # 4. Benchmark.
    heading(4, "benchmark on this machine, each bundle in fresh processes")
    with bench_progress() as progress:
        records = run_bench([str(bundle)], REQUEST, [opt], progress)
    save(records, str(out / "bench.json"))
    write_text(out / "bench.md", render(records, "md"))
    show(bench_table(records))
    predicted = designed.predicted
    print(
        "Measured: speed, memory and size, on this machine (not on the board), with random weights in both models.\n"
        f"Predicted: on the {BOARD}, {predicted.decode_ms:.0f} ms per token with the cache full and"
        f" {predicted.memory_mb:.0f} MB, from {predicted.provenance} figures; no board has confirmed it yet.\n"
        f"Saved: {out / 'design.json'}, {out / 'bench.json'}, {out / 'bench.md'}, {bundle}\n"
        f"The demo took {time.monotonic() - began:.0f} s, without the installation."
    )


def heading(number: int, text: str) -> None:
    print(f"\n== {number}/4  {text}", flush=True)


def say(text: str) -> None:
    say_line(f"   {text}")


def run_application(words: list[str]) -> None:
    """Run the board's application in its own process, so that the memory that it prints excludes torch."""
    with tempfile.TemporaryDirectory() as folder:
        application = Path(folder) / APP_FILE
        write_board_app(application)
        code = subprocess.run([sys.executable, str(application), *words], check=False).returncode
    if code == CLOSED_PIPE:
        raise BrokenPipeError
    if code:
        raise MerinoError(f"the board's application ended with exit code {code}: see above why")
