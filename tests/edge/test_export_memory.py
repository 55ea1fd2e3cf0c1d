"""Memory of an export: estimated as it is, and refused with both figures before anything large is begun."""

import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from merino_edge.export import memory
from merino_edge.export.export import export
from merino_edge.export.memory import needed_mb
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source, random_source
from merino_edge.families.designed import Architecture
from merino_runtime.errors import MerinoError

GIANT = {"width": 8192, "ffn_ratio": 8.0, "depth": 64, "shared": False}  # 16 of them have 5 TB of weights
MEASURED = """
import sys
from pathlib import Path
from merino_edge.export.export import export
from merino_edge.export.request import ExportRequest
from merino_edge.export.source import load_source
from merino_runtime.io.board import peak_rss_mb
export(load_source(sys.argv[1]), Path(sys.argv[2]), ExportRequest(precision=sys.argv[3]))
print(peak_rss_mb())
"""


def refused(source):
    with pytest.raises(MerinoError) as caught:
        load_source(str(source))
    figures = re.findall(r"([\d,]+) MB(?:,| are)", str(caught.value))
    needed, available = (float(figure.replace(",", "")) for figure in figures)
    assert needed > 1e7 and 10 < available < needed and "smaller model" in str(caught.value)


def test_a_design_for_which_no_machine_has_memory_is_refused_before_it_is_made(tmp_path):
    path = tmp_path / "architecture.json"
    path.write_text(json.dumps({"blocks": [GIANT] * 16, "vocab": 50257, "context": 1024}))
    refused(path)


def test_a_checkpoint_whose_config_lies_is_refused_before_its_weights_are_read(tmp_path, tiny_checkpoint):
    shutil.copytree(tiny_checkpoint, tmp_path / "lies")
    config = json.loads((tmp_path / "lies" / "config.json").read_text())
    (tmp_path / "lies" / "config.json").write_text(json.dumps({**config, "blocks": [GIANT] * 16, "head_size": 64}))
    refused(tmp_path / "lies")


def test_a_bundle_whose_geometry_lies_is_refused_before_a_model_is_made(tmp_path, bundle_dirs):
    shutil.copytree(bundle_dirs["fused"], tmp_path / "lies")
    path = tmp_path / "lies" / "bundle.json"
    described = json.loads(path.read_text())
    described["architecture"].update(blocks=[GIANT] * 16, head_size=64)
    path.write_text(json.dumps(described))
    refused(tmp_path / "lies")


def test_what_was_loaded_is_refused_by_what_its_format_takes_more(tiny_arch, tmp_path, monkeypatch):
    """Between the two checks another program took the memory."""
    source = random_source(tiny_arch, "tiny")
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    with pytest.raises(MerinoError, match="^exporting tiny in int8 needs about 451 MB, for copies of 0 MB"):
        export(source, tmp_path / "bundle", ExportRequest(precision="int8"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a peak includes the parent's")
@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_estimate_is_near_the_peak(tmp_path, precision):
    path = tmp_path / "architecture.json"
    plan = {"blocks": [{"width": 512, "ffn_ratio": 2.0, "depth": 6, "shared": False}], "vocab": 32000, "context": 256}
    path.write_text(json.dumps(plan))
    done = subprocess.run([sys.executable, "-c", MEASURED, path, tmp_path / "bundle", precision], check=True,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    estimate = needed_mb(Architecture.model_validate(plan), precision)
    assert 0.7 < estimate / float(done.stdout) < 1.3
