"""Run one of this project's modules in a fresh process: a request in, one JSON object out.

A failure becomes a MerinoError with the reason: out of memory, a process that dies, or one that takes too long.
"""
import json
import signal
import subprocess
from typing import Any, Dict, Optional

from merino_runtime.errors import MerinoError
from merino_runtime.io.memory import OUT_OF_MEMORY_WORDS
from merino_runtime.io.start import module_command, package_folders, safe_environment

OUT_OF_MEMORY = "out of memory"
LESS = "stop other programs"


def run_separately(module: str, request: str, timeout_s: float, variables: Optional[Dict[str, str]] = None,
                   remedy: str = "") -> Dict[str, Any]:
    """Run `python -m MODULE REQUEST` without the current folder on its path. Return the JSON object in the last line
    of its output.

    variables: of the environment, added to this process's. remedy: what a user can do if the time does not suffice.
    Raise MerinoError with the reason if no object comes.
    """
    process = subprocess.Popen(module_command(module, request),
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=dict(safe_environment(*package_folders()), **(variables or {})))
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise MerinoError(f"no result within {timeout_s:.3g} s{remedy}") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    lines = out.decode("utf-8", "replace").splitlines()
    try:
        result: Dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise MerinoError(reason_of(process.returncode, err.decode("utf-8", "replace"))) from None
    if "error" in result:
        raise MerinoError(_with_memory_named(result["error"]))
    return result


def reason_of(return_code: int, err: str) -> str:
    """Return why a process ended without a result."""
    if return_code == -signal.SIGKILL:
        return f"killed by signal 9, most likely {OUT_OF_MEMORY}: {LESS}"
    if return_code < 0:
        reason = f"ended by signal {-return_code} ({signal.Signals(-return_code).name})"
        if OUT_OF_MEMORY_WORDS.search(err):
            return f"{OUT_OF_MEMORY} ({reason}): {LESS}"
        return f"{reason}: try again, or with another version of the backend"
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    return _with_memory_named(f"ended with code {return_code}: {lines[-1] if lines else 'without a message'}")


def _with_memory_named(reason: str) -> str:
    return f"{OUT_OF_MEMORY} ({reason}): {LESS}" if OUT_OF_MEMORY_WORDS.search(reason) else reason
