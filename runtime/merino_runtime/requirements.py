"""Imports the packages that a board must install, and says how to install them where one is absent."""
import importlib
import os
import sys
import sysconfig
from typing import Any, Sequence

from merino_runtime.errors import MerinoError

PACKAGES = ("numpy", "tokenizers", "onnxruntime")
ENVIRONMENT = "~/merino"


def require(name: str, requirements: Sequence[str] = PACKAGES) -> Any:
    """The module of that name. MerinoError with the commands that install `requirements` if it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise MerinoError(f"{name} cannot be imported ({reason}). {install_commands(requirements)}") from error


def install_commands(requirements: Sequence[str] = PACKAGES) -> str:
    """Inside a virtual environment one command of pip. Outside two, which make one: systems such as Raspberry Pi OS
    refuse pip there (PEP 668)."""
    wanted = " ".join(f"'{each}'" if set(each) & set("<>!=,") else each for each in requirements)
    install = f"-m pip install --only-binary=:all: {wanted}"
    if sys.prefix != sys.base_prefix or not _externally_managed():
        return f"Run: {sys.executable or 'python3'} {install}"
    python = ENVIRONMENT + "/bin/python"
    return f"Run: python3 -m venv {ENVIRONMENT} && {python} {install} (and from then on {python} in place of python3)"


def _externally_managed() -> bool:
    return os.path.exists(os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED"))
