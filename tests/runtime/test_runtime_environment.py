"""What importing our packages sets, and that no onnxruntime behind it writes into HOME or opens a connection."""
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

PATH = os.pathsep.join(os.path.abspath(path) for path in sys.path)
PACKAGES = [name for name in ("merino_runtime", "merino_bench", "merino_edge") if find_spec(name)]
VARIABLES = ("ORT_DISABLE_TELEMETRY", "OPENBLAS_CORETYPE")
SHOW = f"""
import os, sys, types
os.uname = lambda: types.SimpleNamespace(machine=sys.argv[2])
__import__(sys.argv[1])
print(*[os.environ.get(name) for name in {VARIABLES!r}])
assert "numpy" not in sys.modules and "onnxruntime" not in sys.modules
"""
USE = """
import sys
__import__(sys.argv[1])
import onnxruntime
onnxruntime.InferenceSession(sys.argv[2] + "/model.onnx", providers=["CPUExecutionProvider"])
"""


def clean_environment(**variables):
    """This process's environment without what our packages or conftest have set."""
    kept = {name: value for name, value in os.environ.items()
            if name not in (*VARIABLES, "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")}
    return dict(kept, PYTHONPATH=PATH, **variables)


def shown(package, machine, **variables):
    call = [sys.executable, "-c", SHOW, package, machine]
    return subprocess.check_output(call, env=clean_environment(**variables)).decode().split()


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("machine, core_type", [("aarch64", "ARMV8"), ("x86_64", "None")])
def test_importing_a_package_is_enough(package, machine, core_type):
    assert shown(package, machine) == ["1", core_type]


def test_a_value_of_the_users_stands():
    assert shown("merino_runtime", "aarch64", ORT_DISABLE_TELEMETRY="0", OPENBLAS_CORETYPE="CORTEXA57") == [
        "0", "CORTEXA57"]


@pytest.mark.parametrize("package", PACKAGES)
def test_onnxruntime_writes_nothing_into_home(package, bundle_dirs, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    call = [sys.executable, "-c", USE, package, str(bundle_dirs["portable"])]
    environment = clean_environment(HOME=str(home))
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        environment.pop(name, None)
    subprocess.check_call(call, env=environment)
    assert [path for path in home.rglob("*") if path.is_file()] == []


CONNECT = """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9))
"""


@pytest.fixture
def addresses_of(tmp_path):
    """A function: what a Python program asks the kernel to connect or send to, by strace."""
    log = tmp_path / "trace"
    trace = ["strace", "-f", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(log)]
    if not shutil.which("strace") or subprocess.call([*trace, "true"]) != 0:
        pytest.skip("strace is not here, or may not trace")

    def go(*arguments):
        subprocess.check_call([*trace, sys.executable, "-c", *arguments], env=clean_environment())
        return log.read_text()

    return go


@pytest.mark.parametrize("package", PACKAGES)
def test_onnxruntime_opens_no_connection(package, bundle_dirs, addresses_of):
    assert "AF_INET" in addresses_of(CONNECT), "the control: one that connects is seen"
    assert "AF_INET" not in addresses_of(USE, package, str(bundle_dirs["portable"]))
