"""The entry point of `merino-edge`. Only the packages themselves are imported before it."""

from merino_runtime.io.start import end_at_once, run_main

end_at_once()  # before the imports that take time


def main() -> None:
    run_main("merino_edge.cli.app")


if __name__ == "__main__":
    main()
