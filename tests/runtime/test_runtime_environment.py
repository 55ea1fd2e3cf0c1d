"""What importing our packages sets; that onnxruntime then writes nothing into HOME and opens no connection; and how a
board that lacks a package is told to install it."""
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec

import pytest

from merino_runtime.bundle.requirements import PACKAGES, install_commands

PATH = os.pathsep.join(os.path.abspath(path) for path in sys.path)
OURS = [name for name in ("merino_runtime", "merino_bench", "merino_edge") if find_spec(name)]
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


@pytest.mark.parametrize("package", OURS)
@pytest.mark.parametrize("machine, core_type", [("aarch64", "ARMV8"), ("x86_64", "None")])
def test_importing_a_package_is_enough(package, machine, core_type):
    assert shown(package, machine) == ["1", core_type]


def test_a_value_of_the_users_stands():
    assert shown("merino_runtime", "aarch64", ORT_DISABLE_TELEMETRY="0", OPENBLAS_CORETYPE="CORTEXA57") == [
        "0", "CORTEXA57"]


@pytest.mark.parametrize("package", OURS)
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


@pytest.mark.parametrize("package", OURS)
def test_onnxruntime_opens_no_connection(package, bundle_dirs, addresses_of):
    assert "AF_INET" in addresses_of(CONNECT), "the control: one that connects is seen"
    assert "AF_INET" not in addresses_of(USE, package, str(bundle_dirs["portable"]))


WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from {}.__main__ import main
sys.exit(main(sys.argv[2:]))
"""
VERBS = [("merino_runtime", "generate", ["the", "-n", "1"]), ("merino_runtime", "selftest", [])]
if find_spec("merino_bench"):
    VERBS += [("merino_bench", "bench", []), ("merino_bench", "probe", ["-o", os.devnull])]


def needed(verb):
    """Packages that a verb imports in its own process: `bench` starts others, and only texts need tokenizers."""
    return {"generate": PACKAGES, "bench": ["numpy"]}.get(verb, [name for name in PACKAGES if name != "tokenizers"])


@pytest.mark.parametrize("package, verb, arguments, absent", [
    (*words, name) for words in VERBS for name in needed(words[1])])
def test_every_verb_without_a_package_says_how_to_install_it(package, verb, arguments, absent, bundle_dirs):
    folder = [] if verb == "probe" else [str(bundle_dirs["portable"])]
    call = [sys.executable, "-c", WITHOUT.format(package), absent, verb] + folder + arguments
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=dict(os.environ, PYTHONPATH=PATH))
    out, err = process.communicate()
    output = err.decode().splitlines()[-1]
    assert process.returncode == 1 and out == b"" and "Traceback" not in err.decode()
    assert output.startswith(f"merino: {absent} cannot be imported") and "-m pip install --only-binary=:all: " in output


@pytest.fixture
def system_python(monkeypatch, tmp_path):
    """This process as it were outside any virtual environment, its standard library in tmp_path."""
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    return tmp_path


UPGRADE = "{0} -m pip install --upgrade pip && " if sys.version_info < (3, 7) else ""  # run for real: tests/targets


def test_where_the_system_refuses_pip_the_remedy_is_a_virtual_environment(system_python):
    install = f"{sys.executable} -m pip install --only-binary=:all: {' '.join(PACKAGES)}"
    assert install_commands() == f"Run: {UPGRADE.format(sys.executable)}{install}"
    (system_python / "EXTERNALLY-MANAGED").write_text("[externally-managed]\n")
    assert install_commands(["numpy", "onnxruntime>=1.18"]) == (
        "Run: python3 -m venv ~/merino && " + UPGRADE.format("~/merino/bin/python") +
        "~/merino/bin/python -m pip install --only-binary=:all: numpy "
        "'onnxruntime>=1.18' (and from then on ~/merino/bin/python in place of python3)")
