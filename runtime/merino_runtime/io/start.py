"""What a process does first: leave the current folder's modules alone, end at Ctrl-C, set environment variables.

The current folder may be a stranger's, with a `numpy.py` or a `pip.py` in it. So this module imports nothing that
Python has not loaded already: `signal` would also take 20 ms, in which Ctrl-C prints a traceback.
"""
import _signal  # type: ignore[import-not-found]
import os
import sys

PACKAGES = ("merino_runtime", "merino_bench", "merino_edge")
# Python 3.11 and later read PYTHONSAFEPATH; an older one puts "" on the path for `-c`.
RUN_MODULE = ("import sys; sys.path[:] = filter(None, sys.path); import runpy; "
              "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)")
INTERRUPTED = 130  # 128 + SIGINT


def module_command(module: str, *arguments: str) -> list:
    """Return the command `python -m MODULE ARGUMENTS` without the current folder, to be run in `safe_environment`."""
    return [sys.executable, "-c", RUN_MODULE, module, *arguments]


def safe_environment(*folders: str) -> dict:
    """Return this process's environment with these folders first in PYTHONPATH, and without the current folder there,
    which an empty entry means too."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [*folders, *(path for path in paths if os.path.normpath(path) != os.curdir)]
    return dict(os.environ, PYTHONPATH=os.pathsep.join(paths), PYTHONSAFEPATH="1")


def package_folders() -> list:
    """Return the folders, or zips, that this project's packages were imported from."""
    files = [sys.modules[name].__file__ or "" for name in PACKAGES if name in sys.modules]
    return list(dict.fromkeys(os.path.dirname(os.path.dirname(os.path.abspath(file))) for file in files))


def leave_current_folder() -> None:
    """Take the current folder off the path of this process, a command line of this project, and of the processes that
    it starts. It stays if this project's packages come from it, or if PYTHONPATH names it."""
    os.environ.update(safe_environment())
    wanted = package_folders() + list(map(os.path.normpath, os.environ["PYTHONPATH"].split(os.pathsep)))
    try:
        current = os.getcwd()
    except OSError:  # it was removed
        current = ""
    library = os.path.dirname(os.__file__)  # the folders behind it, such as site-packages, belong to the installation
    end = sys.path.index(library) if library in sys.path else len(sys.path)
    sys.path[:end] = [path for path in sys.path[:end] if path in wanted or path not in ("", current)]


def end_at_once() -> bool:
    """Let ctrl-C end the process silently. Return whether it does: an interrupt that the parent process disabled, as
    for a job in the background, stays disabled."""
    handled = _signal.getsignal(_signal.SIGINT) in (_signal.default_int_handler, _end)
    if handled:
        _signal.signal(_signal.SIGINT, _end)
    return handled


def run_main(module: str) -> int:
    """Import the module of a command line and return what its `main` returns. Until that is imported, ctrl-C ends the
    process silently."""
    heard = end_at_once()
    leave_current_folder()
    run = __import__(module, fromlist=["main"]).main
    if heard:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    code: int = run()
    return code


def _end(*_: object) -> None:
    os._exit(INTERRUPTED)


def prepare_environment() -> None:
    """Set the variables. The import of `merino_runtime` calls this, so it precedes any import of numpy or
    onnxruntime."""
    # onnxruntime 1.32 on Linux writes a device id and a database into the user's cache when it is imported, and sends
    # events over HTTPS.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if os.uname().machine == "aarch64":  # the module `platform` takes 30 ms
        # OpenBLAS in numpy 1.19.5, the last for Python 3.6, misreads the Jetson Nano's CPU and dies of an illegal
        # instruction at import. The generic kernels cost nothing: the runtime multiplies no matrices in numpy.
        os.environ.setdefault("OPENBLAS_CORETYPE", "ARMV8")
