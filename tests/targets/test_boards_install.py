"""Delivery onto emulated boards: one signed file for four boards is packed here and installed on the CPU of each.

By the commands of the board's page (docs/boards). The release makes its environment from the wheels in the file,
generates its golden ids, and then what this machine generates: `make test-boards` and `make test-nightly`, 300 s of a
core. `make test` asks here what is refused; there wheels are installed on this machine (test_install_wheels.py).

The emulated system is that of a Raspberry Pi, Python 3.11. For the Jetson Nano it stands for the core alone: a Nano
has Python 3.6 and takes the wheels for that from the same file, which a test here asks of the file. Such wheels are
installed on this machine's architecture (test_install_wheels.py).
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from emulated_board import (
    BOARD_ROOT,
    CPUS,
    as_model,
    needs_board,
    on_board_with_children,
    output,
    run,
    why_no_children,
)
from packed_files import app_bytes, bundle_files, changed_golden, packed_bytes

from merino_edge.profiles.reading import load_profile
from merino_runtime.delivery.archive import open_archive
from merino_runtime.delivery.fit import choose, this_machine
from merino_runtime.delivery.manifest import BoardNeed

MODELS = {
    "cortex-a53": "Raspberry Pi Zero 2 W Rev 1.0",
    "cortex-a57": "NVIDIA Jetson Nano Developer Kit",
    "cortex-a72": "Raspberry Pi 4 Model B Rev 1.4",
    "cortex-a76": "Raspberry Pi 5 Model B Rev 1.0",
}
PAGES = Path(__file__).resolve().parents[2] / "docs" / "boards"
# The folder of releases, root's here and a user's in the pages, is one that outlives the namespaces.
OWN_FOLDER = 'mkdir -p "$root" ~/.local/share; ln -s "$root" /opt/merino; ln -s "$root" ~/.local/share/merino'

# In each of these steps the first choice leads by 17 % of the logits' RMS or more, in int4 too. CPUs
# differ by 1.5 %, by 6 % in single steps: so int4 is compared exactly as well.
PROMPT, TOKENS = "Once upon a time", 13
GENERATE = [PROMPT, "-n", TOKENS, "--temperature", 0, "--set=ignore_eos=true", "--json"]

pytestmark = [pytest.mark.slow, needs_board]


@pytest.fixture(scope="module", autouse=True)
def children():
    if why_no_children():
        pytest.skip(why_no_children())


@pytest.fixture(scope="module")
def formats(embedded_bundles):
    """Folders of one model, the preferred one first: int4 for every 64-bit Arm core, and fp32 for old runtimes."""
    return [embedded_bundles["fused", "int4"], embedded_bundles["portable", "fp32"]]


@pytest.fixture(scope="module")
def packed(formats, tmp_path_factory):
    """A folder with fleet.pub, merino.pyz and story.merino, which that key signed: for all boards, with wheels."""
    folder = tmp_path_factory.mktemp("packed")
    merino_edge = shutil.which("merino-edge", path=Path(sys.executable).parent)
    # Beside the root file system the wheels are kept for the next time, as that is.
    command = ["env", f"XDG_CACHE_HOME={BOARD_ROOT.parent}", merino_edge]
    output(run(*command, "keygen", "-o", "fleet", cwd=folder))
    devices = [word for device in CPUS.values() for word in ("--board", device)]
    options = [*devices, "--wheels", "--sign", "fleet.key", "-o", "story.merino"]
    done = run(*command, "pack", *formats, *options, cwd=folder)
    if "pip finds no set of wheels" in done.stderr:
        pytest.skip(f"no index to fetch wheels from: {done.stderr}")
    output(done)
    output(run("tar", "xf", "story.merino", "merino.pyz", cwd=folder))
    yield folder
    shutil.rmtree(folder)  # more than 100 MB


@pytest.fixture(scope="module", params=[pytest.param(cpu, marks=pytest.mark.nightly) for cpu in CPUS])
def installed(request, packed, tmp_path_factory):
    """(cpu, the folder that it shares, what the page's commands printed): on a board on which nothing was installed."""
    cpu = request.param
    folder = tmp_path_factory.mktemp(cpu)
    for name in ("fleet.pub", "merino.pyz", "story.merino"):
        os.link(packed / name, folder / name)
    script = "\n".join([f"root='{folder / 'root'}'", OWN_FOLDER, *documented(cpu)])
    done = on_board_with_children(
        cpu, *as_model(MODELS[cpu], folder), "sh", "-e", "-c", script, cwd=folder, timeout_s=1800
    )
    yield cpu, folder, output(done)
    shutil.rmtree(folder)  # an environment of 200 MB


def documented(cpu):
    """The commands that the board's page says to have run on this emulated CPU."""
    text = (PAGES / f"{CPUS[cpu]}.md").read_text(encoding="utf-8")
    groups = re.findall(r"^# run: (.*)\n((?:(?!#|```).*\n)+)", text, re.MULTILINE)
    core = cpu.title()  # Cortex-A53
    commands = [line for mark, lines in groups if f"emulated {core}" in mark for line in lines.splitlines()]
    assert [words for words in commands if " install " in words] and len(commands) >= 5, f"{CPUS[cpu]}: {commands}"
    return commands


def install(cpu, folder, *arguments, environment=(), model=None):
    """As root of the board, into `folder`/root. model: of another board than the CPU's; "": there is no device tree."""
    model = MODELS[cpu] if model is None else model
    tree = as_model(model, folder) if model else []
    command = [*tree, *environment, "python3", "merino.pyz", "install", *arguments]
    return on_board_with_children(cpu, *command, "--root", folder / "root", "--json", cwd=folder, timeout_s=1200)


def ids(out):
    *tokens, last = [json.loads(line) for line in out.splitlines()]
    assert last["done"] and last["tokens"] == len(tokens) == TOKENS
    return [token["id"] for token in tokens]


def release(folder):
    """(its folder, what it says of itself)."""
    place = folder / "root" / os.readlink(folder / "root" / "current")
    return place, json.loads((place / "release.json").read_text())


def test_the_pages_commands_install_what_the_cpu_runs_and_it_generates_the_golden_ids(installed):
    cpu, folder, printed = installed
    place, facts = release(folder)
    assert (facts["precision"], facts["python"]) == ("int4", "3.11")
    assert place.name == facts["id"] == open_archive(str(folder / "story.merino")).id
    assert MODELS[cpu] in printed and f"installed embedded (embedded, {facts['precision']})" in printed
    assert "\nok: 16 greedy ids as expected\n" in printed and f"current   {facts['id']}" in printed


def test_what_is_installed_uses_the_packages_of_the_file(installed):
    cpu, folder, _ = installed
    python = release(folder)[0] / "env" / "bin" / "python"
    script = "import numpy, onnxruntime, tokenizers; print(numpy.__file__, onnxruntime.__file__, tokenizers.__file__)"
    paths = output(on_board_with_children(cpu, python, "-c", script, cwd=folder)).split()
    assert len(paths) == 3 and all(path.startswith(str(python.parents[1])) for path in paths), paths


def test_each_board_generates_what_this_machine_generates(installed, formats):
    cpu, folder, _ = installed
    bundle = formats[0]
    here = ids(output(run(sys.executable, Path(bundle) / "merino.pyz", "generate", bundle, *GENERATE)))
    assert len(set(here)) > 5
    there = on_board_with_children(cpu, "root/current/merino", "generate", "installed", *GENERATE, cwd=folder)
    assert ids(output(there)) == here


def test_a_release_with_other_golden_ids_does_not_replace_it(installed, formats):
    """Else the self-tests above would not show that golden ids were generated."""
    cpu, folder, _ = installed
    current = release(folder)[0].name
    data = packed_bytes((folder / "merino.pyz").read_bytes(), [changed_golden(bundle_files(formats[1]))])
    (folder / "changed.merino").write_bytes(data)
    packages = ["env", "PYTHONPATH=/opt/site"]  # this file brings none
    done = install(cpu, folder, "changed.merino", "--allow=unsigned", environment=packages)
    assert done.returncode == 1 and "the self-test failed: " in done.stderr, done.stderr
    assert f"{current} stays in use" in done.stderr and release(folder)[0].name == current
    assert [path.name for path in (folder / "root" / "releases").iterdir()] == [current]


@pytest.mark.nightly  # with the file that the emulated boards install
def test_a_jetson_nanos_system_takes_the_wheels_for_python_3_6(packed):
    """From the same file. The rest of what a Nano is, is that of its profile."""
    software = load_profile("jetson-nano").software
    here = this_machine(str(packed))
    board = here.board._replace(architecture="aarch64", pointer_bits=64, isa=frozenset())
    nano = here._replace(board=board, model=MODELS["cortex-a57"], python="3.6", glibc="2.27")
    assert (software.python, software.glibc) == (nano.python, nano.glibc)
    choice = choose(open_archive(str(packed / "story.merino")), nano)
    assert (choice.bundle.dialect, choice.bundle.precision) == ("portable", "fp32")
    assert choice.wheels.python == "3.6" and choice.wheels.packages["onnxruntime"] == "1.10.0"


@pytest.fixture(scope="module")
def for_one_board(embedded_bundles, tmp_path_factory):
    """A folder with merino.pyz and, without wheels, five.merino for the Raspberry Pi 5."""
    folder = tmp_path_factory.mktemp("five")
    app, bundle = app_bytes(folder / "merino.pyz"), bundle_files(embedded_bundles["portable", "int8"])
    five = BoardNeed("raspberry-pi-5", load_profile("raspberry-pi-5").device_tree_models)
    (folder / "five.merino").write_bytes(packed_bytes(app, [bundle], boards=[five]))
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize("model, here", [
    ("Raspberry Pi 500 Rev 1.0", "'Raspberry Pi 500 Rev 1.0'"), ("", "a aarch64 machine without a device tree"),
])  # fmt: skip
def test_another_board_refuses_the_file(model, here, for_one_board):
    done = install("cortex-a76", for_one_board, "five.merino", "--allow=unsigned", model=model)
    assert done.returncode == 1 and f"the file is for raspberry-pi-5, this is {here}" in done.stderr, done.stderr
    assert not (for_one_board / "root").exists()
