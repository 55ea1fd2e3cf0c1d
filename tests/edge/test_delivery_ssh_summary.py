"""What is said of flashed boards, and how a command line finds its board: tables, JSON, profiles, the missing extra."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from sample_records import record

from merino_edge.cli.record_tables import flashed_json, flashed_table, speeds_ms
from merino_edge.cli.tables import plain
from merino_edge.delivery.ssh.board import Facts, profile_of
from merino_edge.delivery.ssh.flash import Flashed
from merino_edge.prediction.cost_model import cost_model
from merino_edge.prediction.shape import InferenceShape
from merino_edge.profiles.reading import load_profile
from merino_edge.records.reading import parse_records
from merino_runtime.delivery.machine import this_machine
from merino_runtime.errors import MerinoError

ROWS = [record(20.0), record(300.0, test="pp64", mbu=None)]


def facts(model):
    return Facts(this_machine("/")._replace(model=model), "/opt/merino", None)


def flashed(model="Raspberry Pi 5 Model B Rev 1.0", **changes):
    rows, faults, _ = parse_records(json.dumps(ROWS))
    assert faults == []
    result = Flashed("pi", facts=facts(model), bundle="ours", precision="fp32", tested=True, records=rows)
    return replace(result, **changes)


def test_what_was_measured_stands_beside_the_prediction_for_the_boards_profile():
    one = flashed()
    _, predicted = speeds_ms(one)
    (series, *_) = {row.bundle: row for row in one.records}.values()
    cost = cost_model(load_profile("raspberry-pi-5"), InferenceShape("fp32", 8 + 32 // 2, 8))
    assert predicted["decode"] == pytest.approx(cost.predict(series.geometry.operators).decode_ms)
    row = flashed_json(one)
    assert row["device"] == "raspberry-pi-5" and row["selftest"] == "ok" and row["error"] is None
    assert row["predicted"]["decode_ms"] == predicted["decode"]
    assert row["measured"]["decode_ms"] == pytest.approx(20, rel=0.05)
    assert row["measured"]["prefill_ms"] == pytest.approx(300, rel=0.05)
    text = plain(flashed_table([one]))
    assert f"{predicted['decode']:,.1f}" in text and "Raspberry Pi 5" in text


def test_a_board_without_a_profile_has_no_prediction_and_one_that_failed_no_speed():
    unknown, failed = flashed(model="Another board"), Flashed("b", error="cannot log in")
    assert flashed_json(unknown)["predicted"] == {"prefill_ms": None, "decode_ms": None}
    assert flashed_json(failed)["measured"] == {"prefill_ms": None, "decode_ms": None}
    text = plain(flashed_table([unknown, failed, flashed(was_there=True), flashed(replaced="0" * 16)]))
    assert text.startswith("Flashed: 3 of 4 boards\n")
    assert [words for words in ("new", "failed", "was there", "in place of 0000") if words not in text] == []


def test_nothing_that_a_board_says_steers_the_terminal():
    text = plain(flashed_table([flashed(model="\u202eRaspberry\x1b[2J", replaced="\x1b[2J")]))
    assert all(one.isprintable() or one == "\n" for one in text)


def test_the_profile_of_a_board_is_that_which_names_its_model():
    assert profile_of("pi", facts("NVIDIA Jetson Nano Developer Kit")).id == "jetson-nano"
    for model in ("", "Another\x1b board"):
        with pytest.raises(MerinoError, match="no profile names.*--device") as caught:
            profile_of("pi", facts(model))
        assert str(caught.value).isprintable()


WITHOUT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "asyncssh":
            raise ImportError("blocked")
sys.meta_path.insert(0, Blocker())
from merino_edge.cli.app import main
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["recommend --ssh pi", "generate --ssh pi embedded x", "bench --ssh pi embedded", "flash x --ssh pi",
              "calibrate --ssh pi --device raspberry-pi-5 -o none.toml"],
)  # fmt: skip
def test_without_the_extra_the_message_says_what_to_install(words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *words.split()], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1 and "-e '.[delivery]'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
