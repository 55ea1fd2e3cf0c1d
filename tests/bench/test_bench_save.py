"""Records on disks that are full or cannot be written: an error with the reason, and nothing lost that was there."""
import json
import os
import subprocess
import sys

import pytest

from merino_bench.harness.render import append, check_can_save, save
from merino_runtime.errors import MerinoError

PATH = os.pathsep.join(os.path.abspath(path) for path in sys.path)
FULL = """
import resource, signal, sys
from merino_bench.harness import render
from merino_runtime.errors import MerinoError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    getattr(render, sys.argv[1])([{"test": "pp512", "samples_ms": list(range(2000))}], sys.argv[2])
except MerinoError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Unix's")
@pytest.mark.parametrize("how, name", [("save", "result.json"), ("append", "results.jsonl")])
def test_a_full_disk_is_told_and_what_was_there_can_be_read(tmp_path, how, name):
    path = tmp_path / name
    {"save": save, "append": append}[how]([{"test": "tg128"}], str(path))
    limit = str(path.stat().st_size + 100)
    call = [sys.executable, "-c", FULL, how, str(path), limit]
    out = subprocess.check_output(call, env=dict(os.environ, PYTHONPATH=PATH)).decode()
    assert out.startswith(f"cannot write {path}: File too large. Free space")
    assert os.listdir(str(tmp_path)) == [name]
    first = path.read_text().splitlines()[0] if how == "append" else path.read_text()
    assert json.loads(first) in ({"test": "tg128"}, [{"test": "tg128"}])
    if how == "append":  # once there is space again, the torn line stays a line of its own
        append([{"test": "tg256"}], str(path))
        assert json.loads(path.read_text().splitlines()[-1]) == {"test": "tg256"}


@pytest.mark.parametrize("write", [save, append])
def test_a_folder_that_cannot_be_written_is_told(tmp_path, write):
    (tmp_path / "a file").write_text("")
    with pytest.raises(MerinoError, match="^cannot write .*a file"):
        write([{"test": "tg128"}], str(tmp_path / "a file" / "result.json"))


@pytest.mark.parametrize("content", [
    '[{"test": "tg128"},\n {"test": "tg256"},\n {"test": "pp8"}]\n', "dear diary\n", '{\n "test": "tg128"\n}\n',
    "\x7fELF"])
def test_records_are_appended_to_json_lines_alone(tmp_path, content):
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(MerinoError, match=r"results\.jsonl holds no JSON lines"):
        check_can_save(str(path))
    assert path.read_text() == content


@pytest.mark.parametrize("content", ["", '{"test": "tg', '{"test": "tg\n{"test": "pp8"}\n', '{"test": "pp8"}\n{"te'])
def test_lines_that_a_power_cut_tore_are_no_reason_to_refuse(tmp_path, content):
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    check_can_save(str(path))
