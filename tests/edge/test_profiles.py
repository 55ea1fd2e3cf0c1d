"""Device profiles: the shipped hold the boards' facts, bad ones name all their faults, the host is probed."""

import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from merino_edge.calibration import host, this_machine
from merino_edge.calibration.board import board as named_board
from merino_edge.profiles.coefficients import KINDS, Figure
from merino_edge.profiles.reading import (
    list_profiles,
    load_profile,
    parse_profile,
    profile_ids,
    profile_of_model,
)
from merino_runtime.errors import MerinoError
from merino_runtime.io import board

FOLDER = Path(__file__).resolve().parents[2] / "device_profiles"
ONNX = "performance.onnxruntime"
BOARDS = ["jetson-nano", "jetson-orin-nano", "raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-zero-2w"]


def raw_profile(board="raspberry-pi-4"):
    return tomllib.loads((FOLDER / f"{board}.toml").read_text(encoding="utf-8"))


def figures(model):
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, Figure):
            yield f"{type(model).__name__}.{name}", value
        elif isinstance(value, BaseModel):
            yield from figures(value)


def faults_of(raw):
    with pytest.raises(MerinoError) as caught:
        parse_profile(raw, "bad.toml")
    return str(caught.value)


def test_shipped_profiles_load_and_are_named_after_their_files():
    assert profile_ids() == BOARDS
    assert [profile.id for profile in list_profiles()] == BOARDS


@pytest.mark.parametrize("board", BOARDS)
def test_every_figure_says_how_it_is_known(board):
    result = dict(figures(load_profile(board)))
    assert len(result) >= 11
    for name, figure in result.items():
        assert figure.kind in KINDS, name
        assert len(figure.source) > 5, name
        assert figure.kind != "calibrated", f"{name}: no shipped figure was measured by us"


@pytest.mark.parametrize(
    ("model", "board"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", "raspberry-pi-5"),
        ("Raspberry Pi 4 Model B Rev 1.4", "raspberry-pi-4"),
        ("Raspberry Pi Zero 2 W Rev 1.0", "raspberry-pi-zero-2w"),
        ("Raspberry Pi Zero 2 Rev 1.0", "raspberry-pi-zero-2w"),
        ("NVIDIA Jetson Nano Developer Kit", "jetson-nano"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "jetson-orin-nano"),
        ("NVIDIA Orin Nano Developer Kit", "jetson-orin-nano"),
        ("Raspberry Pi 500 Rev 1.0", None),  # another board, although its name begins so
        ("NVIDIA Jetson Nano 2GB Developer Kit", None),
        ("Raspberry Pi Zero W Rev 1.1", None),
        ("my Raspberry Pi 5", None),
        ("", None),
    ],
)
def test_a_board_is_known_by_its_device_tree(model, board):
    result = profile_of_model(model)
    assert (result.id if result else None) == board


@pytest.mark.parametrize(("wrong", "meant"), [("raspbery_pi_4", "raspberry-pi-4"), ("hots", "host")])
def test_unknown_id_suggests_and_lists(wrong, meant):
    with pytest.raises(MerinoError, match=f"mean '{meant}'") as caught:
        load_profile(wrong)
    assert all(board in str(caught.value) for board in [*BOARDS, "host"])


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("cores = { value = 4,", "cores = { value = 4_000_000_000,", "cpu.cores.value is 4000000000, must be at most"),
    ("read_gb_s = { value = 11.8,", "read_gb_s = { value = 1e308,", f"{ONNX}.read_gb_s.value is 1e+308, must"),
    ("read_gb_s = { value = 11.8,", "read_gb_s = { value = 1e-308,", f"{ONNX}.read_gb_s.value is 1e-308, must"),
    ("context = ", "context = 1_000_000_000 # ", "budget.context is 1000000000, must be at most 131072"),
    ("decode_ms = ", "decode_ms = 1e300 # ", "budget.decode_ms is 1e+300, must be at most"),
    ("decode_ms = ", f"decode_ms = {'9' * 1000} # ", "budget.decode_ms is 999"),
    ("decode_ms = ", f"decode_ms = {'9' * 5000} # ", "not a TOML file: Exceeds the limit"),
    ("name = ", f"name = {'[' * 100000} # ", "not a TOML file: its lists and objects are nested too deeply"),
    ("name = ", f"name = {'[' * 100}{']' * 100} # ", "not a TOML file: its lists and objects are nested too deeply"),
])  # fmt: skip
def test_figures_beyond_any_board_are_refused_by_their_bounds(tmp_path, old, new, expected):
    text = (FOLDER / "raspberry-pi-5.toml").read_text()
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(MerinoError) as caught:
        load_profile(tmp_path / "mine.toml")
    assert expected in str(caught.value) and len(str(caught.value)) < 1000


