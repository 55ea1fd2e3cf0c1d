"""Which attention kernel is asked for: by core and cache, only while sessions open, never against the user's wish."""
import os
import platform

import pytest

from merino_runtime.backends.onnx_session import SWITCH, attention_path, faster_attention
from merino_runtime.bundle import KvLayer
from merino_runtime.io import board

A53, A72 = "CPU part\t: 0xd03\n", "CPU part\t: 0xd08\n"
BOTH = A53 + A72


class Cached:
    """A bundle, as far as the choice asks."""
    def __init__(self, form):
        self.kv_layers = (KvLayer(2, 32, form),)


@pytest.mark.parametrize("machine, cpuinfo, form, switch", [
    ("x86_64", "", "int8", "1"), ("x86_64", "", "int4", "1"), ("x86_64", "", "fp32", None),
    ("aarch64", A53, "fp32", "1"), ("aarch64", BOTH, "fp32", "1"), ("aarch64", A53, "int8", None),
    ("aarch64", A72, "fp32", None), ("aarch64", "", "fp32", None), ("riscv64", A53, "fp32", None)])
def test_the_kernel_that_is_faster_is_asked_for(monkeypatch, machine, cpuinfo, form, switch):
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(board, "read_text", lambda path: cpuinfo if path == "/proc/cpuinfo" else "")
    bundle = Cached(form)
    assert ("faster here" in attention_path(bundle)) == (switch is not None)
    with pytest.raises(KeyError), faster_attention(bundle):
        assert os.environ.get(SWITCH) == switch
        raise KeyError
    assert SWITCH not in os.environ


@pytest.mark.parametrize("wish", ["0", "1"])
def test_a_wish_of_the_users_stands(monkeypatch, wish):
    monkeypatch.setenv(SWITCH, wish)
    with faster_attention(Cached("int8")):
        assert os.environ[SWITCH] == wish
    assert os.environ[SWITCH] == wish and f"{SWITCH}={wish}" in attention_path(Cached("int8"))
