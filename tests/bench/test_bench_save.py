"""Records on disks that are full or cannot be written: an error with the reason, and nothing lost that was there."""
import json
import os
import subprocess
import sys

import pytest

from merino_bench.harness.saving import append, save
from merino_runtime.errors import MerinoError

PATH = os.pathsep.join(os.path.abspath(path) for path in sys.path)
FULL = """
import resource, signal, sys
from merino_bench.harness import saving
from merino_runtime.errors import MerinoError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    getattr(saving, sys.argv[1])([{"test": "pp512", "samples_ms": list(range(2000))}], sys.argv[2])
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