def test_unreadable_paths_say_so(tmp_path):
    with pytest.raises(MerinoError, match=r"absent\.toml"):
        load_profile(tmp_path / "absent.toml")
    (tmp_path / "torn.toml").write_text("id = ")
    with pytest.raises(MerinoError, match="not a TOML file"):
        load_profile(tmp_path / "torn.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(MerinoError, match="not a TOML file"):
        load_profile(tmp_path / "binary.toml")


# Each fault: the key path to alter, its bad value (None: drop it), how its line begins, and what it must say.
FAULTS = [
    ("id", "My Board", 'id is "My Board"', "lowercase"),
    ("name", None, "name: missing", "text"),
    ("nam", "x", "nam: unknown key", "did you mean name?"),
    ("arch", "armv7l", 'arch is "armv7l"', "aarch64"),
    ("isa", ["neon", "neonn"], 'isa[1] is "neonn"', "dotprod"),
    ("cpu.core", " ", 'cpu.core is " "', "not be empty"),
    ("cpu.clock_ghz", 1.8, "cpu.clock_ghz is 1.8", "value = a positive number"),
    ("cpu.cores.value", 4.5, "cpu.cores.value is 4.5", "integer"),
    ("memory.ram_mb.value", float("nan"), "memory.ram_mb.value is NaN", "finite"),
    ("memory.free_mb.kind", "guess", 'memory.free_mb.kind is "guess"', "published"),
    ("memory.free_mb.source", "", 'memory.free_mb.source is ""', "not be empty"),
    ("memory.free_mb.why", "y", "memory.free_mb.why: unknown key", "value, kind, source"),
    (f"{ONNX}.read_gb_s.value", -1, f"{ONNX}.read_gb_s.value is -1", "at least 0.000001"),
    (f"{ONNX}.fp32_gflops", None, f"{ONNX}.fp32_gflops: missing", "calibrated"),
    (f"{ONNX}.op_overhead_us.value", "4", f'{ONNX}.op_overhead_us.value is "4"', "number"),
    (f"{ONNX}.decode_threads.value", 5, f"{ONNX}.decode_threads is 5", "cpu.cores"),
    ("budget.memory_mb", 3501, "budget.memory_mb is 3501", "memory.free_mb"),
    ("budget.decode_ms", True, "budget.decode_ms is true", "number"),
    ("software", None, "software: missing", "onnxruntime"),
    ("power.modes", "10W", 'power.modes is "10W"', "list"),
]


def altered(path, value, raw):
    *tables, key = path.split(".")
    for table in tables:
        raw = raw[table]
    if value is None:
        del raw[key]
    else:
        raw[key] = value


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0])
def test_a_fault_names_its_key_the_value_and_what_is_allowed(fault):
    path, value, begins, expected = fault
    raw = raw_profile()
    altered(path, value, raw)
    message = faults_of(raw)
    (line,) = [line for line in message.splitlines() if line.strip().startswith(begins)]
    assert expected in line
    assert "bad.toml" in message


@given(st.lists(st.sampled_from(FAULTS), min_size=2, unique_by=lambda fault: fault[0]))
def test_all_faults_come_in_one_message(faults):
    raw = raw_profile()
    for path, value, _, _ in faults:
        altered(path, value, raw)
    message = faults_of(raw)
    for _, _, begins, expected in faults:
        assert any(line.strip().startswith(begins) and expected in line for line in message.splitlines()), begins


def test_facts_of_this_machine(monkeypatch):
    measured_host(monkeypatch)
    profile = named_board("host")
    assert profile.id == "host"
    assert profile.budget.memory_mb < profile.memory.free_mb.value <= profile.memory.ram_mb.value


def test_host_without_proc_and_sys(monkeypatch, tmp_path):
    def absent(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(this_machine, "CPUINFO", tmp_path / "absent")
    monkeypatch.setattr(this_machine, "last_level_cache_bytes", lambda: 0)
    monkeypatch.setattr(this_machine.psutil, "cpu_freq", absent)
    monkeypatch.setattr(this_machine.platform, "machine", lambda: "arm64")
    measured_host(monkeypatch)
    profile = named_board("host")
    assert (profile.arch, profile.isa) == ("aarch64", ("neon",))
    assert profile.cpu.clock_ghz is None
    assert profile.cpu.cores.value == len(board.usable_cpus())


def measured_host(monkeypatch):
    """Let this machine have the figures of the sample profile, at one thread."""
    one_thread = {"value": 1, "kind": "estimated", "source": "test"}
    threads = {"decode_threads": one_thread, "prefill_threads": one_thread}
    performance = raw_profile()["performance"]["onnxruntime"] | threads
    monkeypatch.setattr(host, "host_probes", lambda _: [])
    monkeypatch.setattr(host, "calibrate", lambda *_: SimpleNamespace(performance=performance))
