"""Where the board's command line begins: `merino` and merino.pyz. Only its imports stand between Python and this."""
import sys

from merino_runtime.starting import starting


def main() -> int:
    with starting("merino"):
        from merino_bench.__main__ import main as run
    return run()


if __name__ == "__main__":
    sys.exit(main())
