"""Benchmarks of tests: other tests run beside them, so nearly each process is disturbed, and nobody reads a figure."""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOTS = os.pathsep.join([os.path.join(os.path.dirname(HERE), "runtime"), HERE])  # for PYTHONPATH
MAIN = """
import sys
import quick_bench
from merino_bench.start import main
quick_bench.quicken()
sys.argv[0] = "merino_bench"
sys.exit(main())
"""
CALL = [sys.executable, "-c", MAIN]  # in place of `python -m merino_bench`, with ROOTS in PYTHONPATH


# The same in an application: (end of a file's name, what it has, what it has in tests).
IN_APP = (("harness/worker.py", b"WARM_UP_S = 0.3 ", b"WARM_UP_S = 0.03 "),
          ("harness/turns.py", b"MOST_ATTEMPTS = 3 ", b"MOST_ATTEMPTS = 1 "),
          ("probe/bandwidth.py", b"seconds: float = 0.5,", b"seconds: float = 0.02,"),
          ("probe/bandwidth.py", b"max(DEFAULT_BUFFER_MB * MB, 4 * last_level_cache_bytes())", b"16 * MB"))


def quick(name, content):
    """The content of this file of an application whose benchmarks are quick."""
    for end, written, here in IN_APP:
        if name.endswith(end):
            assert written in content, (name, written)
            content = content.replace(written, here)
    return content


def quicken_apps():
    """Of the applications that this process makes from now on."""
    from merino_edge.bundles import board_app

    packed_files = board_app.packed_files
    board_app.packed_files = lambda package: ((name, quick(name, content)) for name, content in packed_files(package))


def quicken(put=setattr):
    """What was disturbed is not measured again, and processes warm up for a moment. put: as setattr."""
    from merino_bench.harness import turns
    from merino_runtime.io.start import package_folders, safe_environment

    run_separately = turns.run_separately

    def run_this_file(_worker, *positional, **named):
        path = safe_environment(*package_folders(), HERE)["PYTHONPATH"]
        return run_separately("quick_bench", *positional, variables={"PYTHONPATH": path}, **named)

    put(turns, "run_separately", run_this_file)
    put(turns, "MOST_ATTEMPTS", 1)
    read_briefly(put)


def read_briefly(put=setattr):
    """The memory's read bandwidth is measured for a moment, of little memory."""
    from merino_bench.harness import run

    read_gb_s = run.read_gb_s
    put(run, "buffer_bytes", lambda: 2 ** 24)
    put(run, "read_gb_s", lambda threads, buffer: read_gb_s(threads, 0.02, buffer))


if __name__ == "__main__":
    from merino_bench.harness import worker

    worker.WARM_UP_S = 0.03
    sys.exit(worker.main())
