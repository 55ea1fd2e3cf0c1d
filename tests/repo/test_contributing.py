"""CONTRIBUTING.md's steps, followed in a copy of the repository; the probes that people sent."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sample_probe import synthetic

from merino_edge.calibration.calibrate import check_same_machine
from merino_edge.calibration.probe import read_probe
from merino_edge.profiles.reading import load_profile, profile_ids

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROBES = ROOT / "device_profiles" / "probes"
pytestmark = pytest.mark.slow


def blocks(section, kind):
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", GUIDE, re.DOTALL | re.MULTILINE)[1]
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


class Copy:
    """The repository's packages, to change; `merino-edge` and `merino` of its shells are the copy's."""

    def __init__(self, folder):
        self.folder = folder
        left_out = shutil.ignore_patterns("__pycache__", "results", "merino.pyz")
        for name in ("merino_edge", "runtime", "device_profiles"):
            shutil.copytree(ROOT / name, folder / name, ignore=left_out)
        for name, module in (("merino-edge", "merino_edge"), ("merino", "merino_bench")):
            program = folder / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
            program.chmod(0o755)
        path = os.pathsep.join((str(folder), str(folder / "runtime")))
        self.variables = {
            **os.environ, "PYTHONPATH": path, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        }  # fmt: skip

    def run(self, script):
        done = subprocess.run(
            ["sh", "-ec", script], cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path / "copy")


def test_a_board_is_added(copy):
    (commands,) = blocks("A board", "bash")
    shown = copy.run(commands)
    assert "My board (my-board)" in shown
    design = json.loads((copy.folder / "my-board.json").read_text())
    assert (design["device"], design["budget"]["decode_ms"]) == ("my-board", 20)
    assert "my-board" not in profile_ids(), "only the copy has it"


@pytest.mark.nightly
def test_a_family_is_added_exported_and_run(copy, tiny_checkpoint):
    (source,), (register, export) = blocks("A model family", "python"), blocks("A model family", "bash")
    (copy.folder / "merino_edge" / "families" / "helium.py").write_text(source)
    copy.run(register)
    copy.run(f"""'{sys.executable}' - <<'E'
from transformers import AutoTokenizer, HeliumConfig, HeliumForCausalLM
words = dict(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, head_dim=16, pad_token_id=0, bos_token_id=0,
             eos_token_id=0)
