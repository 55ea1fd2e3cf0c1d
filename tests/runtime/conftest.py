"""What several tests of the runtime open. A file whose tests need another bundle has fixtures of its own."""
import pytest

from merino_runtime.api import open_model
from merino_runtime.bundle import load_bundle


@pytest.fixture(params=["fused", "portable"])
def folder(request, bundle_dirs):
    if request.param not in bundle_dirs:
        pytest.skip(f"no {request.param} bundle for this Python's onnxruntime")
    return str(bundle_dirs[request.param])


@pytest.fixture
def model(folder):
    with open_model(folder, threads=1) as opened:
        yield opened


@pytest.fixture
def bundle(folder):
    return load_bundle(folder)
