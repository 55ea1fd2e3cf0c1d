"""Where the board's command line begins: `merino` and merino.pyz. Only its imports stand between Python and this."""
from merino_runtime.ctrl_c import end_at_once

end_at_once()  # before the imports that take time, and those of `starting` do

import sys  # noqa: E402

from merino_runtime.starting import starting  # noqa: E402


def main() -> int:
    with starting("merino"):
        from merino_bench.__main__ import main as run
    return run()


if __name__ == "__main__":
    sys.exit(main())