HeliumForCausalLM(HeliumConfig(**words)).save_pretrained("helium-tiny")
AutoTokenizer.from_pretrained("{tiny_checkpoint}").save_pretrained("helium-tiny")
E""")
    copy.run(export)
    bundle = json.loads((copy.folder / "helium-bundle" / "bundle.json").read_text())
    assert bundle["family"] == "helium" and bundle["golden"]["greedy_ids"]


MINE = '''
from merino_runtime.backends.onnx import OnnxBackend
from merino_runtime.backends.onnx_session import open_model


def open_mine(bundle):
    backend = OnnxBackend(open_model(bundle, None, None))
    backend.engine = "mine 1"
    print("mine is opened")
    return backend
'''


@pytest.mark.nightly
def test_a_backend_is_added_and_passes_a_bundles_self_test(copy):
    shutil.copytree(ROOT / "merino_edge" / "embedded" / "bundle", copy.folder / "bundle")
    with pytest.raises(AssertionError, match="invalid choice: 'mine'"):
        copy.run("merino selftest bundle --backend mine")
    (copy.folder / "runtime" / "merino_runtime" / "backends" / "mine.py").write_text(MINE)
    (register,) = blocks("A backend", "bash")
    copy.run(register)
    with pytest.raises(AssertionError, match="does not run on mine"):
        copy.run("merino selftest bundle --backend mine")
    path = copy.folder / "bundle" / "bundle.json"
    bundle = json.loads(path.read_text())
    bundle["backends"].append({**bundle["backends"][0], "name": "mine"})
    path.write_text(json.dumps(bundle))
    shown = copy.run("merino selftest bundle --backend mine")
    assert "mine is opened" in shown and "ok: 16 greedy ids as expected" in shown


@pytest.mark.nightly
def test_a_budget_is_added_and_binds(copy):
    (row,), (command,) = blocks("A budget", "python"), blocks("A budget", "bash")
    table = copy.folder / "merino_edge" / "design" / "budgets.py"
    text = table.read_text()
    last = text.index('        Budget(\n            "j_per_token"')
    table.write_text(text[:last] + row + text[last:])
    copy.run(command)
    design = json.loads((copy.folder / "small-cache.json").read_text())
    assert design["budget"]["kv_mb"] == 0.5 and design["predicted"]["kv_bytes"] <= 0.5 * 2**20
    copy.run(command.replace("kv-mb=0.5", "kv-mb=500"))
    free = json.loads((copy.folder / "small-cache.json").read_text())
    assert free["predicted"]["kv_bytes"] > design["predicted"]["kv_bytes"]


MACHINE = {"board", "kernel", "arch", "cpus", "versions"}
VERSIONS = {"python", "merino", "numpy", "onnxruntime", "tensorrt"}
WORDS = re.compile(r"[\w .,:;()+%x-]*")


def faults_of(path):
    """What keeps a collected probe out; its schema is judged by the reader."""
    probe, result = read_probe(path), []
    check_same_machine(probe, load_profile(path.parent.name))
    raw = json.loads(path.read_text(encoding="utf-8"))
    if raw["flags"]:
        result.append(f"flags: {', '.join(raw['flags'])}")
    more = set(raw["machine"]) - MACHINE | set(raw["machine"].get("versions", {})) - VERSIONS
    result += [f"machine has {name}" for name in sorted(more)]
    result += [f"{text!r} may be private" for text in strings(raw) if not WORDS.fullmatch(text)]
    if not re.fullmatch(r"\d{4}-\d\d-\d\d-\d+\.json", path.name):
        result.append("its name is not DATE-N.json")
    return result


def strings(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for each in value for text in strings(each)]
    return [value] if isinstance(value, str) else []


def test_each_collected_probe_is_of_its_board_and_holds_nothing_private():
    folders = {path.name for path in PROBES.iterdir() if path.is_dir()}
    assert folders <= set(profile_ids())
    assert {str(path): faults for path in PROBES.glob("*/*") if (faults := faults_of(path))} == {}


def sent(folder, date="2026-12-01", **changes):
    """A probe as somebody sends it, of a Raspberry Pi 4."""
    raw = synthetic().model_dump(mode="json", by_alias=True)
    raw.update(date=date, **changes)
    path = folder / f"{date}-1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(raw))
    return path


def test_what_should_not_be_sent_is_found(tmp_path):
    folder = tmp_path / "raspberry-pi-4"
    assert faults_of(sent(folder)) == []
    machine = {"board": "Raspberry Pi 4 Model B", "arch": "aarch64", "hostname": "kitchen", "versions": {}}
    path = sent(folder, machine=machine, flags=["busy"], left_out=["/home/ann/x", "ann@kitchen"])
    assert faults_of(path) == [
        "flags: busy", "machine has hostname", "'/home/ann/x' may be private", "'ann@kitchen' may be private"
    ]  # fmt: skip


def test_collected_probes_calibrate_their_board_for_everyone(copy):
    """Of two revisions of the board; without -o's profile nothing is changed. `devices` counts them."""
    assert "measured by" not in copy.run("merino-edge devices")
    with pytest.raises(AssertionError, match="needs --probe FILE"):
        copy.run("merino-edge calibrate --board raspberry-pi-4 -o mine.toml")
    folder = copy.folder / "device_profiles" / "probes" / "raspberry-pi-4"
    for date, revision in (("2026-12-01", "1.4"), ("2026-12-02", "1.5")):
        board = f"Raspberry Pi 4 Model B Rev {revision}"
        sent(folder, date, machine={"board": board, "arch": "aarch64", "versions": {"onnxruntime": "1.32.0"}})
    assert "raspberry-pi-4: measured by 2 probes" in copy.run("COLUMNS=200 merino-edge devices")
    copy.run("merino-edge calibrate --board raspberry-pi-4 -o device_profiles/raspberry-pi-4.toml")
    shown = copy.run("COLUMNS=200 merino-edge devices raspberry-pi-4")
    assert "calibrated" in shown and "probe of 2026-12-02" in shown and "measured by 2 probes" in shown
