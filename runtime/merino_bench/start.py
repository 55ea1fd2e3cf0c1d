"""Where the board's command line begins: `merino` and merino.pyz. Only its imports stand between Python and this."""
from merino_runtime.io.start import end_at_once, run_main

end_at_once()  # before the imports that take time

import sys  # noqa: E402


def main() -> int:
    return run_main("merino_bench.__main__")


if __name__ == "__main__":
    sys.exit(main())
