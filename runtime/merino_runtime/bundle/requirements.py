"""Imports the packages that a board must install, and reports how to install them where one is absent."""
import importlib
import os
import re
import sys
import sysconfig
from typing import Any, Sequence, Tuple

from merino_runtime.errors import MerinoError
from merino_runtime.io.memory import lack_of_memory, ran_out

PACKAGES = ("numpy", "tokenizers", "onnxruntime")
ENVIRONMENT = "~/merino"


def require(name: str, requirements: Sequence[str] = PACKAGES) -> Any:
    """Return the module of that name. If it cannot be imported, raise MerinoError with the commands that install
    `requirements`."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        lack = lack_of_memory(error)
        if lack is not None:
            raise MerinoError(ran_out(lack, f"importing {name}")) from error
        if not isinstance(error, ImportError):
            raise
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise MerinoError(f"{name} cannot be imported ({reason}). {install_commands(requirements)}") from error


def install_commands(requirements: Sequence[str] = PACKAGES) -> str:
    """Return the commands that install packages. Outside of a virtual environment they also make one if the system's
    Python rejects pip (PEP 668), as on Raspberry Pi OS."""
    packages = " ".join(f"'{package}'" if set(package) & set("<>!=,") else package for package in requirements)
    python, make, then = sys.executable or "python3", [], ""
    if sys.prefix == sys.base_prefix and os.path.exists(
            os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")):
        python = ENVIRONMENT + "/bin/python"
        make, then = [f"python3 -m venv {ENVIRONMENT}"], f" (and from then on {python} in place of python3)"
    # pip 18.1, which Python 3.6 brings, cannot install the wheels of onnxruntime after 1.3.
    upgrade = [f"{python} -m pip install --upgrade pip"] if sys.version_info < (3, 7) else []
    install = f"{python} -m pip install --only-binary=:all: {packages}"
    return f"Run: {' && '.join([*make, *upgrade, install])}{then}"


def version_tuple(version: str) -> Tuple[int, ...]:
    """Return "1.18" and "1.18.0" as (1, 18, 0). The suffix of a development build is ignored."""
    numbers = [int(number) for number in re.findall(r"\d+", version)[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))
