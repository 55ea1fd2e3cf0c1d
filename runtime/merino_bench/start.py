"""Where the board's command line begins: `merino` and merino.pyz. Only its imports stand between Python and this."""
from merino_runtime.io.start import end_at_once, leave_current_folder, raise_again

end_at_once()  # before the imports that take time

import sys  # noqa: E402


def main() -> int:
    heard = end_at_once()
    leave_current_folder()
    from merino_bench.__main__ import main as run

    if heard:
        raise_again()
    return run()


if __name__ == "__main__":
    sys.exit(main())
