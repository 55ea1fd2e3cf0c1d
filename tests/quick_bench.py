"""Benchmarks of tests: other tests run beside them, so nearly each process is disturbed, and nobody reads a figure."""
import sys

MAIN = """
import sys
import quick_bench
from merino_bench.start import main
quick_bench.quicken()
sys.argv[0] = "merino_bench"
sys.exit(main())
"""
CALL = [sys.executable, "-c", MAIN]  # in place of `python -m merino_bench`, with this folder in PYTHONPATH


def quicken(put=setattr):
    """What was disturbed is not measured again, and the memory's read bandwidth for a moment. put: as setattr."""
    from merino_bench.harness import run, turns

    read_gb_s = run.read_gb_s
    put(turns, "MOST_ATTEMPTS", 1)
    put(run, "buffer_bytes", lambda: 2 ** 24)
    put(run, "read_gb_s", lambda threads, buffer: read_gb_s(threads, 0.02, buffer))
